"""How much attention depends on the query, how heads differ, and how sparse it is, per layer.

The claims behind FCViT (arXiv 2212.12552, section 3.1 and figure 1) in numbers: in deep layers of a Vision Transformer
the attention map is nearly the same for all queries, and few tokens have most of its weight.

Of every layer's attention the rows and columns of the patches are taken; what class tokens, registers and padding get
is told apart (``other_share``). The measures:

``query_cosine``
    Cosine similarity of the maps of two queries, mean over all pairs of different queries (within a window, for Swin),
    heads and images. 1: all queries have the same map, the query is irrelevant.
``query_divergence``
    Jensen-Shannon divergence of the maps of all queries (Lin 1991, equal weights): entropy of their mean less the mean
    of their entropies, in parts of its upper bound, the logarithm of the number of queries or tokens, whichever is
    less. Mean over heads and images. 0: all maps are the same; 1: no two queries look at the same place.
``head_cosine``, ``head_divergence``
    The same between the heads' maps of one query, mean over queries and images.
``entropy``
    Entropy of a map in parts of its upper bound, the logarithm of the number of tokens. 1: uniform; 0: one token has
    all the weight. Mean over queries, heads and images.
``top_share``
    Part of a map's weight on the tenth of the tokens (rounded up) that has most of it. 0.1 where weight is uniform, 1
    at most. Mean over queries, heads and images.
``other_share``
    Part of the patches' attention that goes to tokens that are no patches.

Divergence, entropy and shares need parts of a whole: the magnitudes ``|w| / sum |w|``. For a softmax those are the
weights themselves; AttnScale, talking heads and FCViT's similarity have negative weights, which count by how much they
take away. Cosines are of the weights as they are.

FCViT's similarity is one map per head for the whole image: there is no query. Its ``query_cosine`` is 1 and its
``query_divergence`` 0 by construction, not by measurement, and are marked so.
"""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch import Tensor

from .plots import COLORS, SMALL, draw_lines, new_figure
from .probe import (
    AnalysisError,
    Attention,
    as_batch,
    attention_layers,
    collect_attention,
    collect_similarity,
    describe,
    similarity_layers,
)

#: Part of the tokens that ``top_share`` is of.
TOP = 0.1
#: Measures, their axis in plots, and what they say.
MEASURES = {
    'query_cosine': ('cosine between queries', '1: the query is irrelevant'),
    'head_cosine': ('cosine between heads', '1: all heads alike'),
    'entropy': ('entropy / its bound', '1: uniform, 0: one token'),
    'query_divergence': ('divergence between queries', '0: the query is irrelevant'),
    'head_divergence': ('divergence between heads', '0: all heads alike'),
    'top_share': ('weight on top 10 % of tokens', '0.1: uniform'),
    'other_share': ('weight on tokens that are no patches', ''),
}
#: What holds for FCViT whatever its weights.
BY_CONSTRUCTION = {'query_cosine': 1.0, 'query_divergence': 0.0, 'other_share': 0.0}


class Statistics(NamedTuple):
    """A network's measures by layer.

    Attributes:
        kind (str): ``'attention'`` or ``'similarity'``.
        layers (dict[str, dict[str, float]]): Measures, as the module describes them, by layer. NaN where there is
            nothing to compare: a single head, or a single token.
        by_construction (tuple[str]): Measures that were not measured but follow from how the network is made.
        images (int): Over how many the means are.
    """

    kind: str
    layers: Dict[str, Dict[str, float]]
    by_construction: Tuple[str, ...]
    images: int


