"""Attention maps of chosen query points of an image, computed and drawn.

Source: arXiv 2212.12552, figure 1 (attention hardly depends on the query).
"""

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .attention import Attention, collect_attention
from .plots import OPACITY, draw_grid, overlay, short_name
from .recording import AnalysisError, as_single

#: Default number of layers that are drawn, evenly spread.
DRAWN_LAYERS = 6


def attention_maps(
    model: nn.Module, image: Tensor, queries: Sequence[Tuple[float, float]], layers: Optional[Sequence[str]] = None
) -> Dict[str, Tensor]:
    """Compute the attention maps of the patches at chosen points of one image.

    Args:
        model (nn.Module): A transformer, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(1, 3, H, W)``, resized and normalized.
        queries (Sequence[tuple[float, float]]): Points ``(y, x)`` as fractions of the image's height and width:
            ``(0, 0)`` is the top left, ``(0.5, 0.5)`` the middle.
        layers (Sequence[str], optional): Names of blocks, or their beginnings. Default: all.

    Returns:
        dict[str, Tensor]: ``(queries, heads, H_i, W_i)`` by block, float32, over the grid of patches. Weights of class
        tokens are not included, so that a map's sum may be under 1; outside a query's window it is 0 (Swin).

    Raises:
        AnalysisError: Not a transformer, no such layer, or a point outside the image.
    """
    queries = check_queries(queries)
    image = as_single(model, image)
    return collect_attention(model, image, layers, lambda attention: maps_of(attention, queries))


def check_queries(queries: Sequence[Tuple[float, float]]) -> List[Tuple[float, float]]:
    """Return query points as pairs.

    Raises:
        AnalysisError: A point lies outside the image, or there are no points.
    """
    wrong = [query for query in queries if len(query) != 2 or not all(0 <= value <= 1 for value in query)]
    if wrong or not queries:
        raise AnalysisError(
            f'queries is {[tuple(query) for query in queries]}, expected points (y, x) as fractions of the height and '
            'width, from 0 to 1' + (f', got {tuple(wrong[0])}' if wrong else '')
        )
    return [(y, x) for y, x in queries]


def position_of(query: Tuple[float, float], grid: Tuple[int, int]) -> Tuple[int, int]:
    """Return the row and column of the patch that a point lies in."""
    row, column = (min(int(part * side), side - 1) for part, side in zip(query, grid))
    return row, column


def maps_of(attention: Attention, queries: Sequence[Tuple[float, float]]) -> Tensor:
    """Arrange rows of the first image's attention as the patches are: ``(queries, heads, H, W)``."""
    height, width = attention.grid
    maps = []
    for query in queries:
        row, column = position_of(query, attention.grid)
        window, token = (attention.positions == row * width + column).nonzero()[0].tolist()
        weights = attention.weights[0, window, :, token]
        positions = attention.positions[window]
        values = weights.new_zeros(len(weights), height * width)
        values[:, positions[positions >= 0]] = weights[:, positions >= 0]
        maps.append(values.unflatten(1, attention.grid))
    return torch.stack(maps)


def draw_attention(
    maps: Dict[str, Tensor],
    image: np.ndarray,
    queries: Sequence[Tuple[float, float]],
    title: Optional[str] = None,
    layers: Optional[Sequence[str]] = None,
) -> Figure:
    """Draw attention maps over the image, mean over heads: a row per query, marked by a ring, a column per layer.

    Every map has its own scale, from 0 to its largest weight: in some layers single tokens have most of the weight.

    Args:
        maps (dict[str, Tensor]): Result of :func:`attention_maps` or
            :func:`~fcvit_mm.analysis.similarity.similarity_maps`. The latter has no queries: there is one row, and each
            map's scale goes from its smallest value to its largest.
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB, as the network saw it.
        queries (Sequence[tuple[float]]): Queries, as for :func:`attention_maps`.
        title (str, optional): Title of the figure.
        layers (Sequence[str], optional): Layers to draw, of ``maps``. Default: up to six, evenly spread over the depth.

    Raises:
        AnalysisError: No maps are given, or a layer is not among them.
    """
    unknown = [layer for layer in layers or () if layer not in maps]
    if unknown or not maps:
        raise AnalysisError(
            f'no map of {", ".join(unknown) or "any layer"}, expected some of {", ".join(maps) or "the layers"}'
        )
    layers = list(layers or spread(list(maps), min(DRAWN_LAYERS, len(maps))))
    rows = attention_rows(maps, image, queries, layers)
    columns = ['image', *(short_name(layer).replace(', ', '\n') for layer in layers)]
    return draw_rows(rows, columns, title)


