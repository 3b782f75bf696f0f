"""Figures of one style: labelled axes, colours that colour-blind people can tell apart, written whole or not at all.

Matplotlib is used through its objects, so that nothing here depends on, or changes, a program's own figures.
"""

import io
import json
import math
import os
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

#: Okabe and Ito's colours, and markers and dashes for where lines cross or the print is grey.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
#: Of equal steps to the eye, and for colour-blind people.
COLORMAP = 'viridis'
TEXT, SMALL, TITLE = 9, 8, 10.5
#: Inches: between the cells of a grid, of a letter, of a line.
GAP, LETTER, LINE = 0.05, 0.062, 0.14
DPI = 150

Values = Union[Tensor, np.ndarray]


def as_array(values: Values) -> np.ndarray:
    """A tensor or array as an array on the CPU."""
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)


def new_figure(width: float, height: float, title: Optional[str] = None) -> Figure:
    """An empty figure of so many inches, with a canvas of its own."""
    figure = Figure(figsize=(width, height), layout='constrained', facecolor='white')
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=TITLE + 1)
    return figure


def style_axes(axes: Axes, xlabel: str, ylabel: str, title: Optional[str] = None) -> None:
    """Labels, a light grid and no more frame than needed, as all plots here have them."""
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
    """One line per network over its layers, counted from 1; colours go by the order in ``lines``.

    Args:
        axes (Axes): Drawn on.
        lines (dict[str, Sequence[float]]): Values by layer, by label; ``None`` and NaN leave gaps.
        ylabel, xlabel, title (str): Of the axes.
        legend (bool): Whether to name the lines here.
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
    """Least and largest finite value of maps that are to share their colours; never equal."""
    values = np.concatenate([as_array(each).ravel() for each in maps])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def resize_map(values: Values, size: Sequence[int]) -> np.ndarray:
    """A map ``(h, w)`` resized to ``size`` (height, width), bilinearly; float32."""
    values = torch.as_tensor(np.array(as_array(values), dtype=np.float32))[None, None]
    return F.interpolate(values, tuple(size), mode='bilinear', align_corners=False)[0, 0].numpy()


def overlay(
    image: np.ndarray,
    values: Values,
    limits: Optional[Tuple[float, float]] = None,
    colormap: str = COLORMAP,
    opacity: float = 0.6,
) -> np.ndarray:
    """A map laid over an image in colours; the image itself shows through in grey.

    Args:
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB.
        values (Tensor | np.ndarray): ``(h, w)``, resized to the image's size bilinearly.
        limits (tuple[float], optional): Values of the first and the last colour. Default: the map's least and largest.
        colormap (str): One of Matplotlib's.
        opacity (float): Of the colours.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image is {image.dtype} {image.shape}, expected uint8 (H, W, 3) in RGB')
    if len(values.shape) != 2:
        raise ValueError(f'the map has shape {tuple(values.shape)}, expected (h, w): take one head, or their mean')
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
    """Images and maps in rows and columns, with one colour bar.

    Args:
        cells (Sequence[Sequence]): Rows of images ``(H, W, 3)`` uint8, maps ``(h, w)``, or ``None`` for nothing.
        row_titles, column_titles (Sequence[str]): Left of the rows and above the columns.
        title (str, optional): Of the figure.
        label (str, optional): What the colours mean, with the unit; no colour bar without.
        limits (tuple[float], optional): Values of the first and the last colour. Default: over all maps here.
        colormap (str): One of Matplotlib's.
        side (float): Height of a cell in inches.
    """
    rows, columns = len(cells), max(map(len, cells))
    first = next(cell for row in cells for cell in row if cell is not None)
    width = side * min(max(first.shape[1] / first.shape[0], 0.4), 2.5)
    maps = [cell for row in cells for cell in row if cell is not None and len(cell.shape) == 2]
    if limits is None and maps:
        limits = limits_of(maps)
    # Placed by hand, for all sizes are known; a layout engine takes seconds for a hundred cells.
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
            axes = figure.add_axes([part / total[k % 2] for k, part in enumerate(place)])
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
            settings = dict(cmap=colormap, vmin=limits[0], vmax=limits[1]) if cell.ndim == 2 else {}
            axes.imshow(cell, interpolation='nearest', **settings)
    if label:
        height = min(tall, 4.0)
        place = left + columns * (width + GAP) + 0.05, bottom + (tall - height) / 2, 0.13, height
        bar = figure.add_axes([part / total[k % 2] for k, part in enumerate(place)])
        add_colorbar(figure, bar, limits, label, colormap)
    return figure


def add_colorbar(
    figure: Figure, axes: Axes, limits: Optional[Tuple[float, float]], label: str, colormap: str = COLORMAP
) -> None:
    """A colour bar that fills ``axes``."""
    bar = figure.colorbar(ScalarMappable(Normalize(*(limits or (0.0, 1.0))), colormap), cax=axes)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def figure_png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=dpi)
    return file.getvalue()


def save_figure(figure: Figure, path: Union[str, os.PathLike], dpi: int = DPI) -> str:
    """Write a figure as a PNG file, whole or not at all; its path.

    Raises:
        WriteError: The file could not be written.
    """
    write_atomic(path, figure_png(figure, dpi))
    return os.fspath(path)


def write_json(path: Union[str, os.PathLike], content: Dict[str, Any]) -> str:
    """Write numbers as JSON, whole or not at all; its path.

    Tensors and arrays become lists, and what is not finite ``null``, for JSON has no NaN.

    Raises:
        WriteError: The file could not be written.
    """
    write_atomic(path, (json_text(plain(content)) + '\n').encode())
    return os.fspath(path)


def json_text(content: Any, indent: str = '') -> str:
    """JSON in lines that people can read: a list of plain values, such as a row of a map, stays in one."""
    inner = f'{indent}  '
    if isinstance(content, dict) and content:
        lines = [f'{inner}{json.dumps(key)}: {json_text(value, inner)}' for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(each, (dict, list)) for each in content):
        lines = [f'{inner}{json_text(each, inner)}' for each in content]
    else:
        return json.dumps(content, allow_nan=False)
    start, end = '{}' if isinstance(content, dict) else '[]'
    return f'{start}\n' + ',\n'.join(lines) + f'\n{indent}{end}'


def plain(content: Any) -> Any:
    """Tensors, arrays and tuples as lists, numbers as Python's."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, Tensor):
        return plain(content.detach().cpu().tolist())
    if isinstance(content, (np.ndarray, np.generic)):
        return plain(content.tolist())
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content
