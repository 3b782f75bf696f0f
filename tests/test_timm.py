"""The networks in timm: the same tests as timm has for its own models."""

import argparse
import copy

import pytest
import torch
import torch.nn as nn
from harness import run_python
from mmengine.utils import digit_version
from networks import NETWORKS

pytest.importorskip('timm')
import timm
from plain_net import PlainNet, temporary_variants
from uninitialized import uninitialized, zeroed

import fcvit_mm.timm as ours
from fcvit_mm import optimize_for_inference
from fcvit_mm.checkpoints import PUBLISHED, CheckpointError
from fcvit_mm.models.variants import VARIANTS, Variant, register_variant
from fcvit_mm.ops import conditions

NAMES = sorted(VARIANTS)
#: One small model per network: the variant, and the options that make it small.
SMALL = {row.variant: row.arguments for row in NETWORKS.values() if row.variant}


@pytest.fixture(params=SMALL)
def name(request) -> str:
    return request.param


def create(name, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL[name], **options})


def has_stages(model) -> bool:
    return not isinstance(model, ours.TokenClassifier)


def last_norm(model) -> nn.Module:
    return model.backbone.norm3 if has_stages(model) else model.backbone.norm


def images(size=64, batch=2, channels=3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def publish(model) -> dict:
    """Return the weights of a model with the published names."""
    head = {f'head.{key}': value for key, value in model.head.fc.state_dict().items()}
    return {**model.backbone.published_names.to_published(model.backbone.state_dict()), **head}


def assert_same_weights(model, expected) -> None:
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_every_variant_is_listed():
    assert set(NAMES) <= set(timm.list_models())
    assert set(NAMES) <= set(timm.list_models(module='timm'))
    pretrained = set(NAMES) & {name.partition('.')[0] for name in timm.list_models(pretrained=True)}
    assert pretrained == {row.name for row in PUBLISHED.values() if row.task == 'classifier' and row.address}
    assert all(timm.is_model(name) for name in NAMES)


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_default_cfg_agrees_with_the_config(name):
    with uninitialized():
        model = timm.create_model(name)
    cfg, state_dict = model.default_cfg, model.state_dict()
    assert cfg['classifier'] + '.weight' in state_dict and cfg['first_conv'] + '.weight' in state_dict
    assert cfg['architecture'] == name and cfg['num_classes'] == model.num_classes == 1000
    assert model.get_classifier().weight.shape == (1000, model.num_features)
    # The test pipeline of the config with the same name resizes to the same size.
    crop = {'fcvit_tiny': 248, 'fcvit_b12': 248, 'fcvit_b24': 235, 'fcvit_b48': 235}.get(name, 256)
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    assert transform.transforms[0].size == crop and str(transform.transforms[0].interpolation).endswith('BICUBIC')
    assert data['mean'] == timm.data.IMAGENET_DEFAULT_MEAN and transform.transforms[1].size == (224, 224)
    if name.startswith('fcvit'):  # ten times slower on the meta device
        model = zeroed(model)
    features = model.eval().forward_features(torch.zeros(1, 3, 224, 224, device=model.get_classifier().weight.device))
    assert model.forward_head(features).shape == (1, 1000)
    assert features.shape[2:] == cfg['pool_size'] if has_stages(model) else features.shape[1] == 1 + 14**2


@pytest.mark.parametrize(
    'name, expected',
    [
        ('attnscale_vit_small_12', 22_050_736),
        ('featscale_vit_small_12', 22_059_880),
        ('fcvit_b12', 14_701_832),
        ('attnscale_swin_small', 49_606_540),
        ('featscale_cait_s24', 46_934_632),
        ('dwnet_tiny', 24_172_744),
    ],
)
def test_number_of_parameters(name, expected):
    with uninitialized():
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_backward_reaches_every_parameter(name):
    model = create(name, num_classes=42, drop_path_rate=0.1, drop_rate=0.1).train()
    outputs = model(images())
    assert outputs.shape == (2, 42)
    outputs.square().mean().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@torch.no_grad()
def test_classifier_can_be_reset(name):
    model = create(name).eval()
    features = model.forward_features(images())
    assert features.shape == ((2, model.num_features, 2, 2) if has_stages(model) else (2, 1 + 4**2, model.num_features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model(images()).equal(model.forward_head(features))
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(images()), pooled)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), features)
    model.reset_classifier(3, 'max' if has_stages(model) else 'avg')
    assert model(images()).shape == (2, 3)
    assert create(name, num_classes=0).eval()(images()).shape == (2, model.num_features)


