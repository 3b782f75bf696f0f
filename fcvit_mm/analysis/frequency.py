"""Oversmoothing: high-frequency energy of feature maps, and similarity of tokens, by layer.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
OpenReview O476oWmiNNp, section 2. Of ``N`` tokens ``x``, with ``F`` the discrete Fourier transform over the tokens,
``DC(x) = F^-1 diag(1, 0, ..., 0) F x`` keeps the zero frequency, which is the tokens' mean at every position, and
``HC(x) = x - DC(x)`` all others. Their measure per layer is ``log(|HC(x)| / |DC(x)|)`` with Frobenius norms. By
Parseval's theorem that is half the logarithm of the ratio of the energies at these frequencies. In a network that
oversmooths, it decreases with depth towards minus infinity: its tokens become equal.

The paper uses all tokens. Here class, distillation and register tokens are excluded, so that networks with and
without them can be compared, and the rest is a map with frequencies in two dimensions.
"""

from statistics import fmean
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from .plots import COLORMAP, SMALL, draw_grid, draw_lines, new_figure
from .recording import AnalysisError, collect_features
from .statistics import pairwise_cosine

#: Resolution of float64. Energies and amplitudes below this fraction of the largest are raised to it, so that
#: logarithms stay finite: a log ratio lies within -36.04 and 36.04.
RESOLUTION = torch.finfo(torch.float64).eps
#: Layers side by side in a figure of spectra.
COLUMNS = 8


class LayerFrequencies(NamedTuple):
    """Result of :func:`oversmoothing` for one layer: means over the images.

    Attributes:
        grid (tuple[int]): Height and width of its map, for the first image.
        log_ratio (float): ``log(|HC| / |DC|)``.
        high_share (float): Fraction of the energy at high frequencies, 0 to 1: ``|HC|^2 / (|HC|^2 + |DC|^2)``.
        cosine (float): Mean cosine similarity of two different tokens.
        spectrum (Tensor): ``(H, W)``, see :func:`log_spectrum`; for images of other sizes, resampled to the first's.
        profile (Tensor): See :func:`ring_profile`.
    """

    grid: Tuple[int, int]
    log_ratio: float
    high_share: float
    cosine: float
    spectrum: Tensor
    profile: Tensor


def energies(maps: Tensor) -> Tuple[Tensor, Tensor]:
    """Compute the energy of the mean over the positions and of the rest, ``|DC|^2`` and ``|HC|^2``, of each image.

    Args:
        maps (Tensor): ``(B, C, H, W)``.

    Returns:
        tuple[Tensor, Tensor]: ``(B, )`` in float64 each; sums over channels and positions.
    """
    tokens = maps.double().flatten(2)
    mean = tokens.mean(2, keepdim=True)
    low = tokens.shape[2] * mean.square().sum((1, 2))
    return low, (tokens - mean).square().sum((1, 2))


def log_ratio(maps: Tensor) -> Tensor:
    """Compute ``log(|HC| / |DC|)`` of each image, natural logarithm (OpenReview O476oWmiNNp, section 2).

    -36.04 where all positions are equal, 36.04 where their mean is zero; 0 for a map of zeros.

    Args:
        maps (Tensor): ``(B, C, H, W)``.

    Returns:
        Tensor: ``(B, )``.
    """
    low, high = energies(maps)
    least = (RESOLUTION**2 * (low + high)).clamp(min=torch.finfo(torch.float64).tiny)
    return (high.maximum(least).log() - low.maximum(least).log()) / 2


def high_share(maps: Tensor) -> Tensor:
    """Compute the fraction of each image's energy at high frequencies: ``(B, C, H, W)`` to ``(B, )``; 0 for zeros."""
    low, high = energies(maps)
    return high / (low + high).clamp(min=torch.finfo(torch.float64).tiny)


