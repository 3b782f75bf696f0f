"""The faster transforms give the same images as those of mmpretrain with the same seed."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

import mmcv
from mmengine.registry import DefaultScope
from mmpretrain.datasets import transforms as library
from mmpretrain.registry import TRANSFORMS

import fcvit_mm  # noqa: F401
from fcvit_mm.datasets import NAMES, transforms
from fcvit_mm.errors import UserError

HPARAMS = dict(pad_val=[104, 116, 124], interpolation='bicubic')
AUGMENT = dict(
    policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9, magnitude_std=0.5, hparams=HPARAMS
)
ERASING = dict(
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=[103.53, 116.28, 123.675],
    fill_std=[57.375, 57.12, 58.395],
)


@pytest.fixture(autouse=True, scope='module')
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def photograph(seed, height=64, width=80, low=0, high=255):
    """Return an image with edges and gradients and values from ``low`` to ``high``."""
    draw = np.random.RandomState(seed)
    small = draw.randint(low, high + 1, (5, 6, 3)).astype(np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = draw.normal(0, 6, image.shape)
    return np.clip(image + noise, low, high).astype(np.uint8)


#: Ordinary images, one with low contrast, and images of one value, one color and two values.
IMAGES = [photograph(seed) for seed in range(4)] + [photograph(5, low=90, high=100), photograph(6, 224, 224)]
IMAGES += [np.full((16, 16, 3), 7, np.uint8), np.full((16, 16, 3), (0, 128, 255), np.uint8)]
IMAGES += [np.where(np.arange(256).reshape(16, 16, 1) < 9, 3, 200).astype(np.uint8).repeat(3, 2)]


def seed(number):
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize('number', range(15))
def test_each_operation_agrees_with_mmpretrain(number):
    fast, stock = (
        TRANSFORMS.build(dict(type=kind, **copy.deepcopy(AUGMENT))) for kind in ('FastRandAugment', 'RandAugment')
    )
    changed = 0
    for index in range(40):
        image = IMAGES[index % len(IMAGES)]
        seed(index)
        expected = stock.transforms[number](dict(img=image.copy()))['img']
        state = np.random.get_state()[1:]
        seed(index)
        found = fast.faster[number](dict(img=image.copy()))['img']
        assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state()[1:])), 'different random numbers'
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        changed += not np.array_equal(found, image)
    assert changed > 3


def test_image_functions_agree_with_mmcv():
    for image in IMAGES:
        assert np.array_equal(transforms.auto_contrast(image), mmcv.auto_contrast(image))
        assert np.array_equal(transforms.equalize(image), mmcv.imequalize(image))
        for factor in (0.0, 0.1, 0.9, 1.0, 1.37, 1.9):
            assert np.array_equal(transforms.adjust_contrast(image, factor), mmcv.adjust_contrast(image, factor))
            assert np.array_equal(transforms.adjust_color(image, factor), mmcv.adjust_color(image, factor))
            assert np.array_equal(transforms.adjust_sharpness(image, factor), mmcv.adjust_sharpness(image, factor))


def test_rand_augment_agrees_with_mmpretrain():
    fast, stock = (
        TRANSFORMS.build(dict(type=kind, **copy.deepcopy(AUGMENT))) for kind in ('FastRandAugment', 'RandAugment')
    )
    assert len(fast.faster) == 15 and sum(isinstance(each, library.BaseAugTransform) for each in fast.faster) == 5
    for index in range(60):
        images = []
        for augment in (fast, stock):
            seed(index)
            # A flip as a view with negative strides, as mmcv makes it.
            images.append(augment(dict(img=IMAGES[index % len(IMAGES)][:, ::-1]))['img'])
        assert np.array_equal(*images)


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
@pytest.mark.parametrize('size', [(64, 80), (300, 410), (5, 7), (33, 32)])
def test_resizing_agrees_with_pillow_up_to_rounding(size, interpolation):
    image = photograph(8, *size)
    found = transforms.resize(image, 48, 40, interpolation)
    expected = mmcv.imresize(image, (40, 48), interpolation=interpolation, backend='pillow')
    difference = np.abs(found.astype(int) - expected)
    assert found.flags.c_contiguous and difference.max() <= 2 and (difference > 0).mean() < 0.02


def test_resizing_accepts_any_strides():
    image = photograph(9)
    part = image[3:50, 5:70]
    assert np.array_equal(
        transforms.resize(part, 32, 32, 'bilinear'), transforms.resize(part.copy(), 32, 32, 'bilinear')
    )
    assert np.array_equal(
        transforms.resize(part[:, ::-1], 32, 32, 'bicubic'), transforms.resize(part[:, ::-1].copy(), 32, 32, 'bicubic')
    )


def test_crops_agree_with_mmpretrain():
    options = dict(scale=32, crop_ratio_range=(0.08, 1.0))
    fast = TRANSFORMS.build(dict(type='FastRandomResizedCrop', interpolation=['bilinear', 'bicubic'], **options))
    stock = TRANSFORMS.build(
        dict(
            type='RandomChoice',
            transforms=[
                [dict(type=library.RandomResizedCrop, backend='pillow', interpolation=each, **options)]
                for each in ('bilinear', 'bicubic')
            ],
        )
    )
    differences, used = [], set()
    for index in range(60):
        image = photograph(index, 60 + index, 90)
        seed(index)
        expected = stock(dict(img=image))
        seed(index)
        found = fast(dict(img=image))
        used.add(fast.interpolation)
        assert found['img_shape'] == expected['img_shape'] == (32, 32, 3)
        differences.append(np.abs(found['img'].astype(int) - expected['img']))
    assert used == {'bilinear', 'bicubic'}
    few = 0.03 if torch.__version__ < '2.2' else 0.01
    assert np.max(differences) <= 2 and (np.array(differences) > 0).mean() < few


@pytest.mark.parametrize('interpolation', ['lanczos', [], ['bilinear', 'nearest']])
def test_unsupported_interpolation_is_refused(interpolation):
    with pytest.raises(UserError, match=r"expected one of bilinear, bicubic; RandomResizedCrop\(backend='pillow'\)"):
        transforms.FastRandomResizedCrop(32, interpolation=interpolation)


def test_other_images_use_the_transform_of_mmpretrain():
    grey = photograph(3)[..., 0]
    fast = transforms.FastRandomResizedCrop(32, interpolation='bicubic')
    stock = library.RandomResizedCrop(32, interpolation='bicubic', backend='pillow')
    seed(1)
    expected = stock(dict(img=grey))['img']
    seed(1)
    assert np.array_equal(fast(dict(img=grey))['img'], expected)
    with pytest.raises(AssertionError, match='only support uint8'):
        fast(dict(img=photograph(3).astype(np.uint16)))


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flips_agree_with_mmpretrain(direction):
    fast = TRANSFORMS.build(dict(type='FastRandomFlip', prob=0.3, direction=direction))
    stock = TRANSFORMS.build(dict(type='RandomFlip', prob=0.3, direction=direction))
    flipped = 0
    for index in range(40):
        seed(index)
        expected = stock(dict(img=IMAGES[0]))
        seed(index)
        found = fast(dict(img=IMAGES[0]))
        assert found['flip'] == expected['flip'] and found['flip_direction'] == expected['flip_direction']
        assert np.array_equal(found['img'], expected['img']) and found['img'].flags.c_contiguous
        flipped += found['flip']
    assert 0 < flipped < 40


def test_noise_of_erasing_has_the_distribution_of_mmpretrain():
    fast, stock = (
        TRANSFORMS.build(dict(type=kind, erase_prob=1.0, **ERASING)) for kind in ('FastRandomErasing', 'RandomErasing')
    )
    values = {}
    for erasing in (fast, stock):
        found, marker = [], 1
        for index in range(60):
            seed(index)
            image = np.full((96, 96, 3), marker, np.uint8)
            found.append(erasing(dict(img=image))['img'])
        values[erasing] = np.stack(found)
    # The erased regions are the same, except where the noise happens to have the marker's value.
    places = [(each != 1).any(-1) for each in values.values()]
    assert (places[0] != places[1]).mean() < 1e-3
    histograms = [np.bincount(each[place].ravel(), minlength=256) for each, place in zip(values.values(), places)]
    shares = [np.cumsum(each) / each.sum() for each in histograms]
    assert histograms[0].sum() > 200_000
    # Kolmogorov-Smirnov of two samples of that size, at a level of 1e-5: 2.5 * sqrt(2 / 200,000).
    assert np.abs(shares[0] - shares[1]).max() < 2.5 * (2 / 200_000) ** 0.5
    constant = transforms.FastRandomErasing(erase_prob=1.0, mode='const', fill_color=[1, 2, 3])
    assert (constant(dict(img=IMAGES[0].copy()))['img'] == (1, 2, 3)).all(-1).any()


def test_transforms_can_be_built_before_mmpretrain_is_imported():
    names = {name for name, (module, _) in NAMES.items() if module == 'transforms'}
    assert names == {name for name in vars(transforms) if name.startswith('Fast')}
    for name in names:
        assert TRANSFORMS.get(name).__name__ == name
    built = TRANSFORMS.build(dict(type='FastRandomErasing', erase_prob=0.5))
    assert isinstance(built, library.RandomErasing)


def test_pipelines_can_be_pickled_for_spawned_workers():
    augment = TRANSFORMS.build(dict(type='FastRandAugment', **copy.deepcopy(AUGMENT)))
    crop = TRANSFORMS.build(dict(type='FastRandomResizedCrop', scale=32, interpolation=['bilinear', 'bicubic']))
    flip = TRANSFORMS.build(dict(type='FastRandomFlip', prob=0.5))
    made = []
    for steps in ([crop, flip, augment], pickle.loads(pickle.dumps([crop, flip, augment]))):
        seed(4)
        data = dict(img=IMAGES[0])
        for step in steps:
            data = step(data)
        made.append(data['img'])
    assert np.array_equal(*made)