@torch.no_grad()
def test_head_can_be_replaced(name):
    """For example by an Identity."""
    model = create(name).eval()
    model.head = nn.Identity()
    assert torch.equal(model(images()), model.forward_features(images()))


@torch.no_grad()
def test_features_only(name):
    model = create(name, features_only=True).eval()
    assert model.feature_info.reduction() == ([4, 8, 16, 32] if has_stages(model.model) else [16, 16, 16])
    outputs = model(images(96))
    for output, channels, stride in zip(outputs, model.feature_info.channels(), model.feature_info.reduction()):
        assert output.shape == (2, channels, 96 // stride, 96 // stride)
        assert output.isfinite().all() and output.is_contiguous()
    few = create(name, features_only=True, out_indices=(0, -2)).eval()
    assert few.feature_info.channels() == [model.feature_info.channels()[i] for i in (0, -2)]
    for a, b in zip(few(images(96)), (outputs[0], outputs[-2])):
        torch.testing.assert_close(a, b)
    assert sum(p.numel() for p in few.parameters()) < sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_forward_intermediates(name):
    model = create(name).eval()
    final, every = model.forward_intermediates(images())
    torch.testing.assert_close(final, model.forward_features(images()))
    assert [x.shape[1] for x in every] == [info['num_chs'] for info in model.feature_info]
    (last,) = model.forward_intermediates(images(), indices=1, norm=True, intermediates_only=True)
    # Maps do not contain the class token.
    torch.testing.assert_close(
        last if has_stages(model) else last.flatten(2).transpose(1, 2), final if has_stages(model) else final[:, 1:]
    )
    early = model.forward_intermediates(images(), indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], every[1])
    with pytest.raises(ValueError, match="output_fmt is 'NHWC', expected NCHW"):
        model.forward_intermediates(images(), output_fmt='NHWC')


@torch.no_grad()
@pytest.mark.parametrize('name', ['attnscale_vit_small_12', 'featscale_cait_xxs24'])
@pytest.mark.parametrize('norm', [False, True])
def test_forward_intermediates_as_tokens(name, norm):
    """In both formats of timm's transformers, with the class token if the blocks have one."""
    model = create(name).eval()
    maps = model.forward_intermediates(images(), 2, norm=norm, intermediates_only=True)
    final, tokens = model.forward_intermediates(images(), 2, norm=norm, output_fmt='NLC')
    assert torch.equal(final, model.forward_features(images()))
    assert all(torch.equal(a.flatten(2).mT, b) for a, b in zip(maps, tokens))
    assert all(torch.equal(a, b) for a, b in zip(model.get_intermediate_layers(images(), 2, norm=norm), tokens))
    for reshape, expected in ((True, maps), (False, tokens)):
        pairs = model.get_intermediate_layers(images(), 2, reshape, return_prefix_tokens=True, norm=norm)
        if 'cait' in name:
            assert all(torch.equal(a, b) for a, b in zip(pairs, expected))
            continue
        assert all(torch.equal(a, b) for (a, _), b in zip(pairs, expected))
        assert torch.equal(pairs[-1][1], final[:, :1]) == norm and pairs[-1][1].shape == final[:, :1].shape


@torch.no_grad()
@pytest.mark.parametrize('assign', [False, True])
def test_load_state_dict_into_a_model_on_the_meta_device(name, assign):
    """After `to_empty`, or with `assign=True`."""
    model = create(name, num_classes=3).eval()
    with torch.device('meta'):
        other = create(name, num_classes=3).eval()
    if not assign:
        other.to_empty(device='cpu')
        for buffer in other.buffers():
            buffer.zero_()
    other.load_state_dict(model.state_dict(), assign=assign)
    assert not [key for key, value in (*other.named_parameters(), *other.named_buffers()) if value.is_meta]
    assert torch.equal(other(images()), model(images()))


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_optimized_models_in_half_precision(name, dtype, monkeypatch):
    """On CPUs that compute in float32 instead, also with methods that do not call the backbone."""
    if dtype == torch.float16 and digit_version(torch.__version__) < digit_version('2.4'):
        pytest.skip('float16 on CPUs came with torch 2.4')
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: dtype not in conditions.HALF)
    model = create(name, num_classes=3).eval()
    optimized = optimize_for_inference(copy.deepcopy(model).to(dtype))
    assert next(optimized.backbone.parameters()).dtype == torch.float32

    def outputs(model, x):
        final, every = model.forward_intermediates(x)
        return [model(x), model.forward_features(x), final, *every]

    for have, want in zip(outputs(optimized, images().to(dtype)), outputs(model, images())):
        assert have.dtype == dtype
        torch.testing.assert_close(have.float(), want, rtol=0, atol=2e-2 * want.abs().max().item())


