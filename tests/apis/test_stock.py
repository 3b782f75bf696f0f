"""Replacing the backbone of stock configs: everything that depends on it is adapted, or the error names it."""

import pytest
import torch
from mmengine.config import Config
from plain_net import temporary_variants

from fcvit_mm import FCViT
from fcvit_mm.apis import step
from fcvit_mm.apis.config_changes import differences, fragment
from fcvit_mm.apis.rewiring import StockConfigError, channel_mismatches
from fcvit_mm.apis.stock import NORMALIZATION, describe_backbone, find_stock, read_stock, replace_backbone
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import VARIANTS, Variant, register_variant

OURS = (8, 16, 24, 32)


@pytest.fixture(scope='module', autouse=True)
def small():
    """A variant of FCViT with few channels, to save time."""
    arch = dict(depths=(1, 1, 1, 1), channels=OURS, mlp_ratios=(1, 1, 1, 1))
    with temporary_variants():
        yield register_variant(
            Variant(
                'fcvit_small',
                FCViT,
                dict(arch=arch, out_indices=(3,), layer_scale_init_value=1e-5),
                crop=0.9,
                paper='arXiv:0',
                collection='FCViT',
                dense=dict(layer_scale_init_value=1e-6),
            )
        )


def test_retinanet(tmp_path):
    """FPN starts at level 1, so the first output is removed. The child config and the complete config agree."""
    pytest.importorskip('mmdet')
    stock = read_stock('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    before = stock.to_dict()
    cfg = replace_backbone(stock, 'fcvit_small', 'weights.pth', dict(drop_path_rate=0.1))
    assert stock.to_dict() == before
    backbone = cfg.model.backbone
    assert backbone.type == 'FCViT' and backbone.out_indices == (1, 2, 3) and backbone.drop_path_rate == 0.1
    assert 'depth' not in backbone and 'output_stride' not in backbone and backbone.layer_scale_init_value == 1e-6
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='weights.pth')
    assert cfg.model.neck.in_channels == [16, 24, 32] and cfg.model.neck.start_level == 0
    assert cfg.model.neck.num_outs == 5 and cfg.model.neck.add_extra_convs == 'on_input'
    assert cfg.model.bbox_head == stock.model.bbox_head and cfg.optim_wrapper == stock.optim_wrapper
    assert cfg.custom_imports.imports == ['fcvit_mm']

    own = tmp_path / 'own.py'
    own.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n" + fragment(stock, cfg))
    complete = tmp_path / 'complete.py'
    complete.write_text(cfg.pretty_text)
    for path in (own, complete):
        read = Config.fromfile(path)
        found = dict(differences(cfg.to_dict(), read.to_dict()))
        assert not {
            name for name in found if not name.endswith('_scope_')
        }  # MMEngine adds _scope_ to dicts of a base config


