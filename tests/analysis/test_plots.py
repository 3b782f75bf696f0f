"""Figures: overlays, grids, axes, and their files."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcvit_mm.analysis import overlay, save_figure, write_json
from fcvit_mm.analysis.plots import COLORS, draw_grid, draw_lines, limits_of, new_figure, resize_map, short_name
from fcvit_mm.files import WriteError

IMAGE = np.zeros((20, 30, 3), np.uint8)
IMAGE[:, 15:] = 255


def test_overlay_shows_the_map_and_the_image():
    values = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    laid = overlay(IMAGE, values, opacity=1.0)
    assert laid.shape == (20, 30, 3) and laid.dtype == np.uint8
    assert laid[0, 0].tolist() == [68, 1, 84] and laid[0, -1].tolist() == [253, 231, 37]  # the ends of viridis
    assert np.array_equal(overlay(IMAGE, values, opacity=0.0)[..., 0], IMAGE[..., 0])
    half = overlay(IMAGE, torch.zeros(2, 2), limits=(0.0, 1.0), opacity=0.5)
    np.testing.assert_allclose(half[0, [0, -1]], [[34, 0.5, 42], [161.5, 128, 169.5]], atol=0.6)
    # Values beyond the limits have the colors of the limits; arrays work like tensors.
    assert np.array_equal(
        overlay(IMAGE, np.array([[-9.0, 9.0]]), (0.0, 1.0), opacity=1.0)[0, [0, -1]], laid[0, [0, -1]]
    )
    assert overlay(IMAGE, torch.full((3, 3), 7.0)).std() > 0  # the image is visible through a constant map


def test_overlay_refuses_other_shapes_and_types():
    with pytest.raises(ValueError, match=r'image is float64 \(20, 30, 3\), expected uint8'):
        overlay(IMAGE / 255, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r'shape \(8, 2, 2\), expected \(h, w\): select one head, or average them'):
        overlay(IMAGE, torch.zeros(8, 2, 2))


def test_limits_of_values_and_resizing_of_maps():
    assert limits_of([torch.tensor([1.0, math.nan]), np.array([-2.0, 5.0])]) == (-2, 5)
    assert limits_of([torch.ones(3)]) == (0.5, 1.5) and limits_of([torch.full((2,), math.nan)]) == (0, 1)
    resized = resize_map(torch.tensor([[0.0, 1.0]]), (4, 8))
    assert resized.shape == (4, 8) and (np.diff(resized[0]) >= 0).all() and resized[0, 0] == 0 and resized[0, -1] == 1


def test_grid_has_titles_and_one_color_bar():
    figure = draw_grid(
        [[IMAGE, np.zeros((2, 3))], [None, np.ones((2, 3))]], ['a', 'b'], ['c', 'd'], 'Title', 'similarity (unit)'
    )
    *cells, bar = figure.axes
    assert [axes.get_ylabel() for axes in cells] == ['a', '', 'b', ''] and bar.get_ylabel() == 'similarity (unit)'
    assert [axes.get_title() for axes in cells] == ['c', 'd', '', ''] and figure.get_suptitle() == 'Title'
    assert [len(axes.images) for axes in cells] == [1, 1, 0, 1]
    assert cells[1].images[0].get_clim() == cells[3].images[0].get_clim() == (0, 1)
    assert len(draw_grid([[IMAGE]]).axes) == 1


def test_lines_have_labels_and_gaps():
    axes = new_figure(4, 3).subplots()
    draw_lines(axes, {'one': [1, None, math.nan, 3], 'two': [2, 2]}, 'ratio (dB)', title='Title')
    first, second = axes.get_lines()
    assert first.get_xdata().tolist() == [1, 2, 3, 4] and np.isnan(first.get_ydata()).tolist() == [0, 1, 1, 0]
    assert (first.get_color(), second.get_color()) == COLORS[:2] and first.get_marker() != second.get_marker()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ('layer', 'ratio (dB)', 'Title')
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['one', 'two']


def test_files_are_written_atomically(tmp_path):
    figure = draw_grid([[IMAGE]])
    path = save_figure(figure, tmp_path / 'new' / 'figure.png', dpi=40)
    with Image.open(path) as image:
        assert image.format == 'PNG' and min(image.size) > 40
    content = {
        'a': torch.tensor([1.5, math.nan]),
        'b': np.float32(2),
        'c': [(1, 'x'), None, math.inf],
        4: True,
        'd': np.arange(6).reshape(2, 3),
    }
    text = Path(write_json(tmp_path / 'new' / 'numbers.json', content)).read_text()
    assert json.loads(text) == {
        'a': [1.5, None],
        'b': 2.0,
        'c': [[1, 'x'], None, None],
        '4': True,
        'd': [[0, 1, 2], [3, 4, 5]],
    }
    assert '[0, 1, 2]' in text  # a row of numbers stays on one line
    assert sorted(each.name for each in (tmp_path / 'new').iterdir()) == ['figure.png', 'numbers.json']
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match='numbers.json .* could not be written'):
        write_json(tmp_path / 'file' / 'numbers.json', {})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'object.json', {'a': object()})
    assert not (tmp_path / 'object.json').exists()


def test_pyplot_is_not_imported_or_changed():
    before = sys.modules.get('matplotlib.pyplot')
    figures = before.get_fignums() if before else []
    draw_grid([[np.zeros((2, 2))]], label='x')
    after = sys.modules.get('matplotlib.pyplot')
    assert after is before and (after is None or after.get_fignums() == figures)


def test_short_names_of_layers():
    assert short_name('stages.0.blocks.1.mixes.1') == 'stage 1, block 2, mix 2'
    assert short_name('blocks.3') == short_name('layers.3') == 'block 4' and short_name('other') == 'other'
