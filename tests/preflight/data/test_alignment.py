"""Segmentation maps that do not belong to their images."""

import shutil

import numpy as np
import pytest

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data import alignment
from fcvit_mm.preflight.data.alignment import Alignment

NUMBER = 48


@pytest.fixture(scope='module')
def pairs():
    """Noisy images with a bright rectangle each, and their segmentation maps."""
    random, found = np.random.default_rng(0), []
    for _ in range(NUMBER):
        labels = np.zeros((60, 80), np.uint8)
        top, left = random.integers(0, 25, 2)
        labels[top : top + random.integers(15, 30), left : left + random.integers(15, 50)] = 3
        found.append((random.integers(0, 60, (60, 80, 3)) + 90 * (labels > 0)[..., None], labels))
    return found


def warnings_for(pairs, logged):
    logged.clear()
    found = Alignment()
    for image, labels in pairs:
        found.add(image, labels)
    found.report('maps')
    return logged


@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize('bands', [slice(0, 3), 0, [0] * 13])
def test_matching_maps_are_not_reported(kind, bands, pairs, logged):
    assert warnings_for([(image[..., bands].astype(kind), labels) for image, labels in pairs], logged) == []


def test_maps_of_other_images_are_reported(pairs, logged):
    order = np.random.default_rng(1).permutation(NUMBER)
    (text,) = warnings_for([(image, pairs[number][1]) for (image, _), number in zip(pairs, order)], logged)
    assert 'follow those of the images no better than the maps of other images do. Draw some maps over' in text
    assert 'segmentation maps in maps: in ' in text and 'check that each has the name of its image' in text
    # With few images there is no warning.
    assert warnings_for([(image, pairs[number][1]) for (image, _), number in zip(pairs[:30], order)], logged) == []


@pytest.mark.parametrize(
    'rows, columns, words', [(-1, 1, 'upside down'), (1, -1, 'mirrored left to right'), (-1, -1, 'rotated by 180 degr')]
)
def test_mirrored_maps_are_reported(rows, columns, words, pairs, logged):
    (text,) = warnings_for([(image, labels[::rows, ::columns]) for image, labels in pairs], logged)
    assert f'follow those of the images better {words}' in text and 'than as they are. Draw some maps' in text


def test_unclear_images_and_maps_are_not_reported(pairs, logged):
    labels = pairs[0][1]
    # The same map for all images (a fixed camera); images without edges; maps without edges; NaN; maps that are images.
    assert warnings_for([(image, labels) for image, _ in pairs], logged) == []
    assert warnings_for([(np.full_like(image, 7), labels) for image, labels in pairs], logged) == []
    assert warnings_for([(image, labels * 0) for image, labels in pairs], logged) == []
    assert warnings_for([(image * np.nan, labels) for image, labels in pairs], logged) == []
    assert warnings_for([(image, image) for image, _ in pairs], logged) == []


def test_exchanged_maps_in_a_data_set_are_reported(make_config, logged, monkeypatch):
    monkeypatch.setattr(alignment, 'ENOUGH', 8)
    cfg, data = make_config('segmentation')
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
    folder = data / 'annotations' / 'training'
    paths = sorted(folder.iterdir())
    shutil.copytree(folder, data / 'copy')
    for path, other in zip(paths, [*paths[3:], *paths[:3]]):
        shutil.copy(data / 'copy' / other.name, path)
    assert data_problems(cfg, ['train_dataloader']) == []
    (text,) = logged
    assert 'in 8 compared images' in text and str(folder) in text.replace('//', '/')