def test_all_parameters_of_features_have_gradients(name):
    model = create(name, features_only=True, out_indices=(0, 1)).train()
    sum((output * torch.randn_like(output)).sum() for output in model(images())).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


def test_prune_intermediate_layers(name):
    model = create(name)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.backbone.stages if has_stages(model) else model.backbone.stages[0].blocks) == 2
    final, _ = model.forward_intermediates(images(), [1])
    assert final.isfinite().all() and torch.equal(model(images()), final)
    assert model.num_features == model.feature_info[1]['num_chs']
    (only,) = model.forward_intermediates(images(), [1], intermediates_only=True)
    assert only.shape[1] == model.num_features


@torch.no_grad()
def test_other_numbers_of_input_channels(name):
    assert create(name, in_chans=5).eval()(images(channels=5)).shape == (2, 1000)


def test_device_and_type_at_construction(name):
    model = create(name, device='meta', dtype=torch.float64, num_classes=3)
    assert {(each.device.type, each.dtype) for each in model.parameters()} == {('meta', torch.float64)}
    model.reset_classifier(4)
    assert model.get_classifier().weight.is_meta and model.get_classifier().weight.dtype == torch.float64
    features = create(name, features_only=True, device='meta')
    assert all(output.is_meta for output in features(images().to('meta')))


@pytest.mark.parametrize('size', [64, (64, 96)])
def test_img_size(name, size):
    """Networks with position embeddings need it; the others refuse it."""
    if not has_stages(create(name)):
        height, width = (size, size) if isinstance(size, int) else size
        with torch.no_grad():
            assert create(name, img_size=size).eval()(torch.randn(1, 3, height, width)).shape == (1, 1000)
        return
    with pytest.raises(ValueError, match=r'img_size=.*: \w+ takes images of any size: omit img_size'):
        create(name, img_size=size)


def test_gradient_checkpointing(name):
    gradients = []
    for enable in (False, True):
        model = create(name, num_classes=3)
        model.set_grad_checkpointing(enable)
        assert all(stage.with_cp == enable for stage in model.backbone.stages)
        model.train()(images()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('coarse', [False, True])
def test_group_matcher(name, coarse):
    model = create(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert set(groups) == {key for key, _ in model.named_parameters()}
    assert groups['backbone.stem.proj.weight'] == 0
    last = groups['head.fc.weight']
    assert last == max(groups.values())
    assert last > sum(len(stage.blocks) for stage in model.backbone.stages) or coarse
    order = [groups[key] for key, _ in model.named_parameters() if '.blocks.' in key]
    assert order == sorted(order)


def test_layer_decay_of_timm():
    from timm.optim import create_optimizer_v2

    model = timm.create_model('dwnet_tiny', **SMALL['dwnet_tiny'], position_size=4)
    assert model.no_weight_decay() == {'backbone.stem.pos_embed'}
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.1, layer_decay=0.5)
    of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    assert of[id(model.head.fc.weight)]['lr_scale'] == 1
    assert of[id(model.backbone.stem.proj.weight)]['lr_scale'] < 0.1
    assert of[id(model.backbone.stem.pos_embed)]['weight_decay'] == 0
    assert of[id(model.backbone.stem.proj.weight)]['weight_decay'] == 0.1


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_published_file_is_loaded(name, key, tmp_path):
    model = create(name)
    weights = {f'module.{name}': value for name, value in publish(model).items()}
    torch.save({key: weights} if key else weights, tmp_path / 'a.pth')
    torch.manual_seed(5)
    twin = timm.create_model(name, **SMALL[name], checkpoint_path=str(tmp_path / 'a.pth'))
    assert_same_weights(twin, model.state_dict())


def test_file_of_this_project_is_loaded(name, tmp_path):
    model = create(name)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'a.pth')
    twin = timm.create_model(name, **SMALL[name], checkpoint_path=str(tmp_path / 'a.pth'))
    assert_same_weights(twin, model.state_dict())


