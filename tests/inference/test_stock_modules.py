"""Optimized necks, heads and backbones of the libraries give the same detections and segmentations."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from detectors import DETECTORS, build_detector, drawn_image
from torch.nn.utils import parametrizations, prune

import fcvit_mm
from fcvit_mm.inference import roi_align, stock_modules, winograd
from fcvit_mm.inference.roi_align import RoIAlign
from fcvit_mm.inference.winograd import WinogradConv2d
from fcvit_mm.models import layers
from fcvit_mm.ops import native

SIZE = (64, 96)
RESNET = dict(
    type='ResNet', depth=18, base_channels=4, num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1)
)
SMALL_RESNET = dict(backbone=RESNET, neck=dict(type='FPN', in_channels=[4, 8], out_channels=8, num_outs=2))


@pytest.fixture
def any_layer_size(monkeypatch):
    """Use tiles for convolutions and the compiled kernels (if there are any) for linear layers of any size."""
    monkeypatch.setattr(stock_modules, 'MANY_WEIGHTS', 1)
    monkeypatch.setattr(layers.Linear, 'is_faster', lambda self, x: native.available())
    for name in ('MIN_TILES', 'MIN_CHANNELS', 'MIN_TILES_NATIVE', 'MIN_CHANNELS_NATIVE'):
        monkeypatch.setattr(winograd, name, 1)


def detector(name, **changes):
    """Build a detector with many detections, whose boxes do not amplify small differences."""
    if 'rcnn' in name:
        changes = dict(changes, test_cfg__rcnn__score_thr=0.05, test_cfg__rpn__max_per_img=200)
    model = randomize_norms(build_detector(name, **changes))
    for name, parameter in model.named_parameters():
        if '_reg' in name and parameter.ndim > 1:
            parameter.data.mul_(0.02)
    return model


def randomize_norms(model):
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model.eval()
    return model


@torch.no_grad()
def detect(model, seeds=(0, 1, 2)):
    from mmdet.structures import DetDataSample

    images = [drawn_image(*SIZE, seed) for seed in seeds]
    meta = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0), batch_input_shape=SIZE)
    data = dict(
        inputs=[torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images],
        data_samples=[DetDataSample(metainfo=dict(meta)) for _ in images],
    )
    return [sample.pred_instances for sample in model.test_step(data)]


def assert_same(got, expected):
    """Compare boxes relative to the side of the image, scores, labels and masks."""
    assert sum(map(len, expected)) > 0
    for have, want in zip(got, expected):
        assert torch.equal(have.labels, want.labels)
        torch.testing.assert_close(have.scores, want.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(have.bboxes, want.bboxes, rtol=1e-4, atol=1e-4 * max(SIZE))
        if 'masks' in want:
            assert (have.masks != want.masks).sum() <= 1e-4 * want.masks.numel()
    assert 'masks' not in expected[0] or any(want.masks.any() for want in expected)


def norms(model):
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name, any_layer_size):
    model = detector(name)
    optimized = fcvit_mm.optimize_for_inference(model)
    assert [module for module in optimized.modules() if isinstance(module, WinogradConv2d)]
    assert_same(detect(optimized), detect(model))
    assert not [name for name in norms(optimized) if not name.startswith('backbone')]


SEGMENTORS = {
    'upernet': dict(type='UPerHead', in_index=[0, 1], in_channels=[8, 16], pool_scales=(1, 2)),
    'pspnet': dict(type='PSPHead', in_index=1, in_channels=16, pool_scales=(1, 2)),
    'fcn': dict(type='FCNHead', in_index=1, in_channels=16, num_convs=2, concat_input=True),
    'deeplabv3': dict(type='ASPPHead', in_index=1, in_channels=16, dilations=(1, 2)),
    'deeplabv3plus': dict(
        type='DepthwiseSeparableASPPHead', in_index=1, in_channels=16, dilations=(1, 2), c1_in_channels=8, c1_channels=4
    ),
    'segformer': dict(type='SegformerHead', in_index=[0, 1], in_channels=[8, 16]),
    'sem_fpn': dict(type='FPNHead', in_index=[0, 1], in_channels=[8, 16], feature_strides=[4, 8]),
}


def segmentor(name, backbone=None, norm='BN'):
    pytest.importorskip('mmseg')
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope
    from mmseg.utils import register_all_modules
    from plain_net import PlainNet

    register_all_modules(init_default_scope=False)
    head = dict(dropout_ratio=0, num_classes=5, channels=8, norm_cfg=dict(type=norm), align_corners=False)
    # DeepLabV3+ takes its first map by place.
    cfg = dict(
        type='EncoderDecoder',
        backbone=backbone or dict(type=PlainNet),
        decode_head=dict(head, **SEGMENTORS[name]),
        test_cfg=dict(mode='whole'),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(cfg))
    for parameter in model.decode_head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return randomize_norms(model)


@torch.no_grad()
def logits(model):
    torch.manual_seed(4)
    return torch.stack([sample.seg_logits.data for sample in model.predict(torch.randn(2, 3, *SIZE))])


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors(name, any_layer_size):
    model = segmentor(name)
    optimized = fcvit_mm.optimize_for_inference(model, torch.randn(1, 3, *SIZE))
    expected = logits(model)
    torch.testing.assert_close(logits(optimized), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert not [name for name in norms(optimized) if not name.startswith('backbone')]


def test_sync_batch_norms_are_fused(any_layer_size):
    """Configs of mmseg have SyncBN, whose class in mmengine differs from torch's."""
    model = segmentor('upernet', norm='SyncBN')
    optimized = fcvit_mm.optimize_for_inference(model)
    assert type(model.decode_head.fpn_bottleneck.bn).__module__.startswith('mmengine')
    assert not [name for name in norms(optimized) if not name.startswith('backbone')]
    torch.testing.assert_close(logits(optimized), logits(model), rtol=1e-4, atol=1e-4)


