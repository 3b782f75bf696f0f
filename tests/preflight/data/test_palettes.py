from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcvit_mm.preflight.data.palettes import palette_of, report_palettes

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def dataset(*palette, reduced=False):
    names = ('cat', 'dog', 'cow')[: len(palette)]
    return SimpleNamespace(
        metainfo=dict(classes=names, palette=[list(each) for each in palette]), reduce_zero_label=reduced
    )


def test_colors_of_labels(tmp_path):
    path = tmp_path / 'a.png'
    image = Image.fromarray(np.array([[0, 2], [2, 200]], np.uint8), 'P')
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(path)
    colors = palette_of(str(path))
    assert (colors[0], colors[2]) == (RED, BLUE) and 1 not in colors
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    assert palette_of(str(path)) == {}
    np.save(tmp_path / 'a.npy', np.zeros((2, 2)))
    assert palette_of(str(tmp_path / 'a.npy')) == {}


@pytest.mark.parametrize(
    ('given', 'reduced', 'palettes'),
    [
        ((RED, GREEN, BLUE), False, {'a': {0: RED, 1: GREEN}, 'b': {1: GREEN, 2: BLUE}}),
        ((RED, GREEN, BLUE), True, {'a': {0: (9, 9, 9), 1: RED, 2: GREEN}}),
        # The colors are for drawing, and not those of the files.
        ((RED, GREEN, BLUE), False, {'a': {0: (0, 0, 0), 1: (128, 0, 0)}}),
        ((RED, GREEN, BLUE), False, {'a': {0: BLUE, 1: (128, 0, 0)}}),
        ((), False, {'a': {0: BLUE, 1: RED}}),
        ((RED, RED, RED), False, {'a': {0: RED, 1: RED}}),
        ((RED, GREEN, BLUE), False, {}),
    ],
)
def test_palettes_that_fit(said, given, reduced, palettes):
    report_palettes(dataset(*given, reduced=reduced), palettes)
    assert said == []


def test_palettes_that_differ(said):
    """As those of drawings whose colors were reduced."""
    report_palettes(dataset(RED, GREEN), {'a': {0: RED, 1: GREEN}, 'b': {0: GREEN, 1: RED}, 'c': {}})
    assert said == [
        'segmentation maps: label 0 has the color (0, 255, 0) in the palette of b, but (255, 0, 0) in that of a: if '
        'the colors stand for classes, the labels mean others in each file. Convert the colors to class indices'
    ]


@pytest.mark.parametrize(('shift', 'label'), [(0, 2), (1, 3)])
def test_palettes_of_classes_in_another_order(said, shift, label):
    colors = {0 + shift: BLUE, 1 + shift: RED, 2 + shift: GREEN}
    report_palettes(dataset(RED, GREEN, BLUE, reduced=bool(shift)), {'a': colors})
    assert said == [
        f"segmentation maps: label {shift} has the color of 'cow' in the palette of a, but that class has label "
        f'{label}: correct the order of metainfo.classes and palette, or the maps'
    ]
