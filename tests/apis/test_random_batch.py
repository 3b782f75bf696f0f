"""Random batches have the ground truth that the training pipeline of a config loads."""

import pytest
import torch
from mmengine.config import Config

from fcvit_mm.apis.random_batch import random_batch


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
