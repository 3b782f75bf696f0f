"""A training step on random images finds the used outputs of the backbone and parameters without a gradient."""

import copy

import pytest
import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.logging import MessageHub
from plain_net import PlainNet

from fcvit_mm.apis import step
from fcvit_mm.apis.step import StepError, random_batch, try_step, watched_outputs, without_downloads

SMALL = dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))


def segmentor(**head):
    """Return the config of a small segmentor, whose FCN head reads the output ``in_index``."""
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(512, 512)),
                backbone=dict(type='FCViT', arch=SMALL),
                decode_head=dict(
                    dict(type='FCNHead', in_channels=24, in_index=2, channels=8, num_classes=3, num_convs=1), **head
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
        )
    )


def test_unused_outputs_and_parameters_without_gradient():
    pytest.importorskip('mmseg')
    cfg = segmentor()
    before = copy.deepcopy(cfg.to_dict())
    state = torch.get_rng_state()
    found = try_step(cfg)
    assert cfg.to_dict() == before and torch.equal(torch.get_rng_state(), state)
    assert found.channels == [8, 16, 24, 32] and found.used_channels == [None, None, 24, None]
    assert found.out_indices == (0, 1, 2, 3) and found.used_indices == (2,)
    # norms of the other outputs, and the stage after the last one that is read
    assert {name.split('.')[1] for name in found.without_gradient} == {'norm0', 'norm1', 'norm3', 'stages'}
    assert all(name.startswith('backbone.stages.3.') for name in found.without_gradient if 'stages' in name)
    assert found.losses['loss'] > 0


def test_all_parameters_have_gradients_if_all_outputs_are_used():
    pytest.importorskip('mmseg')
    cfg = segmentor()
    cfg.model.backbone.out_indices, cfg.model.decode_head.in_index = (2,), 0
    found = try_step(cfg)
    assert found.used_indices == (2,) and found.without_gradient == []


def test_component_that_fails_is_named():
    pytest.importorskip('mmseg')
    with pytest.raises(StepError, match=r'^model.decode_head \(FCNHead\): RuntimeError: .*expected input') as caught:
        try_step(segmentor(in_channels=25))
    assert caught.value.part == 'model.decode_head'
    with pytest.raises(
        StepError, match=r'^model.decode_head \(FCNHead\) cannot be built: AssertionError: assert '
    ) as caught:
        try_step(segmentor(in_index=[1, 2]))
    assert caught.value.part is None


def config_of(task, *steps):
    return Config(dict(default_scope=task, train_dataloader=dict(dataset=dict(pipeline=[*steps]))))


@pytest.mark.parametrize('task', ['mmpretrain', 'mmdet', 'mmseg'])
def test_batches_of_each_library(task):
    pytest.importorskip(task)
    batch = random_batch(Config(dict(default_scope=task)), 64, 4)
    assert [image.shape for image in batch['inputs']] == [(4, 64, 64)] * 2
    sample = batch['data_samples'][0]
    if task == 'mmdet':
        boxes = sample.gt_instances.bboxes.tensor
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    if task == 'mmseg':
        assert sample.gt_sem_seg.data.unique().tolist() == [0, 1]


def test_boxes_have_the_type_of_the_pipeline():
    boxes = pytest.importorskip('mmdet.structures.bbox')
    from mmdet.structures.bbox import box_type

    @box_type.register_box('centered', force=True)
    class CenteredBoxes(boxes.HorizontalBoxes):
        pass

    @box_type.register_box_converter('hbox', 'centered', force=True)
    def center(corners):
        return torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)

    try:
        for steps in (
            [dict(type='LoadAnnotations', box_type='centered')],
            [dict(type='LoadAnnotations'), dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='centered'))],
        ):
            sample = random_batch(config_of('mmdet', *steps), 64)['data_samples'][0]
            assert isinstance(sample.gt_instances.bboxes, CenteredBoxes)
            assert sample.gt_instances.bboxes.tensor[0].tolist() == [20, 20, 24, 24]
            assert sample.ignored_instances.bboxes.tensor.shape == (0, 4)
    finally:
        box_type.box_types.pop('centered')
        box_type._box_type_to_name.pop(CenteredBoxes)
        box_type.box_converters.pop('hbox2centered')


def test_components_are_named_as_in_the_config():
    model = dict(type='Net', roi_head=dict(type='RoI', shared_head=[dict(type='ResLayer', channels=[1, 2])]))
    for name, expected in {
        '': ('model', 'Net'),
        'roi_head.shared_head.0.layer4.1': ('model.roi_head.shared_head.0', 'ResLayer'),
        'roi_head.shared_head.0.channels.1': ('model.roi_head.shared_head.0', 'ResLayer'),
        'roi_head.other': ('model.roi_head', 'RoI'),
    }.items():
        assert step.named_in_config(model, name) == expected