def test_stock_models_without_a_network_of_ours(any_layer_size):
    model = detector('mask_rcnn', **SMALL_RESNET)
    optimized = fcvit_mm.optimize_for_inference(model)
    assert norms(model) and not norms(optimized)
    assert_same(detect(optimized), detect(model))
    backbone = dict(RESNET, type='ResNetV1c', base_channels=8, depth=50, out_indices=(0, 1))
    model = segmentor('fcn', dict(backbone, stem_channels=8, base_channels=2))
    optimized = fcvit_mm.optimize_for_inference(model)
    assert norms(model) and not norms(optimized)
    torch.testing.assert_close(logits(optimized), logits(model), rtol=1e-4, atol=1e-4)


_TINY = dict(deepen_factor=0.17, widen_factor=0.125, out_indices=(2, 4))
_RESNET = dict(depth=18, base_channels=4, out_indices=(0, 3))
_RESNEXT = dict(depth=50, base_channels=4, groups=2, out_indices=(0, 3))
BACKBONES = [
    *(('mmdet', kind, _RESNET) for kind in ('ResNet', 'ResNetV1d')),
    *(('mmseg', kind, _RESNET) for kind in ('ResNet', 'ResNetV1c', 'ResNetV1d')),
    *(('mmpretrain', kind, _RESNET) for kind in ('ResNet', 'ResNetV1c', 'ResNetV1d')),
    ('mmdet', 'ResNeXt', dict(_RESNEXT, base_width=4)),
    ('mmseg', 'ResNeXt', dict(_RESNEXT, base_width=4)),
    ('mmpretrain', 'ResNeXt', dict(depth=50, groups=2, width_per_group=4, out_indices=(0, 3))),
    ('mmdet', 'CSPNeXt', _TINY),
    ('mmdet', 'CSPDarknet', _TINY),
]


@pytest.mark.parametrize('library, kind, options', BACKBONES, ids=lambda value: value if isinstance(value, str) else '')
def test_backbones_of_the_libraries(library, kind, options, any_layer_size):
    backbones = pytest.importorskip(f'{library}.models.backbones')
    torch.manual_seed(0)
    model = randomize_norms(getattr(backbones, kind)(**options))
    optimized = fcvit_mm.optimize_for_inference(model)
    assert norms(model) and not norms(optimized)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for got, expected in zip(optimized(x), model(x)):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
            assert got.is_contiguous()