def draw_beside(
    networks: Dict[str, Tuple[Dict[str, Tensor], np.ndarray]],
    queries: Sequence[Tuple[float, float]],
    title: Optional[str] = None,
) -> Figure:
    """Draw the attention maps of several networks, one above the other, at the same relative depths.

    Args:
        networks (dict[str, tuple]): Maps and image of each, by name.
        queries (Sequence[tuple[float]]): Queries, as for :func:`attention_maps`.
        title (str, optional): Title of the figure.
    """
    rows = []
    for name, (maps, image) in networks.items():
        chosen = attention_rows(maps, image, queries, spread(list(maps), DRAWN_LAYERS))
        rows += [(f'{name}\n{label}', cells, query) for label, cells, query in chosen]
    parts = [round(100 * i / (DRAWN_LAYERS - 1)) for i in range(DRAWN_LAYERS)]
    columns = ['image', 'first layer', *(f'{part} % of depth' for part in parts[1:-1]), 'last layer']
    return draw_rows(rows, columns, title)


#: A row of a figure: its title, its images, and the query to mark, if any.
Row = Tuple[str, List[np.ndarray], Optional[Tuple[float, float]]]


def attention_rows(
    maps: Dict[str, Tensor], image: np.ndarray, queries: Sequence[Tuple[float, float]], layers: Sequence[str]
) -> List[Row]:
    """Build a row for each query, or a single row for maps ``(heads, H, W)``, which have no queries."""
    queries = check_queries(queries)
    means = [maps[layer].mean(-3) for layer in layers]
    if means[0].ndim == 2:
        return [('no query', [image, *(overlay(image, mean, opacity=OPACITY) for mean in means)], None)]
    rows: List[Row] = []
    for i, query in enumerate(queries):
        limits = [(0.0, max(float(mean[i].max()), 1e-12)) for mean in means]
        cells = [overlay(image, mean[i], limit, opacity=OPACITY) for mean, limit in zip(means, limits)]
        rows.append((f'query {i + 1}', [image, *cells], query))
    return rows


def draw_rows(rows: Sequence[Row], columns: Sequence[str], title: Optional[str]) -> Figure:
    """Draw rows of maps and mark their queries."""
    scales = ['weight / its largest' if query else 'similarity, least to largest' for _, _, query in rows]
    figure = draw_grid(
        [cells for _, cells, _ in rows],
        [label for label, _, _ in rows],
        columns,
        title,
        '; '.join(dict.fromkeys(scales)),
        (0.0, 1.0),
    )
    for i, (_, cells, query) in enumerate(rows):
        if query is None:
            continue
        for axes, cell in zip(figure.axes[i * len(columns) :], cells):
            mark_query(axes, query, cell.shape[:2])
    return figure


def mark_query(axes: Axes, query: Tuple[float, float], size: Tuple[int, int]) -> None:
    """Draw a ring at a query point of an image of ``size`` (height, width)."""
    y, x = (min(part * side, side - 1) for part, side in zip(query, size))
    for color, diameter in (('black', 7.0), ('white', 5.5)):  # visible on dark and on bright images
        axes.plot(
            x, y, marker='o', markersize=diameter, markerfacecolor='none', markeredgecolor=color, markeredgewidth=1.3
        )


def spread(names: List[str], count: int) -> List[str]:
    """Choose ``count`` evenly spread names, including the first and the last; repeats names if there are fewer."""
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