def test_weights_are_adapted_to_other_classes_and_channels(name, tmp_path):
    model = create(name)
    torch.save({'model': publish(model)}, tmp_path / 'a.pth')
    twin = create(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'a.pth')), num_classes=4, in_chans=1
    )
    assert twin(images(channels=1)).shape == (2, 4)
    assert torch.equal(last_norm(twin).weight, last_norm(model).weight)
    torch.testing.assert_close(
        twin.backbone.stem.proj.weight.detach(), model.backbone.stem.proj.weight.detach().sum(1, keepdim=True)
    )


def test_weights_are_loaded_for_features_only(name, tmp_path):
    model = create(name).eval()
    torch.save({'model': publish(model)}, tmp_path / 'a.pth')
    features = create(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'a.pth'))
    ).eval()
    with torch.no_grad():
        for a, b in zip(features(images()), model.forward_intermediates(images())[1]):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', ['attnscale_vit_small_12', 'featscale_cait_xxs24'])
def test_position_embeddings_are_resized(name, tmp_path):
    model = create(name, img_size=32)
    torch.save({'model': publish(model)}, tmp_path / 'a.pth')
    twin = create(name, img_size=64, checkpoint_path=str(tmp_path / 'a.pth')).eval()
    assert twin.backbone.stem.pos_embed.shape[1] == 16 + twin.backbone.stem.num_extra
    assert twin(images(50)).shape == (2, 1000)  # another size, no multiple of the patch size


@torch.no_grad()
def test_global_pool_of_tokens():
    model = create('attnscale_vit_small_12', num_classes=0).eval()
    tokens = model.forward_features(images())
    torch.testing.assert_close(model(images()), tokens[:, 0])
    torch.testing.assert_close(model.backbone(images())[0], tokens[:, 0])
    model.reset_classifier(0, 'avg')
    torch.testing.assert_close(model(images()), tokens[:, 1:].mean(1))
    with pytest.raises(ValueError, match="global_pool is 'max', expected 'token', 'avg'"):
        model.reset_classifier(0, 'max')


def test_published_weights_by_name(tmp_path, monkeypatch):
    model = timm.create_model('fcvit_tiny')
    torch.save({'state_dict': publish(model), 'args': argparse.Namespace(lr=1)}, tmp_path / 'fcvit_tiny.pth')
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(tmp_path))
    twin = timm.create_model('fcvit_tiny', pretrained=True)
    assert_same_weights(twin, model.state_dict())
    assert twin.pretrained_cfg['state_dict'] == {'published': 'published:fcvit_tiny'}
    other = timm.create_model('fcvit_tiny', pretrained=True, num_classes=4, in_chans=1)
    assert other.get_classifier().weight.shape == (4, 320)
    torch.testing.assert_close(
        other.backbone.stem.proj.weight.detach(), model.backbone.stem.proj.weight.detach().sum(1, keepdim=True)
    )
    features = timm.create_model('fcvit_tiny', pretrained=True, features_only=True)
    assert torch.equal(features.model.backbone.stem.proj.bias, model.backbone.stem.proj.bias)


def test_missing_published_weights_are_reported(monkeypatch, tmp_path):
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(RuntimeError, match=r'inhomogeneous_dwnet_tiny has no published weights.*checkpoint_path=FILE'):
        timm.create_model('inhomogeneous_dwnet_tiny', pretrained=True)
    with pytest.raises(CheckpointError, match=r'fcvit_b12 must be downloaded by hand: open https://drive'):
        timm.create_model('fcvit_b12', pretrained=True)


