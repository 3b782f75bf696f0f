"""Segmentation maps of other images."""

import shutil

import numpy as np
import pytest

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data import alignment
from fcvit_mm.preflight.data.alignment import Alignment

NUMBER = 48


@pytest.fixture(scope='module')
def pairs():
    """Images of noise with a bright rectangle each, and their maps."""
    random, found = np.random.default_rng(0), []
    for _ in range(NUMBER):
        labels = np.zeros((60, 80), np.uint8)
        top, left = random.integers(0, 25, 2)
        labels[top : top + random.integers(15, 30), left : left + random.integers(15, 50)] = 3
        found.append((random.integers(0, 60, (60, 80, 3)) + 90 * (labels > 0)[..., None], labels))
    return found


def said_of(pairs, said):
    said.clear()
    found = Alignment()
    for image, labels in pairs:
        found.add(image, labels)
    found.report('maps')
    return said


@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize('bands', [slice(0, 3), 0, [0] * 13])
def test_right_maps(kind, bands, pairs, said):
    assert said_of([(image[..., bands].astype(kind), labels) for image, labels in pairs], said) == []


def test_maps_of_other_images(pairs, said):
    order = np.random.default_rng(1).permutation(NUMBER)
    (text,) = said_of([(image, pairs[number][1]) for (image, _), number in zip(pairs, order)], said)
    assert 'follow those of the images no better than the maps of other images do. Draw some maps over' in text
    assert 'segmentation maps in maps: in ' in text and 'check that each has the name of its image' in text
    # Of few images nothing is said.
    assert said_of([(image, pairs[number][1]) for (image, _), number in zip(pairs[:30], order)], said) == []


@pytest.mark.parametrize(
    'rows, columns, words', [(-1, 1, 'upside down'), (1, -1, 'mirrored left to right'), (-1, -1, 'rotated by 180 degr')]
)
def test_mirrored_maps(rows, columns, words, pairs, said):
    (text,) = said_of([(image, labels[::rows, ::columns]) for image, labels in pairs], said)
    assert f'follow those of the images better {words}' in text and 'than as they are. Draw some maps' in text


def test_images_and_maps_without_evidence_are_not_reported(pairs, said):
    labels = pairs[0][1]
    # A fixed camera; images without any edges; maps without any; something else than images and maps.
    assert said_of([(image, labels) for image, _ in pairs], said) == []
    assert said_of([(np.full_like(image, 7), labels) for image, labels in pairs], said) == []
    assert said_of([(image, labels * 0) for image, labels in pairs], said) == []
    assert said_of([(image * np.nan, labels) for image, labels in pairs], said) == []
    assert said_of([(image, image) for image, _ in pairs], said) == []


def test_exchanged_maps_of_a_data_set(own, said, monkeypatch):
    monkeypatch.setattr(alignment, 'ENOUGH', 8)
    cfg, data = own('segmentation')
    assert data_problems(cfg, ['train_dataloader']) == [] and said == []
    folder = data / 'annotations' / 'training'
    paths = sorted(folder.iterdir())
    shutil.copytree(folder, data / 'copy')
    for path, other in zip(paths, [*paths[3:], *paths[:3]]):
        shutil.copy(data / 'copy' / other.name, path)
    assert data_problems(cfg, ['train_dataloader']) == []
    (text,) = said
    assert 'in 8 compared images' in text and str(folder) in text.replace('//', '/')
