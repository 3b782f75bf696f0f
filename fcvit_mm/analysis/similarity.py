"""Similarity maps of FCViT, and attention maps of a transformer for chosen query points.

Source: arXiv 2212.12552, figures 3 (similarity) and 1 (attention, which hardly depends on the query).
"""

import re
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .attention import Attention, collect_attention, collect_similarity
from .plots import draw_grid, overlay
from .probe import AnalysisError, as_single

#: Columns of a figure of maps, after which a row is wrapped; even, so that a block's two mixes stay together.
MAX_COLUMNS = 12
#: Number of layers that are drawn unless they are named, evenly spread.
DRAWN_LAYERS = 6
#: Fraction of the values that are clipped to the first or the last color, so that single peaks do not set the scale.
CLIPPED = 0.02
#: Diverging, for similarity has a sign: orange adds the context vector, purple subtracts it.
SIGNED = 'PuOr_r'
#: Opacity of the colors over an image.
OPACITY = 0.7


def similarity_maps(model: nn.Module, image: Tensor, blocks: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Compute the similarity of each position of one image to the image's mean, by which FCViT's token mixes weigh.

    Args:
        model (nn.Module): An FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(1, 3, H, W)``, resized and normalized.
        blocks (Sequence[str], optional): ``stages.0.blocks.1.mixes.0`` for one token mix, or the beginning of several
            names: ``stages.0.blocks.1``, ``stages.3``. Default: all.

    Returns:
        dict[str, Tensor]: ``(heads, H_i, W_i)`` by name, float32: normalized over heads and positions to mean 0 and
        standard deviation 1, then rescaled per head as trained. Negative where the context vector is subtracted.

    Raises:
        AnalysisError: Not an FCViT, no such block, or an image that it does not take.
    """
    found = collect_similarity(model, as_single(model, image), blocks)
    return {name: values[0] for name, values in found.items()}


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
        AnalysisError: One lies outside the image, or there is none.
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


# -- figures ---------------------------------------------------------------------------------------------------------


def short_name(name: str) -> str:
    """Return a readable name, counted from 1: ``stage 1, block 2, mix 1`` for ``stages.0.blocks.1.mixes.0``."""
    kinds = {'stages': 'stage', 'blocks': 'block', 'layers': 'block', 'mixes': 'mix'}
    found = re.findall(r'(stages|blocks|layers|mixes)\.(\d+)', name)
    parts = [f'{kinds[kind]} {int(index) + 1}' for kind, index in found]
    return ', '.join(parts) or name


def shared_limits(maps: Sequence[Tensor]) -> Tuple[float, float]:
    """Return the values of the first and last color for maps that share a scale: symmetric, the largest clipped."""
    values = torch.cat([each.abs().float().flatten() for each in maps])
    # Sorted, because torch.quantile takes 16 million values at most.
    largest = float(values.sort().values[int((1 - CLIPPED) * (len(values) - 1))]) or 1.0
    return -largest, largest


def draw_similarity(
    maps: Dict[str, Tensor], image: np.ndarray, title: Optional[str] = None, heads: bool = False
) -> Figure:
    """Draw similarity maps over the image, all in one color scale.

    Args:
        maps (dict[str, Tensor]): Result of :func:`similarity_maps`.
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB, as the network saw it.
        title (str, optional): Title of the figure.
        heads (bool): Draw a row for each token mix, with all its heads. Default: the mean over the heads, a row for
            each stage.

    Raises:
        AnalysisError: No maps.
    """
    if not maps:
        raise AnalysisError('no similarity maps given, expected at least one: pass the result of similarity_maps')
    label = 'similarity to the image mean (normalized)'
    shown = maps if heads else {name: values.mean(0, keepdim=True) for name, values in maps.items()}
    limits = shared_limits(list(shown.values()))
    overlays = {
        name: [overlay(image, each, limits, SIGNED, OPACITY) for each in values] for name, values in shown.items()
    }
    if heads:
        by_head = [[image, *row] for row in overlays.values()]
        columns = ['image', *(f'head {i + 1}' for i in range(max(map(len, overlays.values()))))]
        return draw_grid(by_head, [short_name(name) for name in overlays], columns, title, label, limits, SIGNED)
    cells: List[List[Optional[np.ndarray]]] = []
    titles: List[str] = []
    columns = []
    for stage in dict.fromkeys(map(stage_of, overlays)):
        names = [name for name in overlays if stage_of(name) == stage]
        for start in range(0, len(names), MAX_COLUMNS):
            part = names[start : start + MAX_COLUMNS]
            cells.append([None, *(overlays[name][0] for name in part)])
            parts = [short_name(name).split(', ') for name in part]  # stage, block, mix
            if len(names) > MAX_COLUMNS:
                titles.append(f'{parts[0][0]},\nfrom {parts[0][1]}')
                parts = [each[1:] for each in parts]
            else:
                titles.append(parts[0][0])
            if len(part) > len(columns):
                columns = ['\n'.join(each[1:]) for each in parts]
    cells[0][0] = image
    return draw_grid(cells, titles, ['image', *columns], title, f'{label}, mean over heads', limits, SIGNED)


def stage_of(name: str) -> str:
    """Return the stage of a name: ``stages.0`` of ``stages.0.blocks.1.mixes.0``."""
    return name.partition('.blocks')[0]


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
        maps (dict[str, Tensor]): Result of :func:`attention_maps` or :func:`similarity_maps`. The latter has no
            queries: then there is one row, and each map's scale goes from its least value to its largest.
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB, as the network saw it.
        queries (Sequence[tuple[float]]): Queries, as for :func:`attention_maps`.
        title (str, optional): Title of the figure.
        layers (Sequence[str], optional): Layers to draw, of ``maps``. Default: up to six, evenly spread over the depth.

    Raises:
        AnalysisError: No maps, or one that is not there.
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
    """Build a row for each query, or a single one for maps ``(heads, H, W)``, which have none."""
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
    """Choose ``count`` names from the first to the last, evenly spread; some twice if there are fewer."""
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