@pytest.mark.parametrize(
    'steps, masks, side',
    [
        ([dict(type='LoadAnnotations', with_bbox=True)], False, None),
        ([dict(type='LoadAnnotations', with_bbox=True, with_mask=True)], True, None),
        ([dict(type='LoadPanopticAnnotations')], True, 64),
        ([dict(type='LoadAnnotations', with_seg=True), dict(type='SegRescale', scale_factor=1 / 8)], False, 8),
    ],
)
def test_ground_truth_has_what_the_pipeline_loads(steps, masks, side):
    pytest.importorskip('mmdet')
    sample = random_batch(config_of('mmdet', *steps), 64)['data_samples'][0]
    assert ('masks' in sample.gt_instances) == masks
    assert not masks or sample.gt_instances.masks.masks.any((1, 2)).all()
    assert (sample.gt_sem_seg.sem_seg.shape[-1] if 'gt_sem_seg' in sample else None) == side


@pytest.mark.parametrize(
    'steps', [['GenerateEdge'], ['LoadDepthAnnotation'], ['GenerateEdge', 'LoadDepthAnnotation'], []]
)
def test_edge_and_depth_maps_exist_if_the_pipeline_makes_them(steps):
    pytest.importorskip('mmseg')
    sample = random_batch(config_of('mmseg', *(dict(type=name) for name in steps)), 64)['data_samples'][0]
    assert ('gt_edge_map' in sample) == ('GenerateEdge' in steps)
    assert ('gt_depth_map' in sample) == ('LoadDepthAnnotation' in steps)
    for name in set(sample.keys()):
        assert getattr(sample, name).data.shape == (1, 64, 64)


def test_current_message_hub_is_restored():
    before = MessageHub.get_current_instance()
    with step.scope_of_library(config_of('mmdet')):
        assert MessageHub.get_current_instance().get_info('epoch') == 0
    assert MessageHub.get_current_instance() is before and before.get_info('epoch') is None


def test_trial_config_has_no_downloads_and_small_images():
    pretrained = dict(type='Pretrained', checkpoint='https://somewhere/net.pth')
    cfg = Config(
        dict(
            model=dict(
                pretrained='open-mmlab://resnet50',
                backbone=dict(init_cfg=pretrained),
                neck=dict(init_cfg=[dict(type='Xavier', layer='Conv2d'), pretrained]),
                data_preprocessor=dict(
                    size=(512, 1024),
                    batch_augments=[
                        dict(type='BatchResize', scale=(512, 512)),
                        dict(type='BatchSyncRandomResize', random_size_range=(480, 800)),
                    ],
                ),
                train_cfg=dict(rcnn=[dict(sampler=dict(type='RandomSampler', num=512))], rpn=dict(num=512)),
                test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=20)),
            )
        )
    )
    model = without_downloads(cfg, 64).model
    assert model.pretrained is None and model.backbone.init_cfg is None
    assert [init.type for init in model.neck.init_cfg] == ['Xavier']
    assert model.data_preprocessor == dict(
        size=(64, 64), batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(64, 64))]
    )
    assert model.train_cfg.rcnn[0].sampler.num == model.test_cfg.rpn.nms_pre == step.PROPOSALS
    assert model.train_cfg.rpn.num == 512 and model.test_cfg.rpn.max_per_img == 20
    assert without_downloads(cfg).model.train_cfg == cfg.model.train_cfg
    assert without_downloads(cfg).model.data_preprocessor == cfg.model.data_preprocessor
    assert cfg.model.backbone.init_cfg == pretrained


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_used_outputs_of_frozen_or_missing_backbones_are_unknown():
    frozen = Model(PlainNet(frozen_stages=2))
    frozen.backbone.requires_grad_(False)
    for model in (frozen, Model(None)):
        with watched_outputs(model) as outputs:
            if model.backbone is not None:
                model.backbone(torch.rand(1, 3, 32, 32))
        assert outputs == []
        assert step.observed(model, outputs, [], {}).used_indices is None


def test_outputs_used_in_any_of_several_passes():
    model = Model(PlainNet())
    with watched_outputs(model) as outputs:
        for index in (0, 1):
            model.backbone(torch.rand(2, 3, 32, 32))[index].sum().backward()
            assert [output.used for output in outputs] == [True, index == 1]
    assert [output.channels for output in outputs] == [8, 16]
    model.backbone(torch.rand(2, 3, 32, 32))
    assert len(outputs) == 2
