"""Copies of images in another memory layout have the same values."""

import numpy as np
import pytest
import torch

from fcvit_mm.datasets import ChannelsFirst
from fcvit_mm.datasets.layout import contiguous

FLIPS = [np.s_[:], np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]]
DTYPES = (np.uint8, np.uint16, np.float32, np.float64, np.int64, bool)


@pytest.mark.parametrize('flip', FLIPS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(7, 9, 3), (7, 9), (7, 9, 1), (7, 9, 25), (0, 9, 3), (1, 1, 3)])
def test_flipped_images_become_contiguous(shape, dtype, flip):
    image = np.random.RandomState(0).randint(0, 200, shape).astype(dtype)
    found = contiguous(image[flip])
    assert found.flags.c_contiguous and found.dtype == dtype and np.array_equal(found, image[flip])


def test_other_views_become_contiguous():
    image = np.random.RandomState(0).randint(0, 200, (8, 10, 3)).astype(np.uint8)
    for view in (image[2:6, 1:5], image[2:6, 5:1:-1], image.transpose(1, 0, 2), image[..., ::-1], image[::2, ::-2]):
        assert contiguous(view).flags.c_contiguous and np.array_equal(contiguous(view), view)
    assert contiguous(image) is image


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(7, 9, 3), (7, 9, 1), (7, 9, 25), (7, 9), (0, 9, 3)])
def test_channels_first_changes_the_memory_layout_only(shape, dtype):
    image = np.random.RandomState(0).randint(0, 200, shape).astype(dtype)
    found = ChannelsFirst()(dict(img=image[::-1], other=1))
    assert found['other'] == 1 and found['img'].dtype == dtype and np.array_equal(found['img'], image[::-1])
    if len(shape) == 3 and dtype in (np.uint8, np.uint16, np.float32):
        assert found['img'].transpose(2, 0, 1).flags.c_contiguous


def test_samples_without_an_image_are_not_changed():
    assert ChannelsFirst()(dict(points=3)) == dict(points=3)
    assert repr(ChannelsFirst()) == 'ChannelsFirst()'


@pytest.mark.parametrize(
    'scope, kind', [('mmpretrain', 'PackInputs'), ('mmdet', 'PackDetInputs'), ('mmseg', 'PackSegInputs')]
)
def test_packed_inputs_are_the_same(scope, kind):
    pytest.importorskip(scope)
    from mmengine.registry import TRANSFORMS, DefaultScope
    from mmengine.utils import import_modules_from_strings

    import_modules_from_strings(f'{scope}.datasets.transforms')
    image = np.random.RandomState(0).randint(0, 255, (12, 10, 3)).astype(np.uint8)[:, ::-1]
    with DefaultScope.overwrite_default_scope(scope):
        pack = TRANSFORMS.build(dict(type=kind, meta_keys=()))
        step = TRANSFORMS.build(dict(type='ChannelsFirst'))
    expected = pack(dict(img=image.copy()))['inputs']
    found = pack(step(dict(img=image)))['inputs']
    assert torch.equal(found, expected) and found.is_contiguous() and found.stride() == expected.stride()