def test_dilated_pspnet():
    """Dilation becomes output_stride; unused outputs are removed, and in_index is adapted."""
    pytest.importorskip('mmseg')
    cfg = replace_backbone('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'fcvit_small')
    assert cfg.model.pretrained is None and cfg.model.backbone.output_stride == 8
    assert cfg.model.backbone.out_indices == (2, 3) and cfg.model.backbone.get('init_cfg') is None
    assert (cfg.model.decode_head.in_index, cfg.model.decode_head.in_channels) == (1, 32)
    assert (cfg.model.auxiliary_head.in_index, cfg.model.auxiliary_head.in_channels) == (0, 24)


@pytest.mark.parametrize(
    'name, part',
    [
        ('faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco', r'model\.roi_head\.shared_head \(ResLayer\)'),
        ('ssd/ssd300_coco', r'model\.neck \(SSDNeck\) cannot be built: AssertionError: assert '),
    ],
)
def test_incompatible_component_is_named(name, part, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(step, 'SIZES', (64,))
    with pytest.raises(StockConfigError, match=rf'{name.split("/")[1]}.*{part}.*Take another config'):
        replace_backbone(f'mmdet::{name}', 'fcvit_small')


def test_wrapped_model():
    """The detector in SoftTeacher; both data preprocessors get the same normalization."""
    pytest.importorskip('mmdet')
    stock = read_stock('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco')
    model = replace_backbone(stock, 'fcvit_small').model
    assert model.type == 'SoftTeacher' and model.semi_train_cfg == stock.model.semi_train_cfg
    assert model.detector.backbone.type == 'FCViT' and model.detector.neck.in_channels == list(OURS)
    for preprocessor in (model.data_preprocessor.data_preprocessor, model.detector.data_preprocessor):
        assert preprocessor.mean == NORMALIZATION['mean'] and preprocessor.bgr_to_rgb
    assert model.data_preprocessor.type == 'MultiBranchDataPreprocessor' and 'mean' not in model.data_preprocessor


def test_student_given_by_cfg_path():
    """As in MMRazor. The teacher is not changed."""
    pytest.importorskip('mmdet')
    teacher = dict(cfg_path='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py', pretrained=True)
    student = dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', pretrained=False)
    model = dict(type='mmdet.SoftTeacher', architecture=student, teacher=teacher)
    stock = Config(dict(default_scope='mmdet', model=model))
    cfg = replace_backbone(stock, 'fcvit_small')
    assert cfg.model.architecture.backbone.type == 'FCViT' and cfg.model.architecture._scope_ == 'mmdet'
    assert cfg.model.teacher == teacher and cfg.model.type == 'mmdet.SoftTeacher'
    assert '_delete_=True' in fragment(stock, cfg) and 'cfg_path' not in fragment(stock, cfg)


def test_unknown_configs_networks_and_options(tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    with pytest.raises(StockConfigError, match='tood/tood is not a config of the installed mmdet; tood has .*tood_r50'):
        find_stock('mmdet::tood/tood')
    with pytest.raises(StockConfigError, match='its folders are in'):
        find_stock('mmdet::nothing/at_all')
    with pytest.raises(StockConfigError, match='config is mmdetection.*, expected a name that begins with mmdet::'):
        find_stock('mmdetection::tood/tood')
    with pytest.raises(StockConfigError, match='missing.py does not exist'):
        read_stock(str(tmp_path / 'missing.py'))
    with pytest.raises(
        StockConfigError, match="default_scope='mmpretrain', expected one of .* set model.backbone=dict"
    ):
        read_stock('mmpretrain::resnet/resnet18_8xb32_in1k')
    with pytest.raises(UserError, match="unknown network 'fcvit_b13', expected one of fcvit_tiny"):
        replace_backbone('mmdet::tood/tood_r50_fpn_1x_coco', 'fcvit_b13')
    with pytest.raises(UserError, match="cannot be built with .*unexpected keyword argument 'depth'. Correct or omit"):
        replace_backbone('mmdet::tood/tood_r50_fpn_1x_coco', 'fcvit_small', options=dict(depth=50))
    with pytest.raises(UserError, match='fcvit_small cannot be built with .*frozen_stages is 9, expected -1'):
        replace_backbone('mmdet::tood/tood_r50_fpn_1x_coco', 'fcvit_small', options=dict(frozen_stages=9))
    with pytest.raises(
        UserError,
        match='options contains init_cfg, out_indices, which are set automatically .out_indices from the inputs',
    ):
        options = dict(init_cfg=None, out_indices=(0, 1))
        replace_backbone('mmdet::tood/tood_r50_fpn_1x_coco', 'fcvit_small', options=options)


def test_unsupported_strides():
    pytest.importorskip('mmdet')
    cfg = read_stock('mmdet::retinanet/retinanet_r50_fpn_1x_coco')
    cfg.model.backbone.strides = (2, 2, 2, 2)
    with pytest.raises(
        StockConfigError, match=r'\(ResNet\) returns feature maps with strides \[8, 16, 32, 64\], fcvit_small'
    ):
        replace_backbone(cfg, 'fcvit_small')
    cfg.model.backbone.depth = 51
    with pytest.raises(StockConfigError, match=r'model\.backbone \(ResNet\), which is to be replaced, cannot be run'):
        replace_backbone(cfg, 'fcvit_small')


def test_dense_options_give_four_outputs():
    """With their options for dense tasks, all networks return maps of strides 4 to 32."""
    pytest.importorskip('timm')
    for variant in {variant.network: variant for variant in reversed(VARIANTS.values())}.values():
        options = {**variant.options, **variant.dense}
        options.pop('out_indices', None)
        with torch.device('meta'):
            network = variant.network(**options)
        assert network.out_strides == (4, 8, 16, 32), variant.name


def test_layer_decay_weights_and_normalization_are_replaced():
    pytest.importorskip('mmdet')
    cfg = read_stock('mmdet::retinanet/retinanet_r50_fpn_1x_coco')
    cfg.load_from = 'https://somewhere/detector.pth'
    cfg.custom_imports = dict(imports='mmdet.models', allow_failed_imports=True)
    cfg.optim_wrapper.update(
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise', num_layers=12, norm_decay_mult=0.0),
    )
    cfg.model.data_preprocessor.update(mean=[103.53, 116.28, 123.675], std=[1, 1, 1], bgr_to_rgb=False)
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='https://somewhere/detector.pth')
    new = replace_backbone(cfg, 'fcvit_small')
    assert new.load_from is None and new.model.init_cfg is None
    assert new.custom_imports == dict(imports=['mmdet.models', 'fcvit_mm'], allow_failed_imports=False)
    assert new.optim_wrapper.constructor == 'BackboneLayerDecayConstructor'
    assert new.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.8, norm_decay_mult=0.0)
    preprocessor = new.model.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53] and preprocessor.bgr_to_rgb
    assert preprocessor.std == [58.395, 57.12, 57.375]


