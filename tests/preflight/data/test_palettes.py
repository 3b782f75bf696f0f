from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcvit_mm.preflight.data.palettes import palette_of, report_palettes, report_unusable_palette

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def dataset(*palette, reduced=False):
    names = ('cat', 'dog', 'cow')[: len(palette)]
    return SimpleNamespace(
        metainfo=dict(classes=names, palette=[list(each) for each in palette]), reduce_zero_label=reduced
    )


def test_palette_of_a_file(tmp_path):
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
        # The colors of the data set are for drawing, and differ from those of the files.
        ((RED, GREEN, BLUE), False, {'a': {0: (0, 0, 0), 1: (128, 0, 0)}}),
        ((RED, GREEN, BLUE), False, {'a': {0: BLUE, 1: (128, 0, 0)}}),
        ((), False, {'a': {0: BLUE, 1: RED}}),
        ((RED, RED, RED), False, {'a': {0: RED, 1: RED}}),
        ((RED, GREEN, BLUE), False, {}),
    ],
)
def test_matching_palettes_are_not_reported(logged, given, reduced, palettes):
    report_palettes(dataset(*given, reduced=reduced), palettes)
    assert logged == []


def test_files_with_different_palettes_are_reported(logged):
    """Such as color images that were converted to palette images, each with its own palette."""
    report_palettes(dataset(RED, GREEN), {'a': {0: RED, 1: GREEN}, 'b': {0: GREEN, 1: RED}, 'c': {}})
    assert logged == [
        'segmentation maps: label 0 has the color (0, 255, 0) in the palette of b, but (255, 0, 0) in that of a: if '
        'the colors stand for classes, the labels mean others in each file. Convert the colors to class indices'
    ]


@pytest.mark.parametrize(('shift', 'label'), [(0, 2), (1, 3)])
def test_palette_with_classes_in_another_order(logged, shift, label):
    colors = {0 + shift: BLUE, 1 + shift: RED, 2 + shift: GREEN}
    report_palettes(dataset(RED, GREEN, BLUE, reduced=bool(shift)), {'a': colors})
    assert logged == [
        f"segmentation maps: label {shift} has the color of 'cow' in the palette of a, but that class has label "
        f'{label}: correct the order of metainfo.classes and palette, or the maps'
    ]


@pytest.mark.parametrize(
    ('palette', 'words'),
    [
        ([[9, 9, 9], [1, 2, None]], 'the color [1, 2, None], expected [red, green, blue]'),
        (['#000000', '#ffffff'], "the color '#000000', expected [red, green, blue]"),
        ([0, 1], 'the color 0, expected [red, green, blue]'),
        ([[9, 9, 9]], '1 colors for 2 classes'),
    ],
)
def test_palette_that_cannot_be_drawn_with(logged, palette, words):
    data = SimpleNamespace(metainfo=dict(classes=('a', 'b'), palette=palette), reduce_zero_label=False)
    report_unusable_palette(data)
    assert logged == [
        f'SimpleNamespace: metainfo.palette has {words}, so predictions cannot be drawn: set palette in metainfo, one '
        'color per class'
    ]
    report_palettes(data, {'a': {0: RED}})


@pytest.mark.parametrize('palette', [[RED, [0.0, 255, 0]], (RED, GREEN, BLUE), RED, 'random', None])
def test_usable_palettes(logged, palette):
    report_unusable_palette(SimpleNamespace(metainfo=dict(classes=('a', 'b'), palette=palette)))
    assert logged == []
