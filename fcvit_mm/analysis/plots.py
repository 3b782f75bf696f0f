"""Figures in one style, with colors that color-blind people can tell apart, and atomic writing of results.

Matplotlib is used without pyplot, so this module neither depends on nor changes figures of the caller.
"""

import io
import json
import math
import os
import re
import textwrap
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..files import write_atomic

#: Okabe and Ito's colors, and markers that distinguish lines without colors.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
#: Colormap: perceptually uniform, also for color-blind people.
COLORMAP = 'viridis'
#: Font sizes in points.
TEXT, SMALL, TITLE = 9, 8, 10.5
#: Inches: gap between the cells of a grid, width of a letter, height of a line.
GAP, LETTER, LINE = 0.05, 0.062, 0.14
DPI = 150
#: Opacity of the colors over an image.
OPACITY = 0.7

Values = Union[Tensor, np.ndarray]


def as_array(values: Values) -> np.ndarray:
    """Return a tensor or array as an array on the CPU."""
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)


def short_name(name: str) -> str:
    """Return a readable name, counted from 1: ``stage 1, block 2, mix 1`` for ``stages.0.blocks.1.mixes.0``."""
    kinds = {'stages': 'stage', 'blocks': 'block', 'layers': 'block', 'mixes': 'mix'}
    found = re.findall(r'(stages|blocks|layers|mixes)\.(\d+)', name)
    parts = [f'{kinds[kind]} {int(index) + 1}' for kind, index in found]
    return ', '.join(parts) or name


def new_figure(width: float, height: float, title: Optional[str] = None) -> Figure:
    """Build an empty figure with a canvas of its own; width and height in inches."""
    figure = Figure(figsize=(width, height), layout='constrained', facecolor='white')
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=TITLE + 1)
    return figure


def style_axes(axes: Axes, xlabel: str, ylabel: str, title: Optional[str] = None) -> None:
    """Give axes labels, a light grid and a frame on two sides, as in all plots of this package."""
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    if title:
        axes.set_title(title, fontsize=TITLE)