def test_maps_stay_in_channels_last():
    optimized = fcvit_mm.optimize_for_inference(detector('mask_rcnn'))
    seen = []

    def look(module, args, output):
        maps = [args[0], *(output if isinstance(output, tuple) else [output])]
        seen.extend(x for x in maps if isinstance(x, torch.Tensor) and min(x.shape) > 1)

    for module in (*optimized.neck.modules(), *optimized.rpn_head.modules(), optimized.backbone):
        module.register_forward_hook(look)
    detect(optimized)
    assert len(seen) > 10 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_unknown_parts_get_contiguous_maps():
    """Operators of mmcv's compiled build, and ``view``, need contiguous memory."""
    model = detector('mask_rcnn')

    class Head(type(model.rpn_head)):
        def forward(self, x):
            assert all(each.is_contiguous() for each in x)
            return super().forward(x)

    model.rpn_head.__class__ = Head
    optimized = fcvit_mm.optimize_for_inference(model)
    assert [type(layer) for layer in optimized.rpn_head.children() if isinstance(layer, nn.Conv2d)] == [nn.Conv2d] * 3
    assert optimized.neck.fpn_convs[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(detect(optimized), detect(model))


def test_backbone_of_another_package():
    class Thin(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)

        def forward(self, x):
            assert x.is_contiguous()
            x = self.first(x).view(-1).view(len(x), 8, *(side // 4 for side in x.shape[2:]))
            return x, self.second(x)

    model = detector('mask_rcnn', backbone=dict(type=Thin))
    optimized = fcvit_mm.optimize_for_inference(model)
    assert isinstance(optimized.roi_head.bbox_roi_extractor.roi_layers[0], RoIAlign)
    assert type(optimized.backbone.first) is nn.Conv2d
    assert_same(detect(optimized), detect(model))


def test_transformer_detector_around_a_network_of_ours():
    pytest.importorskip('mmdet')
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope
    from plain_net import PlainNet

    build_detector('fcos')  # registers
    attention = dict(embed_dims=16, num_heads=2, dropout=0.0, batch_first=True)
    ffn = dict(embed_dims=16, feedforward_channels=16, num_fcs=2, ffn_drop=0.0)
    encoder = dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn))
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)
    cfg = dict(
        type='DETR',
        num_queries=6,
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type=PlainNet, out_indices=1),
        neck=dict(type='ChannelMapper', in_channels=[16], out_channels=16, kernel_size=1, act_cfg=None, num_outs=1),
        encoder=encoder,
        decoder=dict(num_layers=2, layer_cfg=layer, return_intermediate=True),
        positional_encoding=dict(num_feats=8, normalize=True),
        bbox_head=dict(type='DETRHead', num_classes=3, embed_dims=16),
        test_cfg=dict(max_per_img=6),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = randomize_norms(MODELS.build(ConfigDict(cfg)))
    assert_same(detect(fcvit_mm.optimize_for_inference(model)), detect(model))


def pruned(layer):
    prune.l1_unstructured(layer, 'weight', 0.4)


def spectral(layer):
    parametrizations.spectral_norm(layer)


def hooked(layer):
    layer.register_forward_hook(lambda module, args, output: 1.1 * output + 0.1)


@pytest.mark.parametrize('change', [pruned, spectral, hooked], ids=lambda change: change.__name__)
def test_modified_layers_are_not_fused(change, any_layer_size):
    model = detector('rtmdet')
    for module in list(model.neck.modules()) + list(model.bbox_head.modules()):
        if isinstance(module, nn.Conv2d):
            change(module)
    model.train()(torch.randn(1, 3, *SIZE))  # power iterations of spectral norms
    model.eval()
    optimized = fcvit_mm.optimize_for_inference(model)
    assert len(norms(optimized)) == len(norms(model))
    assert_same(detect(optimized), detect(model))


def test_modified_norms_are_not_fused():
    model = detector('rtmdet')
    norm = model.bbox_head.cls_convs[0][0].bn
    norm.register_forward_hook(lambda module, args, output: output.tanh())
    unlike = model.bbox_head.reg_convs[0][0].bn
    unlike.track_running_stats, unlike.running_mean, unlike.running_var = False, None, None
    optimized = fcvit_mm.optimize_for_inference(model)
    assert len([name for name in norms(optimized) if 'bbox_head' in name]) == 2
    assert_same(detect(optimized), detect(model))


def test_other_orders_and_shared_layers():
    """A convolution after its norm, and one that two norms share."""
    model = detector('rtmdet')
    first, second = (model.bbox_head.cls_convs[level][0] for level in (0, 1))
    second.conv = first.conv
    other = model.bbox_head.reg_convs[0][0]
    other.order = ('norm', 'conv', 'act')
    optimized = fcvit_mm.optimize_for_inference(model)
    assert len([name for name in norms(optimized) if 'bbox_head' in name]) == 1
    assert_same(detect(optimized), detect(model))


def test_original_model_is_not_modified(any_layer_size):
    model = detector('mask_rcnn', **SMALL_RESNET)
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    fcvit_mm.optimize_for_inference(model)
    assert [type(module) for module in model.modules()] == kinds
    for key, value in model.state_dict().items():
        assert torch.equal(before[key], value) and before[key].stride() == value.stride()


def test_twice_and_pickled(any_layer_size):
    model = detector('mask_rcnn')
    once = fcvit_mm.optimize_for_inference(model)
    expected = detect(once)
    for other in (fcvit_mm.optimize_for_inference(once), pickle.loads(pickle.dumps(once))):
        assert_same(detect(other), expected)


def test_roi_align_by_rows_is_used(monkeypatch):
    calls = []
    by_rows = roi_align.roi_align_rows
    monkeypatch.setattr(roi_align, 'roi_align_rows', lambda *args: calls.append(1) or by_rows(*args))
    detect(fcvit_mm.optimize_for_inference(detector('mask_rcnn')))
    assert calls


def test_half_precision():
    model = segmentor('upernet')
    half = copy.deepcopy(model).bfloat16()
    optimized = fcvit_mm.optimize_for_inference(half)
    x = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        expected, got = model(x), optimized(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=5e-2 * expected.abs().max().item())