def other_config(neck='OtherNeck', **options):
    """Return a config of a library built on mmdet, whose neck and head multiply their channels by widen_factor."""
    return Config(
        dict(
            default_scope='otherlab',
            train_dataloader=dict(collate_fn=dict(type='stack_samples')),
            model=dict(
                type='OtherDetector',
                data_preprocessor=dict(type='OtherPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
                backbone=dict(type='mmdet.CSPDarknet', widen_factor=0.375, deepen_factor=0.33),
                neck=dict(type=neck, in_channels=[256, 512, 1024], widen_factor=0.375, **options),
                bbox_head=dict(type='OtherHead', head_module=dict(in_channels=[256, 512, 1024], widen_factor=0.375)),
            ),
        )
    )


@pytest.mark.parametrize('neck', [dict(), dict(neck='AddingNeck', out_channels=[256, 512, 1024])])
def test_channels_multiplied_by_widen_factor(neck):
    """Also with its own data loader and preprocessor, and modules whose train() returns None."""
    pytest.importorskip('mmdet')
    model = replace_backbone(other_config(**neck), 'fcvit_small').model
    expected = [16 / 0.375, 64, 32 / 0.375]
    assert model.backbone.type == 'FCViT' and model.backbone.out_indices == (1, 2, 3)
    assert model.neck.in_channels == model.bbox_head.head_module.in_channels == expected
    assert not neck or model.neck.out_channels == expected
    assert not list(channel_mismatches(model, OURS[1:]))
    assert [each.expected for each in channel_mismatches(model, (16, 24, 48))] == [[16 / 0.375, 64, 128]]


def pose_config(**options):
    head, backbone = dict(in_channels=24), dict(type='OtherBackbone', **options.pop('backbone', {}))
    return Config(dict(default_scope='otherlab', model=dict(type='OtherPose', backbone=backbone, head=head, **options)))


@pytest.mark.parametrize('options', [dict(), dict(takes='clips'), dict(size=(3, 2), input_size=(64, 96))])
def test_model_of_another_library(options):
    """Its ground truth is unknown: it is run with mode='tensor', on inputs in the format and size that it accepts."""
    pytest.importorskip('mmdet')
    model = replace_backbone(pose_config(**options), 'fcvit_small').model
    assert model.backbone.type == 'FCViT' and model.backbone.out_indices == (3,)  # the other output is not used
    assert model.head.in_channels == OURS[3]


def test_backbone_that_returns_a_tensor():
    """As in MMAction2, whose recognizers unpack the outputs of backbones of mmpretrain."""
    pytest.importorskip('mmpretrain')
    cfg = pose_config(backbone=dict(strides=(32,), channels=(24,), bare=True), takes='clips', unpacks='mmpretrain.')
    cfg.model.data_preprocessor = dict(type='OtherPreprocessor', mean=[0.0] * 3, std=[255.0] * 3)
    model = replace_backbone(cfg, 'fcvit_small').model
    assert model.backbone.type == 'mmpretrain.FCViT' and model.backbone.out_indices == (3,)
    assert model.head.in_channels == OURS[3] and model.data_preprocessor.bgr_to_rgb
    cfg.model.unpacks = 'nothing'
    with pytest.raises(StockConfigError, match='one map, this network a tuple of maps, which does not fit: '):
        replace_backbone(cfg, 'fcvit_small')


def test_preprocessor_without_channel_conversion():
    """As in MMAction2, which reads videos as RGB."""
    pytest.importorskip('mmdet')
    cfg = pose_config()
    cfg.model.data_preprocessor = dict(type='PlainPreprocessor', mean=[0.0] * 3, std=[255.0] * 3)
    assert replace_backbone(cfg, 'fcvit_small').model.data_preprocessor == dict(
        type='PlainPreprocessor', mean=NORMALIZATION['mean'], std=NORMALIZATION['std']
    )


def test_backbone_that_mixes_frames_is_refused():
    pytest.importorskip('mmdet')
    with pytest.raises(StockConfigError, match=r'\(OtherBackbone\) mixes the frames .* \(num_segments=8\)'):
        replace_backbone(pose_config(backbone=dict(num_segments=8)), 'fcvit_small')


def test_backbone_without_the_later_strides_is_refused():
    """For example HRNet in MMPose, whose only output has stride 4: only one stage of the network would be used."""
    pytest.importorskip('mmdet')
    with pytest.raises(
        StockConfigError,
        match=r'OtherBackbone\) returns feature maps with strides \[8\], which fcvit_small has up to stage 2 of 4, so '
        'that the later stages would be unused. Take another config',
    ):
        replace_backbone(pose_config(backbone=dict(strides=(8,), channels=(24,))), 'fcvit_small')


def test_backbone_that_requires_the_key_pretrained():
    """For example TransNeXt, which pops it from its keyword arguments."""

    class Asking(torch.nn.Conv2d):
        def __init__(self, **options):
            assert options['pretrained'] is options['init_cfg'] is None
            super().__init__(3, 8, 4, stride=4)

        def forward(self, x):
            return (super().forward(x),)

    options = dict(type=Asking, pretrained='somewhere.pth', init_cfg=dict(type='Pretrained', checkpoint='a.pth'))
    found = describe_backbone(Config(dict(default_scope='mmdet', model=dict(backbone=options))))
    assert found.outputs == [(8, 4)] and not found.dilated


def test_files_are_read_as_by_the_other_commands(tmp_path):
    """A pure-Python config inherits no default_scope; of other files the problem is named."""
    pytest.importorskip('mmdet')
    path = tmp_path / 'mine.py'
    base = tmp_path / 'base.py'
    base.write_text("model = dict(type='RetinaNet', backbone=dict(type='ResNet', depth=18))\n")
    path.write_text(
        'from mmdet.models import RetinaNet\nfrom mmengine.config import read_base\n\nwith read_base():\n'
        '    from .base import *\nmodel.update(type=RetinaNet)\n'
    )
    assert read_stock(str(path)).default_scope == 'mmdet'
    for text, problem in {
        "_base_ = './gone.py'": 'inherits from .*gone.py, which does not exist',
        "custom_imports = dict(imports=['module_that_nobody_has'])": "there is no module 'module_that_nobody_has'",
        'data = dict()\noptimizer = dict()': 'is a config of OpenMMLab 1.x',
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=f'mine.py:? .*{problem}'):
            read_stock(str(path))


@pytest.mark.parametrize(
    'change',
    [dict(backbone=dict(type='NobodysNet')), dict(neck=dict(type='NobodysNeck')), dict(type='NobodysDetector')],
)
def test_types_of_ones_own_that_the_config_does_not_import(change):
    pytest.importorskip('mmdet')
    cfg = read_stock('mmdet::retinanet/retinanet_r50_fpn_1x_coco')
    cfg.merge_from_dict(dict(model=change))
    with pytest.raises(UserError, match=r'Nobodys\w+ is not in .*, or let the config import the module that registers'):
        replace_backbone(cfg, 'fcvit_small')