def draw_lines(
    axes: Axes,
    lines: Dict[str, Sequence[float]],
    ylabel: str,
    xlabel: str = 'layer',
    title: Optional[str] = None,
    legend: bool = True,
) -> None:
    """Draw one line per network over its layers, counted from 1; colors follow the order of ``lines``.

    Args:
        axes (Axes): Axes to draw on.
        lines (dict[str, Sequence[float]]): Values by layer, by label; ``None`` and NaN leave gaps.
        ylabel, xlabel, title (str): Labels and title of the axes.
        legend (bool): Draw a legend in these axes.
    """
    for i, (label, values) in enumerate(lines.items()):
        values = [math.nan if value is None else float(value) for value in values]
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle='-' if i < len(COLORS) else '--',
            markersize=4,
            linewidth=1.5,
            label=label,
        )
    style_axes(axes, xlabel, ylabel, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if legend:
        axes.legend(frameon=False, fontsize=SMALL)


def limits_of(maps: Sequence[Values]) -> Tuple[float, float]:
    """Return the least and largest finite value of maps that share a color scale; never equal."""
    values = np.concatenate([as_array(each).ravel() for each in maps])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def resize_map(values: Values, size: Sequence[int]) -> np.ndarray:
    """Resize a map ``(h, w)`` bilinearly to ``size`` (height, width); float32."""
    resized = torch.as_tensor(np.array(as_array(values), dtype=np.float32))[None, None]
    return F.interpolate(resized, tuple(size), mode='bilinear', align_corners=False)[0, 0].numpy()


def overlay(
    image: np.ndarray,
    values: Values,
    limits: Optional[Tuple[float, float]] = None,
    colormap: str = COLORMAP,
    opacity: float = 0.6,
) -> np.ndarray:
    """Draw a map in colors over an image, which shows through in grey.

    Args:
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB.
        values (Tensor | np.ndarray): ``(h, w)``, resized bilinearly to the size of the image.
        limits (tuple[float], optional): Values of the first and the last color. Default: the map's least and largest.
        colormap (str): One of Matplotlib's.
        opacity (float): Opacity of the colors.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image is {image.dtype} {image.shape}, expected uint8 (H, W, 3) in RGB')
    if len(values.shape) != 2:
        raise ValueError(f'the map has shape {tuple(values.shape)}, expected (h, w): select one head, or average them')
    low, high = limits or limits_of([values])
    colors = colormaps[colormap](Normalize(low, high, clip=True)(resize_map(values, image.shape[:2])))[..., :3]
    grey = (image @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]
    return (255 * (opacity * colors + (1 - opacity) * grey)).round().astype(np.uint8)


def draw_grid(
    cells: Sequence[Sequence[Optional[Values]]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: Optional[str] = None,
    label: Optional[str] = None,
    limits: Optional[Tuple[float, float]] = None,
    colormap: str = COLORMAP,
    side: float = 1.3,
) -> Figure:
    """Draw images and maps in rows and columns, with one color bar.

    Args:
        cells (Sequence[Sequence]): Rows of images ``(H, W, 3)`` uint8, maps ``(h, w)``, or ``None`` for an empty cell.
        row_titles, column_titles (Sequence[str]): Left of the rows and above the columns.
        title (str, optional): Title of the figure.
        label (str, optional): Meaning of the colors, with the unit; without it there is no color bar.
        limits (tuple[float], optional): Values of the first and the last color. Default: over all maps of the figure.
        colormap (str): One of Matplotlib's.
        side (float): Height of a cell in inches.
    """
    rows, columns = len(cells), max(map(len, cells))
    first = next(cell for row in cells for cell in row if cell is not None)
    width = side * min(max(first.shape[1] / first.shape[0], 0.4), 2.5)
    maps = [cell for row in cells for cell in row if cell is not None and len(cell.shape) == 2]
    scale = limits or (limits_of(maps) if maps else (0.0, 1.0))
    # The cells are placed here, because all sizes are known and a layout engine takes seconds for a hundred cells.
    left = 0.1 + LETTER * max((len(line) for text in row_titles for line in text.split('\n')), default=0)
    top = 0.08 + LINE * max((text.count('\n') + 1 for text in column_titles), default=0) + (0.35 if title else 0)
    tall = rows * (side + GAP) - GAP
    label = textwrap.fill(label, max(int(tall / LETTER), 12)) if label else None
    right, bottom = 0.7 + LINE * (label.count('\n') + 1) if label else 0.08, 0.08
    total = left + columns * (width + GAP) + right, top + tall + bottom
    total = max(total[0], 1.4 * LETTER * len(title or '')), total[1]
    figure = Figure(figsize=total, facecolor='white')
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=TITLE + 1, y=1 - 0.08 / total[1], va='top')
    for i in range(rows):
        for j in range(columns):
            place = left + j * (width + GAP), bottom + (rows - 1 - i) * (side + GAP), width, side
            axes = figure.add_axes(_relative(place, total))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            cell = cells[i][j] if j < len(cells[i]) else None
            if i == 0 and j < len(column_titles):
                axes.set_title(column_titles[j], fontsize=SMALL, pad=3)
            if j == 0 and i < len(row_titles):
                axes.set_ylabel(row_titles[i], fontsize=SMALL, rotation=0, ha='right', va='center')
            if cell is None:
                axes.patch.set_visible(False)
                continue
            cell = as_array(cell) if len(cell.shape) == 2 else cell
            # Matplotlib ignores the colormap for RGB images.
            axes.imshow(cell, interpolation='nearest', cmap=colormap, vmin=scale[0], vmax=scale[1])
    if label:
        height = min(tall, 4.0)
        place = left + columns * (width + GAP) + 0.05, bottom + (tall - height) / 2, 0.13, height
        add_colorbar(figure, figure.add_axes(_relative(place, total)), scale, label, colormap)
    return figure


def _relative(place: Tuple[float, float, float, float], size: Tuple[float, float]) -> Tuple[float, float, float, float]:
    """Convert left, bottom, width and height from inches to fractions of a figure's size."""
    left, bottom, width, height = place
    return left / size[0], bottom / size[1], width / size[0], height / size[1]


def add_colorbar(figure: Figure, axes: Axes, limits: Tuple[float, float], label: str, colormap: str = COLORMAP) -> None:
    """Draw a color bar that fills ``axes``."""
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colormap), cax=axes)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def figure_png(figure: Figure, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=dpi)
    return file.getvalue()


def save_figure(figure: Figure, path: Union[str, os.PathLike], dpi: int = DPI) -> str:
    """Write a figure as a PNG file, atomically, and return its path.

    Raises:
        WriteError: The file could not be written.
    """
    write_atomic(path, figure_png(figure, dpi))
    return os.fspath(path)


def write_json(path: Union[str, os.PathLike], content: Dict[str, Any]) -> str:
    """Write results as JSON, atomically, and return the path; values as of :func:`to_json_data`.

    Raises:
        WriteError: The file could not be written.
    """
    write_atomic(path, (json_text(to_json_data(content)) + '\n').encode())
    return os.fspath(path)


def json_text(content: Any, indent: str = '') -> str:
    """Return readable JSON: nested data is indented, a list of numbers, such as a row of a map, stays on one line."""
    inner = f'{indent}  '
    if isinstance(content, dict) and content:
        lines = [f'{inner}{json.dumps(key)}: {json_text(value, inner)}' for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(each, (dict, list)) for each in content):
        lines = [f'{inner}{json_text(each, inner)}' for each in content]
    else:
        return json.dumps(content, allow_nan=False)
    start, end = '{}' if isinstance(content, dict) else '[]'
    return f'{start}\n' + ',\n'.join(lines) + f'\n{indent}{end}'


def to_json_data(content: Any) -> Any:
    """Convert tensors, arrays and tuples to lists, keys to text, and NaN and infinity, unknown to JSON, to ``None``."""
    if isinstance(content, dict):
        return {str(key): to_json_data(value) for key, value in content.items()}
    if isinstance(content, Tensor):
        return to_json_data(content.detach().cpu().tolist())
    if isinstance(content, (np.ndarray, np.generic)):
        return to_json_data(content.tolist())
    if isinstance(content, (list, tuple)):
        return [to_json_data(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content