def token_cosine(maps: Tensor) -> Tensor:
    """Compute the mean cosine similarity of the features at two different positions, of each image.

    ``sum over i != j of cos(x_i, x_j) / (N (N - 1))``; a position of zeros has similarity 0 to all. It is the measure
    of Gong et al., "Vision Transformers with Patch Diversification", arXiv 2104.12753, section 3, without the magnitude
    taken of each cosine. 1: all have the same direction. NaN for a single position.

    Args:
        maps (Tensor): ``(B, C, H, W)``.

    Returns:
        Tensor: ``(B, )`` in float64.
    """
    return pairwise_cosine(maps.double().flatten(2).transpose(1, 2))


def log_spectrum(maps: Tensor) -> Tensor:
    """Compute the log amplitude at each frequency, relative to frequency zero; mean over channels and images.

    Source: Park and Kim, "How Do Vision Transformers Work?", arXiv 2202.06709, section 3.1 (relative log amplitude).

    Args:
        maps (Tensor): ``(B, C, H, W)``.

    Returns:
        Tensor: ``(H, W)`` in float64, natural logarithm. Frequency zero, whose value is 0, is in the middle
        (``[H // 2, W // 2]``); the edges are half a cycle per position, that is pi.
    """
    amplitude = torch.fft.fft2(maps.double()).abs()
    largest = amplitude.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    spectrum = amplitude.maximum(RESOLUTION * largest).log().mean((0, 1))
    return torch.fft.fftshift(spectrum - spectrum[0, 0])


def ring_profile(spectrum: Tensor) -> Tensor:
    """Average a centred spectrum over the frequencies of equal magnitude.

    The magnitude is the larger of the two directions', so that rings are squares and each frequency is in one.

    Args:
        spectrum (Tensor): ``(H, W)``.

    Returns:
        Tensor: ``(min(H, W) // 2 + 1, )``, in equal steps from frequency zero to pi.
    """
    rings = min(spectrum.shape) // 2 + 1
    rows, columns = (torch.fft.fftshift(torch.fft.fftfreq(side)).abs() for side in spectrum.shape)
    index = (2 * torch.maximum(rows[:, None], columns) * (rings - 1)).round().long().flatten()
    sums = torch.zeros(rings, dtype=spectrum.dtype).index_add_(0, index, spectrum.cpu().flatten())
    return sums / index.bincount(minlength=rings)


def oversmoothing(
    model: nn.Module, images: Iterable[Tensor], layers: Optional[Sequence[str]] = None
) -> Dict[str, LayerFrequencies]:
    """Measure the frequencies in the feature maps of a network's layers.

    Args:
        model (nn.Module): A backbone, or a classifier, detector or segmentor with one, or a model of timm.
        images (Iterable[Tensor]): ``(3, H, W)`` or ``(B, 3, H, W)`` each, normalized; their sizes may differ.
        layers (Sequence[str], optional): Names of modules in the backbone. Default: its blocks.

    Returns:
        dict[str, LayerFrequencies]: Frequencies by layer, in the order in which the layers run.

    Raises:
        AnalysisError: No such layer, an image that the network does not take, or no images.
    """
    found: Dict[str, List[LayerFrequencies]] = {}
    for image in images:
        for name, maps in collect_features(model, image, layers).items():
            spectrum = log_spectrum(maps)
            found.setdefault(name, []).append(
                LayerFrequencies(
                    (maps.shape[2], maps.shape[3]),
                    log_ratio(maps).mean().item(),
                    high_share(maps).mean().item(),
                    token_cosine(maps).mean().item(),
                    spectrum,
                    spectrum,
                )
            )
    if not found:
        raise AnalysisError('no images given, expected at least one: give image files or a folder of images')
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: List[LayerFrequencies]) -> LayerFrequencies:
    """Average the results for several images of one layer."""
    grid = values[0].grid
    # The axes are frequencies from -pi to pi for every size.
    spectra = [
        value.spectrum
        if value.grid == grid
        else F.interpolate(value.spectrum[None, None], grid, mode='bilinear', align_corners=False)[0, 0]
        for value in values
    ]
    spectrum = torch.stack(spectra).mean(0).cpu()
    log_ratios, shares, cosines = zip(*((value.log_ratio, value.high_share, value.cosine) for value in values))
    return LayerFrequencies(grid, fmean(log_ratios), fmean(shares), fmean(cosines), spectrum, ring_profile(spectrum))