def attention_statistics(model: nn.Module, image: Tensor, layers: Optional[Sequence[str]] = None) -> Statistics:
    """Query-irrelevance, difference of heads and sparsity, per layer, of attention or of FCViT's similarity.

    Args:
        model (nn.Module): A transformer or an FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalised; of a batch the mean.
        layers (Sequence[str], optional): Names of layers, or what they begin with. Default: all.

    Raises:
        AnalysisError: The network has neither, no such layer, or an image that it does not take.
    """
    image = as_batch(model, image)
    if has(similarity_layers, model):
        maps = collect_similarity(model, image, layers)
        return Statistics(
            'similarity',
            {name: of_similarity(values) for name, values in maps.items()},
            tuple(BY_CONSTRUCTION),
            len(image),
        )
    if has(attention_layers, model):
        return Statistics('attention', collect_attention(model, image, layers, of_attention), (), len(image))
    raise AnalysisError(
        f'{describe(model)} has neither attention nor similarity to measure, expected a ViT or DeiT of '
        'timm or mmpretrain, ViT, CaiT, Swin, or an FCViT that weighs by similarity'
    )


def has(layers, model: nn.Module) -> bool:
    """Whether a network has layers of a kind."""
    try:
        layers(model)
    except AnalysisError:
        return False
    return True


def of_similarity(similarity: Tensor) -> Dict[str, float]:
    """Measures of one layer's similarity, ``(B, heads, H, W)``."""
    maps = similarity.flatten(2)
    parts = magnitude_parts(maps)
    measured = dict(
        head_cosine=pairwise_cosine(maps),
        head_divergence=divergence(parts),
        entropy=entropy(parts),
        top_share=top_share(parts),
    )
    return in_order({**BY_CONSTRUCTION, **{name: values.mean().item() for name, values in measured.items()}})


def of_attention(attention: Attention) -> Dict[str, float]:
    """Measures of one layer's attention; of windows, the mean over those with two patches or more."""
    patches = attention.positions >= 0
    found: List[Tuple[int, Dict[str, float]]] = []
    for pattern in patches.unique(dim=0):
        windows = (patches == pattern).all(1)
        if pattern.sum() < 2:
            continue
        rows = attention.weights[:, windows][..., pattern, :].flatten(0, 1).double()  # (G, heads, n, N)
        weights = rows[..., pattern]
        parts = magnitude_parts(weights)
        measured = dict(
            query_cosine=pairwise_cosine(weights),
            query_divergence=divergence(parts),
            head_cosine=pairwise_cosine(weights.transpose(1, 2)),
            head_divergence=divergence(parts.transpose(1, 2)),
            entropy=entropy(parts),
            top_share=top_share(parts),
            other_share=1 - weights.abs().sum(-1) / rows.abs().sum(-1).clamp(min=1e-30),
        )
        found.append((len(rows), {name: values.mean().item() for name, values in measured.items()}))
    total = sum(count for count, _ in found)
    return in_order(
        {name: sum(count * values[name] for count, values in found) / total if total else math.nan for name in MEASURES}
    )


def in_order(measured: Dict[str, float]) -> Dict[str, float]:
    return {name: measured[name] for name in MEASURES}


def mean_statistics(each: Sequence[Statistics]) -> Statistics:
    """The mean over statistics of the same network for several images, which may differ in size.

    Raises:
        AnalysisError: They are of different networks or layers, or there are none.
    """
    if not each or len({(one.kind, tuple(one.layers)) for one in each}) != 1:
        raise AnalysisError(f'{len(each)} statistics, expected one or more of the same layers of a network')
    images = sum(one.images for one in each)
    layers = {
        name: {
            measure: sum(one.images * one.layers[name][measure] for one in each) / images
            for measure in each[0].layers[name]
        }
        for name in each[0].layers
    }
    return each[0]._replace(layers=layers, images=images)


# -- measures --------------------------------------------------------------------------------------------------------


def magnitude_parts(weights: Tensor) -> Tensor:
    """``|w| / sum |w|`` over the last axis; uniform where all are 0."""
    size = weights.abs()
    total = size.sum(-1, keepdim=True)
    return torch.where(total > 0, size / total.clamp(min=1e-30), torch.full_like(size, 1 / size.shape[-1]))


