"""Effective receptive field: which pixels a position of a feature map depends on, and how much on each.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016,
arXiv 1701.04128, section 2: the gradient of the centre position of a layer's output, with 1 at each of its channels and
0 elsewhere, with respect to the input. Its magnitude, summed over the input channels and averaged over images, is
the map here; divided by its sum, the mass of each pixel.
"""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .plots import COLORMAP, COLORS, MARKERS, SMALL, TEXT, TITLE, new_figure, short_name, style_axes
from .recording import (
    AnalysisError,
    as_single,
    collect_features,
    describe,
    find_layers,
    recording_features,
    run_backbone,
)

#: Fractions of the mass whose squares are reported.
SHARES = (0.5, 0.95)
#: Number of layers, evenly spread, for a network of a single stage.
SINGLE_STAGE_LAYERS = 4
#: Values below this fraction of a map's largest value have the darkest color.
FLOOR = 1e-4


class Square(NamedTuple):
    """A square in an image: its first row and column, and its side in pixels."""

    top: int
    left: int
    side: int


class ReceptiveField(NamedTuple):
    """Result of :func:`receptive_fields` for one layer.

    Attributes:
        mass (np.ndarray): ``(H, W)`` of the input, sums to 1.
        grid (tuple[int]): Height and width of the layer's map.
        position (tuple[int]): Row and column in that map of the position whose gradient was computed.
        shares (np.ndarray): ``[s - 1]`` is the largest fraction of the mass in any square of side ``s``.
        squares (dict[float, Square]): The smallest square that holds each fraction of ``SHARES``.
        reach (tuple[int]): Height and width of the smallest rectangle outside which the gradient is 0.
    """

    mass: np.ndarray
    grid: Tuple[int, int]
    position: Tuple[int, int]
    shares: np.ndarray
    squares: Dict[float, Square]
    reach: Tuple[int, int]


