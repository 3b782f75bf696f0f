"""The faster transforms give the same images and maps as those of mmseg with the same seed."""

import cv2
import numpy as np
import pytest

pytest.importorskip('mmseg')

from mmengine.registry import DefaultScope
from mmseg.registry import TRANSFORMS

import fcvit_mm  # noqa: F401
from fcvit_mm.datasets import NAMES, segmentation_transforms


@pytest.fixture(autouse=True, scope='module')
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def sample(seed, height=60, width=80, classes=5):
    """Return an image and its segmentation map with blocks of classes, some of them ignored."""
    draw = np.random.RandomState(seed)
    colors = draw.randint(0, 256, (6, 8, 3)).astype(np.uint8)
    image = cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)
    labels = draw.choice([*range(classes), 255], (6, 8)).astype(np.uint8)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    return dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'])


def both(fast, stock, **options):
    return TRANSFORMS.build(dict(type=fast, **options)), TRANSFORMS.build(dict(type=stock, **options))


def test_photometric_distortion_agrees_with_mmseg():
    pair = both('FastPhotoMetricDistortion', 'PhotoMetricDistortion')
    changed = 0
    for index in range(80):
        data, made, states = sample(index % 7), [], []
        data['img'] = data['img'][:, :: -1 if index % 2 else 1]
        for transform in pair:
            np.random.seed(index)
            made.append(transform(dict(data, img=data['img'].copy() if transform is pair[1] else data['img']))['img'])
            states.append(np.random.get_state()[1:])
        assert np.array_equal(*made) and made[0].dtype == np.uint8
        assert all(np.array_equal(a, b) for a, b in zip(*states)), 'different random numbers'
        changed += not np.array_equal(made[0], data['img'])
    assert changed > 60


def test_all_8_bit_values_agree_with_mmseg():
    fast, stock = both('FastPhotoMetricDistortion', 'PhotoMetricDistortion')
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for alpha, beta in ((1, 31.7), (1, -32), (0.5, 0), (1.4999, 0), (1, 0)):
        assert np.array_equal(fast.convert(values, alpha, beta), stock.convert(values, alpha, beta))


def test_other_images_use_the_transform_of_mmseg():
    pair = both('FastPhotoMetricDistortion', 'PhotoMetricDistortion')
    for index in range(8):
        made = []
        for transform in pair:
            np.random.seed(index)
            made.append(transform(dict(img=sample(index)['img'].astype(np.float32) / 255))['img'])
        assert np.array_equal(*made)


@pytest.mark.parametrize('ratio, ignored, size', [(0.75, 255, 32), (0.3, 255, (20, 32)), (0.6, 2, 64), (1.0, 255, 32)])
def test_crops_agree_with_mmseg(ratio, ignored, size):
    fast, stock = both(
        'FastSegRandomCrop',
        'RandomCrop',
        crop_size=size if isinstance(size, tuple) else (size, size),
        cat_max_ratio=ratio,
        ignore_index=ignored,
    )
    for index in range(40):
        made, states = [], []
        for transform in (fast, stock):
            np.random.seed(index)
            made.append(transform(sample(index, classes=1 + index % 5)))
            states.append(np.random.get_state()[1:])
        assert all(np.array_equal(a, b) for a, b in zip(*states)), 'different random numbers'
        assert np.array_equal(made[0]['img'], made[1]['img']) and made[0]['img_shape'] == made[1]['img_shape']
        assert np.array_equal(made[0]['gt_seg_map'], made[1]['gt_seg_map'])


def test_other_maps_use_the_transform_of_mmseg():
    fast, stock = both('FastSegRandomCrop', 'RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75)
    for index in range(5):
        made = []
        for transform in (fast, stock):
            data = sample(index)
            data['gt_seg_map'] = data['gt_seg_map'].astype(np.int64) + 300
            np.random.seed(index)
            made.append(transform(data)['gt_seg_map'])
        assert np.array_equal(*made)


def test_transforms_can_be_built_by_name():
    names = {name for name, (module, _) in NAMES.items() if module == 'segmentation_transforms'}
    assert names == {name for name in vars(segmentation_transforms) if name.startswith('Fast')}