def pairwise_cosine(vectors: Tensor) -> Tensor:
    """Mean cosine similarity over all pairs of different vectors.

    Args:
        vectors (Tensor): ``(..., K, M)``, K vectors.

    Returns:
        Tensor: ``(...)``, from -1 to 1; NaN for a single vector. A vector of zeros counts as at right angles to all.
    """
    count = vectors.shape[-2]
    units = nn.functional.normalize(vectors, dim=-1)
    # The sum over pairs without the pairs: |sum of units|^2 counts each twice, and every vector with itself.
    pairs = units.sum(-2).square().sum(-1) - units.square().sum((-2, -1))
    return pairs / (count * (count - 1)) if count > 1 else torch.full_like(pairs, math.nan)


def shannon(parts: Tensor) -> Tensor:
    """Entropy over the last axis, in nats: ``(..., M)`` to ``(...)``."""
    return -torch.special.xlogy(parts, parts).sum(-1)


def entropy(parts: Tensor) -> Tensor:
    """Entropy in parts of the largest possible, ``log M``: ``(..., M)`` to ``(...)``; NaN for ``M = 1``."""
    bound = math.log(parts.shape[-1]) or math.nan
    return shannon(parts) / bound


def divergence(parts: Tensor) -> Tensor:
    """Jensen-Shannon divergence of ``K`` distributions in parts of the largest possible, ``log min(K, M)``.

    Args:
        parts (Tensor): ``(..., K, M)``, each of the K summing to 1.

    Returns:
        Tensor: ``(...)``, from 0 to 1; NaN for a single distribution or a single value.
    """
    bound = math.log(min(parts.shape[-2:])) or math.nan
    return (shannon(parts.mean(-2)) - shannon(parts).mean(-1)).clamp(min=0) / bound


def top_share(parts: Tensor) -> Tensor:
    """Sum of the largest ``ceil(TOP * M)`` values: ``(..., M)`` to ``(...)``."""
    return parts.topk(math.ceil(TOP * parts.shape[-1]), dim=-1).values.sum(-1)


# -- figure ----------------------------------------------------------------------------------------------------------


def draw_statistics(statistics: Dict[str, Statistics], title: Optional[str] = None) -> Figure:
    """Measures by layer, a line for each network; what holds by construction is dotted, without markers.

    Args:
        statistics (dict[str, Statistics]): By the networks' names.
        title (str, optional): Of the figure.
    """
    if not statistics or len(statistics) > len(COLORS):
        raise AnalysisError(f'{len(statistics)} networks, expected 1 to {len(COLORS)}, which can be told apart')
    measures = [name for name in MEASURES if name != 'other_share']
    xlabel = 'layer (of FCViT: token mix)' if any(each.by_construction for each in statistics.values()) else 'layer'
    figure = new_figure(9.6, 5.6, title)
    axes = figure.subplots(2, 3)
    for panel, measure in zip(axes.flat, measures):
        label, meaning = MEASURES[measure]
        draw_lines(
            panel,
            {name: [values[measure] for values in each.layers.values()] for name, each in statistics.items()},
            label,
            xlabel,
            meaning,
            legend=False,
        )
        for line, each in zip(panel.get_lines(), statistics.values()):
            if measure in each.by_construction:
                line.set(linestyle=':', marker='')
        least = min(0.0, *(low for low in panel.get_ylim())) if measure == 'head_cosine' else 0.0
        panel.set_ylim(least - 0.03, 1.03)
    handles = axes.flat[1].get_lines()
    figure.legend(
        handles,
        [line.get_label() for line in handles],
        loc='outside lower center',
        frameon=False,
        ncols=min(len(handles), 3),
        fontsize=SMALL + 1,
    )
    dotted = [name for name, each in statistics.items() if each.by_construction]
    if dotted:
        for panel in (axes.flat[0], axes.flat[3]):
            panel.text(
                0.5,
                0.5,
                'dotted: by construction,\nthere is no query',
                transform=panel.transAxes,
                ha='center',
                va='center',
                fontsize=SMALL,
                color='#555555',
            )
    return figure