def stage_layers(names: Sequence[str]) -> Tuple[str, ...]:
    """Choose the last block of each stage, or four blocks, evenly spread, of a network of a single stage."""
    last = {name.rpartition('.')[0]: name for name in names}
    if len(last) > 1:
        return tuple(last.values())
    count = min(SINGLE_STAGE_LAYERS, len(names))
    return tuple(names[len(names) * (i + 1) // count - 1] for i in range(count))


def square_shares(mass: np.ndarray) -> Tuple[np.ndarray, List[Tuple[int, int]]]:
    """Find, for each side, the position of the square that holds the largest fraction of a map.

    Args:
        mass (np.ndarray): ``(H, W)``, not negative.

    Returns:
        tuple[np.ndarray, list[tuple[int, int]]]: For the sides 1 to ``max(H, W)`` the fraction of the mass, and the row
        and column of the square's first pixel. Of a square larger than the image, the part inside counts.
    """
    side = max(mass.shape)
    padded = np.zeros((side + 1, side + 1))
    padded[1 : mass.shape[0] + 1, 1 : mass.shape[1] + 1] = mass / mass.sum()
    table = padded.cumsum(0).cumsum(1)  # the sum of any rectangle from its four corners
    shares = np.empty(side)
    corners: List[Tuple[int, int]] = []
    for s in range(1, side + 1):
        sums = table[s:, s:] - table[:-s, s:] - table[s:, :-s] + table[:-s, :-s]
        corner = np.unravel_index(sums.argmax(), sums.shape)
        shares[s - 1] = sums[corner]
        corners.append((int(corner[0]), int(corner[1])))
    return shares, corners


def receptive_fields(
    model: nn.Module, images: Iterable[Tensor], layers: Optional[Sequence[str]] = None
) -> Dict[str, ReceptiveField]:
    """Compute the effective receptive fields of the centre of layers' maps.

    Args:
        model (nn.Module): A backbone, or a classifier, detector or segmentor with one, or a model of timm.
        images (Iterable[Tensor]): ``(3, H, W)`` or ``(1, 3, H, W)`` each, normalized, all of one size.
        layers (Sequence[str], optional): Names of modules in the backbone, preferably not the output of a norm over
            the channels, which removes their sum, whose gradient this is. Default: those of :func:`stage_layers`.

    Returns:
        dict[str, ReceptiveField]: Receptive fields by layer, in the order in which the layers run.

    Raises:
        AnalysisError: No such layer, a layer whose output is no map or does not depend on the input, images of several
            sizes, or no images.
    """
    sums: Dict[str, Tensor] = {}
    grids: Dict[str, Tuple[int, int]] = {}
    size = None
    for image in images:
        image = as_single(model, image).detach().clone().requires_grad_()
        size = size or image.shape
        if image.shape != size:
            raise AnalysisError(
                f'images of {tuple(size[2:])} and {tuple(image.shape[2:])} pixels (height, width), expected one size, '
                'because their maps are averaged: give a size'
            )
        if layers is None:
            layers = stage_layers(list(collect_features(model, image)))
        for name, gradient in _gradients(model, image, layers, grids).items():
            sums[name] = sums[name] + gradient if name in sums else gradient
    if size is None:
        raise AnalysisError('no images given, expected at least one: give image files or a folder of images')
    return {name: _measure(model, name, total.cpu().numpy(), grids[name]) for name, total in sums.items()}


def _gradients(
    model: nn.Module, image: Tensor, layers: Sequence[str], grids: Dict[str, Tuple[int, int]]
) -> Dict[str, Tensor]:
    """Compute the magnitude of the gradient, ``(H, W)`` in float64, of each layer; write map sizes to ``grids``."""
    with torch.enable_grad(), recording_features(model, layers) as features:
        run_backbone(model, image)
    missing = [name for name in find_layers(model, layers) if name not in features]
    if missing:
        raise AnalysisError(
            f'{describe(model)} returns neither a map (B, C, H, W) nor patch tokens at {", ".join(missing)}: choose '
            'other layers'
        )
    found = {}
    for name, maps in features.items():
        grids[name] = (maps.shape[2], maps.shape[3])
        centre = maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
        (gradient,) = (
            torch.autograd.grad(centre, image, retain_graph=True, allow_unused=True)
            if centre.requires_grad
            else (None,)
        )
        if gradient is None:
            raise AnalysisError(f'{name} of {describe(model)} does not depend on the image: choose another layer')
        found[name] = gradient[0].double().abs().sum(0)
    return found


def _measure(model: nn.Module, name: str, mass: np.ndarray, grid: Tuple[int, int]) -> ReceptiveField:
    """Measure the extent of a gradient's magnitude ``(H, W)``."""
    if not 0 < mass.sum() < np.inf:
        raise AnalysisError(
            f'the gradients of {name} of {describe(model)} add up to {mass.sum()} in magnitude, expected a '
            'positive finite number: choose another layer'
        )
    mass = mass / mass.sum()
    shares, corners = square_shares(mass)
    squares = {}
    for share in SHARES:
        index = int(np.argmax(shares >= share - 1e-9))
        squares[share] = Square(*corners[index], index + 1)
    rows, columns = np.flatnonzero(mass.any(1)), np.flatnonzero(mass.any(0))
    reach = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    return ReceptiveField(mass, grid, (grid[0] // 2, grid[1] // 2), shares, squares, reach)


def describe_fields(found: Dict[str, ReceptiveField]) -> List[Dict[str, Any]]:
    """Return the numbers of :func:`receptive_fields` for a JSON file, one row per layer; sides in input pixels."""
    return [
        dict(
            layer=name,
            grid=field.grid,
            position=field.position,
            input=field.mass.shape,
            side_of_share={f'{share:g}': square.side for share, square in field.squares.items()},
            reach=field.reach,
            share_by_side=field.shares.round(6),
        )
        for name, field in found.items()
    ]


def draw_fields(found: Dict[str, ReceptiveField], title: Optional[str] = None) -> Figure:
    """Draw the map of each layer with its squares, and the fraction of the mass by the side of the square.

    Args:
        found (dict[str, ReceptiveField]): Result of :func:`receptive_fields`.
        title (str, optional): Title of the figure.
    """
    columns = max(len(found), 2)
    figure = new_figure(2.35 * columns + 0.9, 5.4, title)
    figure.set_layout_engine('constrained', hspace=0.06)
    places = figure.add_gridspec(2, columns, height_ratios=(1, 0.95))
    maps = []
    for i, (name, field) in enumerate(found.items()):
        axes = figure.add_subplot(places[0, i])
        maps.append(axes)
        colored = axes.imshow(
            np.maximum(field.mass / field.mass.max(), FLOOR),
            cmap=COLORMAP,
            norm=LogNorm(FLOOR, 1),
            interpolation='nearest',
        )
        for square, style in zip(field.squares.values(), ('-', '--')):
            axes.add_patch(
                Rectangle(
                    (square.left - 0.5, square.top - 0.5),
                    square.side,
                    square.side,
                    fill=False,
                    edgecolor='white',
                    linewidth=1.4,
                    linestyle=style,
                )
            )
        axes.set(xticks=[], yticks=[], xlim=(-0.5, field.mass.shape[1] - 0.5), ylim=(field.mass.shape[0] - 0.5, -0.5))
        axes.set_title(f'{short_name(name)}\nmap {field.grid[0]} x {field.grid[1]}', fontsize=TEXT)
        contained = ', '.join(f'{share:.0%} in {square.side}' for share, square in field.squares.items())
        axes.set_xlabel(f'{contained} pixels', fontsize=SMALL)
    bar = figure.colorbar(colored, ax=maps, shrink=0.85, aspect=18, pad=0.01, extend='min')
    bar.set_label('gradient / its largest', fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    axes = figure.add_subplot(places[1, :])
    for i, (name, field) in enumerate(found.items()):
        sides = np.arange(1, len(field.shares) + 1)
        axes.plot(
            sides,
            100 * field.shares,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            markevery=(i, max(len(sides) // 12, 1)),
            markersize=4,
            linewidth=1.5,
            label=short_name(name),
        )
    for share, style in zip(SHARES, ('-', '--')):
        axes.axhline(100 * share, color='#666666', linewidth=0.9, linestyle=style)
    style_axes(axes, 'side of the square, pixels', 'gradient inside, %')
    axes.set_title('Smallest square that holds a part of the gradient', fontsize=TITLE)
    axes.set(ylim=(0, 102), xlim=(0, None))
    axes.legend(frameon=False, fontsize=SMALL, loc='lower right')
    return figure