def describe_frequencies(found: Dict[str, LayerFrequencies]) -> List[Dict[str, Any]]:
    """Return the numbers of :func:`oversmoothing` for a JSON file, one row per layer."""
    return [
        dict(
            layer=name,
            grid=layer.grid,
            log_ratio=layer.log_ratio,
            high_share=layer.high_share,
            token_cosine=layer.cosine,
            relative_log_amplitude=layer.profile,
        )
        for name, layer in found.items()
    ]


def draw_oversmoothing(networks: Dict[str, Dict[str, LayerFrequencies]]) -> Figure:
    """Draw high-frequency energy, token similarity and the highest frequencies by layer, one line per network.

    Args:
        networks (dict[str, dict]): Results of :func:`oversmoothing`, by the names for the legend.
    """
    panels: Tuple[Tuple[str, str, Callable[[LayerFrequencies], float]], ...] = (
        ('log(|HC| / |DC|)', 'High-frequency energy', lambda layer: layer.log_ratio),
        ('cosine similarity', 'Similarity of tokens', lambda layer: layer.cosine),
        ('log amplitude, relative to frequency 0', 'Highest frequencies', lambda layer: layer.profile[-1].item()),
    )
    figure = new_figure(10.5, 3.5 if len(networks) > 1 else 3.2)
    for axes, (ylabel, title, value) in zip(figure.subplots(1, 3), panels):
        draw_lines(
            axes,
            {label: [value(layer) for layer in found.values()] for label, found in networks.items()},
            ylabel,
            'block',
            title,
            legend=False,
        )
        for place in _stage_ends(next(iter(networks.values()))):
            axes.axvline(place, color='#999999', linewidth=0.8, linestyle=':', zorder=0.5)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(len(labels), 4), frameon=False, fontsize=SMALL)
    return figure


def _stage_ends(found: Dict[str, LayerFrequencies]) -> List[float]:
    """Return the positions on the axis of layers, counted from 1, at which the map size changes."""
    grids = [layer.grid for layer in found.values()]
    return [i + 0.5 for i in range(1, len(grids)) if grids[i] != grids[i - 1]]


def draw_spectra(found: Dict[str, LayerFrequencies], title: Optional[str] = None) -> Figure:
    """Draw the centred spectra of a network's layers, in rows by stage.

    Args:
        found (dict[str, LayerFrequencies]): Result of :func:`oversmoothing`.
        title (str, optional): Title of the figure.
    """
    rows: List[List[Tensor]] = []
    titles = []
    for stage, layers in _by_stage(found).items():
        for start in range(0, len(layers), COLUMNS):
            rows.append([found[name].spectrum for name in layers[start : start + COLUMNS]])
            height, width = found[layers[start]].grid
            blocks = f'blocks {start + 1} to {start + len(rows[-1])}'
            titles.append(f'{stage}{blocks}\n{height} x {width}')
    return draw_grid(rows, titles, title=title, label='log amplitude, relative to frequency 0', colormap=COLORMAP)


def _by_stage(found: Dict[str, LayerFrequencies]) -> Dict[str, List[str]]:
    """Group the names of layers by stage, with the prefix of its title: 'stage 1, ', or '' if there is only one."""
    lists: Dict[str, List[str]] = {}
    for name in found:
        lists.setdefault(name.rpartition('.')[0], []).append(name)
    return {f'stage {i + 1}, ' if len(lists) > 1 else '': names for i, names in enumerate(lists.values())}
