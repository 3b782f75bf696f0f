"""Similarity maps of FCViT: the weights of its global contexts at each position.

Source: arXiv 2212.12552, figure 3.
"""

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch import Tensor

from ..deprecation import renamed_in
from .attention import collect_similarity
from .plots import OPACITY, draw_grid, overlay, short_name
from .recording import AnalysisError, as_single

#: Maximum number of maps per row of a figure; even, so that a block's two mixes stay together.
MAX_COLUMNS = 12
#: Fraction of the values that are clipped to the first or last color, so that single peaks do not determine the scale.
CLIPPED = 0.02
#: Diverging colormap, because similarity has a sign: orange adds the context vector, purple subtracts it.
SIGNED = 'PuOr_r'


def similarity_maps(model: nn.Module, image: Tensor, blocks: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Compute the similarity of each position of an image to the image's mean, which weights FCViT's context vectors.

    Args:
        model (nn.Module): An FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(1, 3, H, W)``, resized and normalized.
        blocks (Sequence[str], optional): ``stages.0.blocks.1.mixes.0`` for one token mix, or the beginning of several
            names: ``stages.0.blocks.1``, ``stages.3``. Default: all.

    Returns:
        dict[str, Tensor]: ``(heads, H_i, W_i)`` by name, float32: normalized over heads and positions to mean 0 and
        standard deviation 1, then rescaled per head as trained. Negative where the context vector is subtracted.

    Raises:
        AnalysisError: Not an FCViT, no such block, or an image that the network does not accept.
    """
    found = collect_similarity(model, as_single(model, image), blocks)
    return {name: values[0] for name, values in found.items()}


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


__getattr__ = renamed_in(__name__)
