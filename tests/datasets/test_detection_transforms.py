"""The faster transforms give the same samples as those of mmdet with the same seed."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import DefaultScope

import fcvit_mm  # noqa: F401
from fcvit_mm.datasets import NAMES, detection_transforms


@pytest.fixture(autouse=True, scope='module')
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def sample(masks=3):
    draw = np.random.RandomState(0)
    polygon = np.array([1.0, 1, 9, 2, 5, 8])
    return dict(
        img=draw.randint(0, 256, (12, 20, 3)).astype(np.uint8),
        img_shape=(12, 20),
        gt_bboxes=HorizontalBoxes(torch.tensor([[1.0, 2, 9, 8]] * 3)),
        gt_masks=PolygonMasks([[polygon]] * 3, 12, 20)
        if masks is None
        else BitmapMasks(draw.randint(0, 2, (masks, 12, 20)).astype(np.uint8), 12, 20),
    )


@pytest.mark.parametrize('masks', [3, 0, None])
@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal', ['horizontal', 'vertical']])
def test_flips_agree_with_mmdet(direction, masks):
    options = dict(prob=[0.3, 0.3] if isinstance(direction, list) else 0.5, direction=direction)
    pair = [TRANSFORMS.build(dict(type=kind, **options)) for kind in ('FastDetRandomFlip', 'RandomFlip')]
    flipped = 0
    for index in range(12):
        made = []
        for transform in pair:
            np.random.seed(index)
            made.append(transform(copy.deepcopy(sample(masks))))
        found, expected = made
        assert found.keys() == expected.keys() and found['flip_direction'] == expected['flip_direction']
        assert np.array_equal(found['img'], expected['img'])
        assert torch.equal(found['gt_bboxes'].tensor, expected['gt_bboxes'].tensor)
        assert type(found['gt_masks']) is type(expected['gt_masks'])
        assert np.array_equal(found['gt_masks'].to_ndarray(), expected['gt_masks'].to_ndarray())
        assert (found['gt_masks'].height, found['gt_masks'].width) == (12, 20)
        flipped += found['flip']
    assert 0 < flipped < 12


def test_samples_without_masks_are_flipped():
    data = sample()
    del data['gt_masks']
    found = TRANSFORMS.build(dict(type='FastDetRandomFlip', prob=1.0))(copy.deepcopy(data))
    assert np.array_equal(found['img'], data['img'][:, ::-1]) and 'gt_masks' not in found


def test_transforms_can_be_built_by_name():
    names = {name for name, (module, _) in NAMES.items() if module == 'detection_transforms'}
    assert names == {name for name in vars(detection_transforms) if name.startswith('Fast')}
