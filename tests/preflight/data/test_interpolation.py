"""Segmentation maps that were resized with interpolation."""

import cv2
import numpy as np
import pytest
from PIL import Image

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data.interpolation import Interpolation


def warnings_for(labels, logged):
    logged.clear()
    found = Interpolation()
    found.add('a.png', labels)
    found.report('maps')
    return logged


@pytest.fixture
def labels():
    """A segmentation map with regions of six labels."""
    return np.kron(np.random.default_rng(0).integers(0, 6, (8, 8)), np.ones((10, 10))).astype(np.uint8)


@pytest.mark.parametrize(
    'scale, how',
    [(0.5, cv2.INTER_LINEAR), (0.5, cv2.INTER_AREA), (1.7, cv2.INTER_LINEAR), (2, cv2.INTER_CUBIC)],
)
def test_interpolated_maps_are_reported(scale, how, labels, logged):
    small = cv2.resize(np.roll(labels, 1, (0, 1)), None, fx=scale, fy=scale, interpolation=how)
    (text,) = warnings_for(small, logged)
    assert 'changes of label lead over a label between two others (mostly' in text and 'such as in a.png' in text
    assert 'resize maps with the nearest neighbor, and save them as PNG' in text


def test_jpeg_compressed_maps_are_reported(labels, logged):
    assert len(warnings_for(cv2.imdecode(cv2.imencode('.jpg', labels * 10)[1], cv2.IMREAD_GRAYSCALE), logged)) == 1


def test_other_maps_are_not_reported(labels, logged):
    assert warnings_for(labels, logged) == []
    nearest = cv2.resize(labels, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_NEAREST)
    assert warnings_for(nearest, logged) == [] and warnings_for(np.zeros((4, 4), np.uint8), logged) == []
    assert warnings_for(np.zeros((4, 4, 3)), logged) == []
    # A separate label for the border of objects.
    trimap = np.zeros((40, 40), np.uint8)
    trimap[9:31, 9:31] = 1
    trimap[10:30, 10:30] = 2
    assert warnings_for(trimap, logged) == []


def test_interpolated_maps_in_a_data_set_are_reported(make_config, logged):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        labels = cv2.resize(np.asarray(Image.open(path)), (32, 32), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(cv2.resize(labels, (64, 64), interpolation=cv2.INTER_LINEAR)).save(path)
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    (text,) = [each for each in logged if 'resizing with interpolation' in each]
    assert str(data / 'annotations' / 'training') in text.replace('//', '/')
