"""Common tests of all networks, one small instance each: the rows of ``NETWORKS`` in ``tests/networks.py``."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from networks import NETWORKS, Network, assert_all_grads, assert_same, build, images, publish, randomize_norms
from torch.nn.modules.batchnorm import _BatchNorm

import fcvit_mm
from fcvit_mm.checkpoints import convert_checkpoint, load_pretrained
from fcvit_mm.models.transformer import TokenTransformer
from fcvit_mm.ops import use_ops

SIZES = [(64, 64), (75, 61), (33, 128)]
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request) -> Network:
    return request.param


def loss_of(outputs) -> torch.Tensor:
    return sum(output.float().square().mean() for output in outputs)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_gives_a_pyramid_and_gradients(network, size):
    model = build(network, drop_path_rate=0.1).train()
    x = images(*size).requires_grad_()
    outputs = model(x)
    for output, channels, stride in zip(outputs, model.out_channels, model.out_strides):
        assert output.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    # A sum of squares would be the same whatever stands before a BatchNorm.
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    assert_all_grads(model)
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_reference_operations_agree(network):
    model = build(network).eval()
    expected = model(images(50, 70))
    with use_ops('reference'):
        assert_same(model(images(50, 70)), expected)


@torch.no_grad()
def test_optimized_outputs_agree(network):
    model = randomize_norms(build(network))
    optimized = fcvit_mm.optimize_for_inference(model, images(64, 64))
    inside = [module for name, module in optimized.named_modules() if not name.startswith('norm')]
    assert not [module for module in inside if isinstance(module, _BatchNorm)] or network.arguments.get('dynamic')
    for expected, got in zip(model(images(50, 70)), optimized(images(50, 70))):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * max(1, expected.abs().max().item()))
    assert pickle.loads(pickle.dumps(optimized))


def test_classifier_has_one_output(network):
    model = build(network, **network.classifier).train()
    (output,) = model(images(64, 64))
    (output * torch.randn_like(output)).sum().backward()
    assert output.shape[:2] == (2, model.out_channels[0]), 'a map, or a class token'
    assert_all_grads(model)


def test_weights_survive_a_round_trip(network):
    model = build(network).eval()
    twin = build(network).eval()
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    twin.load_state_dict(model.state_dict())
    x = images(40, 40)
    with torch.no_grad():
        expected = model(x)
        for other in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(other(x), expected))


@pytest.mark.parametrize('form', ['dense', 'classifier'])
def test_published_checkpoint_loads(network, form, tmp_path):
    """Directly and converted; for a network without published names, a checkpoint with its own names."""
    options = {} if form == 'dense' else network.classifier
    model = build(network, **options)
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            nn.init.normal_(value)
    published = publish(model)
    if form == 'classifier':
        width = model.out_channels[0]
        published.update({'head.weight': torch.ones(5, width), 'head.bias': torch.zeros(5)})
    torch.save({'model': published}, tmp_path / 'published.pth')
    convert_checkpoint(str(tmp_path / 'published.pth'), str(tmp_path / 'ours.pth'))
    for file in ('published.pth', 'ours.pth'):
        twin = build(network, **options)
        load_pretrained(twin, str(tmp_path / file))
        assert set(twin.state_dict()) == set(model.state_dict())
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in twin.state_dict().items()), file


def test_checkpoint_of_another_network_is_refused(network, tmp_path):
    other = next(row for row in NETWORKS.values() if row.type is not network.type)
    torch.save(publish(build(other)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=f'is a {other.type.__name__}, the backbone is a {network.type.__name__}'):
        load_pretrained(build(network), str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('form', ['all', 'list', 'number', 'negative', 'mixed', 'unordered'])
def test_out_indices(network, form):
    every = build(network)
    n = len(every.out_channels)
    out_indices, expected = {
        'all': (tuple(range(n)), tuple(range(n))),
        'list': ([n - 1], (n - 1,)),
        'number': (n - 1, (n - 1,)),
        'negative': ((-1,), (n - 1,)),
        'mixed': ((-n, n - 2), (0, n - 2)),
        'unordered': ((1, 0), (0, 1)),
    }[form]
    given = copy.copy(out_indices)
    model = build(network, out_indices=out_indices).eval()
    assert out_indices == given
    assert model.out_indices == expected
    assert model.out_channels == tuple(every.out_channels[i] for i in expected)
    assert model.out_strides == tuple(every.out_strides[i] for i in expected)
    assert [x.shape[1] for x in model(images(64, 64))] == list(model.out_channels)


def test_unused_stages_are_not_built(network):
    model = build(network, out_indices=(0, 1))
    loss_of(model(images(64, 64))).backward()
    assert_all_grads(model)


@torch.no_grad()
def test_smallest_input(network):
    outputs = build(network).eval()(images(1, 1, batch=1))
    assert {tuple(x.shape[2:]) for x in outputs} == {(1, 1)}
    assert all(x.isfinite().all() for x in outputs)


@pytest.mark.filterwarnings('ignore:.*degrees of freedom')
def test_empty_batch(network):
    assert {x.shape[0] for x in build(network).eval()(images(32, 32, batch=0))} == {0}


@torch.no_grad()
def test_images_of_a_batch_are_independent(network):
    model = build(network).eval()
    x = images(50, 70, batch=3)
    assert_same(model(x[1:2]), [output[1:2] for output in model(x)])


@torch.no_grad()
def test_channels_last_outputs_agree(network):
    model = build(network).eval()
    x = images(50, 70)
    expected = model(x)
    last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert_same(last, expected)
    # A detector's RoIAlign on CPU takes wrong values from any layout but the contiguous one, without a word.
    assert all(y.is_contiguous() for y in expected)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in last)


@pytest.mark.parametrize('dtype', HALF, ids=str)
@pytest.mark.parametrize('scale', [1, 10])
def test_autocast_trains_without_nan(network, dtype, scale):
    if dtype == torch.float16 and digit_version(torch.__version__) < digit_version('2.4'):
        pytest.skip('torch before 2.4 has no float16 autocast on CPU')
    model = build(network).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(3):
        with torch.autocast('cpu', dtype=dtype):
            loss = loss_of(model(scale * images(40, 40)))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite(), step
        assert_all_grads(model)
        optimizer.step()


@torch.no_grad()
def test_bfloat16_outputs_agree(network):
    model = build(network).eval()
    expected = model(images(64, 64))
    for actual, value in zip(model.bfloat16()(images(64, 64).bfloat16()), expected):
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - value).square().mean() < 1e-3 * value.var()


@pytest.mark.parametrize('autocast', [False, True])
def test_activation_checkpointing_changes_nothing(network, autocast):
    gradients, statistics = [], []
    for with_cp in (False, True):
        model = build(network, with_cp=with_cp, drop_path_rate=0.2).train()
        torch.manual_seed(1)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            outputs = model(images(48, 48))
        sum((x.float() * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs).backward()
        gradients.append([p.grad for p in model.parameters()])
        statistics.append(list(model.buffers()))
    assert_same(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(*statistics)), 'BatchNorm counted the recomputed batch, too'


def test_compiles_without_a_graph_break(network):
    model = build(network, out_indices=(0, 1)).train()
    # One of them also through the tracer of gradients, which takes as long again.
    backend = 'aot_eager' if network is NETWORKS['fcvit'] else 'eager'
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    outputs = compiled(images(40, 56))
    assert_same(outputs, model(images(40, 56)), atol=1e-4)
    sum(x.sum() for x in outputs).backward()
    assert_all_grads(compiled)


@pytest.mark.parametrize('frozen', ['none', 'stem', 'first', 'all'])
def test_frozen_stages_stay_frozen(network, frozen):
    frozen_stages = {'none': -1, 'stem': 0, 'first': 1, 'all': len(build(network).freezable_parts())}[frozen]
    model = build(network, frozen_stages=frozen_stages)
    model.train()
    modules = [model.stem, *model.freezable_parts()[:frozen_stages]] if frozen_stages >= 0 else []
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    assert all(parameter.requires_grad == (id(parameter) not in inside) for parameter in model.parameters())
    assert not any(module.training for part in modules for module in part.modules())
    before = {id(value): value.clone() for value in (*model.parameters(), *model.buffers())}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum((x * torch.randn_like(x)).sum() for x in model(images(64, 64))).backward()
    assert_all_grads(model)
    optimizer.step()
    for part in modules:
        assert all(torch.equal(value, before[id(value)]) for value in (*part.parameters(), *part.buffers()))
    last = getattr(model, f'norm{model.out_indices[-1]}').weight
    assert not torch.equal(last, before[id(last)])


def test_norm_eval_keeps_the_running_statistics(network):
    for norm_eval in (True, False):
        model = build(network, norm_eval=norm_eval).train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        model(images(64, 64))
        assert all(
            torch.equal(value, before[name]) == norm_eval
            for name, value in model.named_buffers()
            if name.endswith('running_mean')
        )


@torch.no_grad()
def test_sync_batchnorm_conversion_and_back(network):
    model = build(network).eval()
    expected = model(images(64, 64))
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == norms
    assert_same(revert_sync_batchnorm(synced).eval()(images(64, 64)), expected)


def test_exponential_moving_average(network):
    model = build(network)
    ema = ExponentialMovingAverage(model, momentum=0.5)
    ema.update_parameters(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update_parameters(model)
    for averaged, value in zip(ema.module.parameters(), before):
        torch.testing.assert_close(averaged.detach(), value + 0.5)


def test_layers_for_learning_rate_decay_ascend(network):
    model = build(network)
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    (layers,), found = {count for _, count in depths.values()}, [depth for depth, _ in depths.values()]
    assert sorted(set(found)) == list(range(layers))
    assert found == sorted(found), 'parameters in the order of the forward pass'
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (layers - 1, layers)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg', 'mmengine'])
@pytest.mark.parametrize('package', [False, True])
def test_found_by_name_from_every_scope(network, scope, package):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    prefix = network.type.__module__.partition('.')[0] + '.' if package else ''
    cfg = dict(network.arguments, type=prefix + network.type.__name__, _scope_=scope)
    assert isinstance(MODELS.build(cfg), network.type)


def test_bad_options(network):
    model = build(network)
    n, parts = len(model.out_channels), len(model.freezable_parts())
    for options, error, words in (
        (dict(out_indices=(0, n)), ValueError, [f'out_indices has {n}', f'{-n} to {n - 1}']),
        (dict(out_indices=-n - 1), ValueError, [f'out_indices has {-n - 1}', f'{-n} to {n - 1}']),
        (dict(out_indices=(n - 1, -1)), ValueError, ['twice']),
        (dict(out_indices=()), ValueError, ['empty']),
        (dict(out_indices=(1.5,)), TypeError, ['integers', '1.5']),
        (dict(frozen_stages=-2), ValueError, ['frozen_stages is -2', '-1 (none)']),
        (dict(frozen_stages=parts + 1), ValueError, [f'frozen_stages is {parts + 1}', f'up to {parts}']),
        (dict(depth=50), TypeError, ['depth']),
    ):
        with pytest.raises(error) as caught:
            build(network, **options)
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    'x, error, words',
    [
        (torch.randn(3, 64, 64), ValueError, ['(B, 3, H, W)', '3 dimensions', 'image[None]']),
        (torch.randn(1, 4, 64, 64), ValueError, ['got 4 channels', 'expected 3', 'in_channels=4']),
        (torch.randn(1, 3, 0, 64), ValueError, ['at least 1x1', '0x64']),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, ['floating-point', 'torch.uint8']),
        ([1, 2], TypeError, ['floating-point', 'list']),
    ],
)
def test_bad_input(network, x, error, words):
    with pytest.raises(error) as caught:
        build(network)(x)
    for word in words:
        assert word in str(caught.value)


@torch.no_grad()
def test_traced_network_accepts_any_size(network):
    model = build(network).eval()
    traced = torch.jit.trace(model, images(64, 48), check_trace=False)
    for x in (images(41, 70), images(96, 33, batch=1)):
        assert_same(traced(x), model(x), atol=1e-4)


def test_timm_features_have_the_stages_channels_and_strides(network):
    """In training mode, and in the layout of the images."""
    timm = pytest.importorskip('fcvit_mm.timm')
    backbone = build(network, **network.classifier)
    kind = timm.TokenClassifier if isinstance(backbone, TokenTransformer) else timm.Classifier
    model = kind(backbone, 5, 3, kind.default_pool, 0.0).train()
    x = images(64, 64)
    for layout in (torch.contiguous_format, torch.channels_last):
        final, features = model.forward_intermediates(x.contiguous(memory_format=layout))
        assert [feature.shape[1] for feature in features] == [info['num_chs'] for info in model.feature_info]
        assert all(64 // feature.shape[2] == info['reduction'] for feature, info in zip(features, model.feature_info))
        assert all(feature.is_contiguous(memory_format=layout) for feature in features)
    model.eval()
    assert torch.equal(model(x), model.forward_head(model.forward_features(x)))