def test_files_of_other_networks_are_refused(tmp_path):
    torch.save({'conv1.weight': torch.ones(1)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='nothing in common with FCViT'):
        create('dwnet_tiny', checkpoint_path=str(tmp_path / 'a.pth'))
    torch.save(publish(create('fcvit_tiny')), tmp_path / 'a.pth')
    with pytest.raises(RuntimeError, match='Missing key'):
        create('dwnet_tiny', checkpoint_path=str(tmp_path / 'a.pth'))


@torch.no_grad()
def test_models_can_be_traced(name):
    model = create(name, exportable=True).eval()
    traced = torch.jit.trace(model, images(), check_trace=False)  # checked below
    torch.testing.assert_close(traced(images(batch=2)), model(images(batch=2)), rtol=1e-4, atol=1e-5)


def test_options_are_passed_to_the_network():
    model = create('fcvit_tiny', kernel_sizes=(5,))
    assert model.backbone.stages[0].blocks[0].token_mixer.mixes[0].dwconv.kernel_size == (5, 5)
    with pytest.raises(TypeError, match='kernel_size'):
        create('fcvit_tiny', kernel_size=5)


def test_variant_of_another_package(tmp_path):
    """Registered after the import of fcvit_mm.timm; the variants of this package are registered before it."""
    with temporary_variants():
        register_variant(
            Variant('plain_net', PlainNet, dict(out_indices=(1,)), 0.9, 'arXiv:0', 'Others', first_conv='stem')
        )
        assert timm.is_model('plain_net') and 'plain_net' in timm.list_models('plain_*')
        model = timm.create_model('plain_net', num_classes=3).eval()
        assert model(images()).shape == (2, 3) and model.default_cfg['crop_pct'] == 0.9
        features = timm.create_model('plain_net', features_only=True, out_indices=(0, 1))
        assert [x.shape for x in features(images())] == [(2, 8, 16, 16), (2, 16, 8, 8)]
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
        twin = timm.create_model('plain_net', num_classes=3, checkpoint_path=str(tmp_path / 'a.pth'))
        assert_same_weights(twin, model.state_dict())
        gray = timm.create_model(
            'plain_net',
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'a.pth')),
            num_classes=4,
            in_chans=1,
        )
        torch.testing.assert_close(
            gray.backbone.stem.weight.detach(), model.backbone.stem.weight.detach().sum(1, keepdim=True)
        )


def test_deprecated_name_variants():
    with pytest.warns(DeprecationWarning, match='fcvit_mm.timm.VARIANTS is deprecated .* fcvit_mm.models.variants'):
        assert ours.VARIANTS is VARIANTS
    with pytest.raises(AttributeError, match='no attribute'):
        ours.nothing  # noqa: B018


def test_fcvit_mm_can_be_imported_without_timm():
    code = """
import sys
sys.modules['timm'] = None
import fcvit_mm
fcvit_mm.DWNet('tiny')
try:
    import fcvit_mm.timm
except ImportError as error:
    print(error)
"""
    done = run_python('-c', code)
    assert 'timm is not installed' in done.stdout and '.[timm]' in done.stdout, done.stderr


@pytest.mark.parametrize('name', ['fcvit_tiny', 'attnscale_vit_small_12'])
@torch.no_grad()
def test_models_can_be_scripted_and_traced_by_fx(name):
    model = create(name, num_classes=3).eval()
    scripted, traced = torch.jit.script(model), torch.fx.symbolic_trace(model)
    for size in ((64, 64), (96, 48)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)  # in the same memory layout
    with pytest.raises(RuntimeError, match=r'only be scripted for inference: call eval\(\) first'):
        torch.jit.script(model.train())


def test_output_stride():
    model = timm.create_model('fcvit_tiny', features_only=True, output_stride=8)
    assert model.feature_info.reduction() == [4, 8, 8, 8]
    assert [tuple(y.shape[2:]) for y in model(torch.randn(1, 3, 32, 32))] == [(8, 8), (4, 4), (4, 4), (4, 4)]
    with pytest.raises(ValueError, match='output_stride=16: ViT cannot be dilated'):
        timm.create_model('attnscale_vit_small_12', output_stride=16)


@torch.no_grad()
def test_features_by_fx_agree_with_hooks():
    x, features = torch.randn(1, 3, 32, 32), []
    for kind in ('fx', 'hook'):
        torch.manual_seed(0)
        features.append(timm.create_model('fcvit_tiny', features_only=True, feature_cls=kind).eval()(x))
    assert [tuple(y.shape[1:]) for y in features[1]] == [(32, 8, 8), (64, 4, 4), (160, 2, 2), (320, 1, 1)]
    for y, reference in zip(*features):
        torch.testing.assert_close(y, reference, rtol=0, atol=0)
