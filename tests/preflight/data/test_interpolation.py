"""Segmentation maps that were resized with interpolation."""

import cv2
import numpy as np
import pytest
from PIL import Image

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data.interpolation import Interpolation


def said_of(labels, said):
    said.clear()
    found = Interpolation()
    found.add('a.png', labels)
    found.report('maps')
    return said


@pytest.fixture
def labels():
    """A map of regions of six labels."""
    return np.kron(np.random.default_rng(0).integers(0, 6, (8, 8)), np.ones((10, 10))).astype(np.uint8)


@pytest.mark.parametrize(
    'scale, how',
    [(0.5, cv2.INTER_LINEAR), (0.5, cv2.INTER_AREA), (1.7, cv2.INTER_LINEAR), (2, cv2.INTER_CUBIC)],
)
def test_interpolated_maps(scale, how, labels, said):
    small = cv2.resize(np.roll(labels, 1, (0, 1)), None, fx=scale, fy=scale, interpolation=how)
    (text,) = said_of(small, said)
    assert 'changes of label lead over a label between two others (mostly' in text and 'such as in a.png' in text
    assert 'resize maps with the nearest neighbor, and save them as PNG' in text


def test_maps_as_jpeg(labels, said):
    assert len(said_of(cv2.imdecode(cv2.imencode('.jpg', labels * 10)[1], cv2.IMREAD_GRAYSCALE), said)) == 1


def test_good_maps(labels, said):
    assert said_of(labels, said) == []
    nearest = cv2.resize(labels, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_NEAREST)
    assert said_of(nearest, said) == [] and said_of(np.zeros((4, 4), np.uint8), said) == []
    assert said_of(np.zeros((4, 4, 3)), said) == []
    # A label of its own for the border of objects.
    trimap = np.zeros((40, 40), np.uint8)
    trimap[9:31, 9:31] = 1
    trimap[10:30, 10:30] = 2
    assert said_of(trimap, said) == []


def test_interpolated_maps_of_a_data_set(own, said):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        labels = cv2.resize(np.asarray(Image.open(path)), (32, 32), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(cv2.resize(labels, (64, 64), interpolation=cv2.INTER_LINEAR)).save(path)
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    (text,) = [each for each in said if 'resizing with interpolation' in each]
    assert str(data / 'annotations' / 'training') in text.replace('//', '/')
