"""Statistics of attention per layer: dependence on the query, difference of heads, sparsity.

The claims behind FCViT (arXiv 2212.12552, section 3.1 and figure 1) in numbers: in deep layers of a Vision Transformer
the attention map is nearly the same for all queries, and few tokens have most of its weight.

The measures only use the rows and columns of the patches in each layer's attention; the weight on class tokens,
registers and padding is a separate measure (``other_share``). The measures:

``query_cosine``
    Cosine similarity of the maps of two queries, mean over all pairs of different queries (within a window, for Swin),
    heads and images. 1: all queries have the same map, the query is irrelevant.
``query_divergence``
    Jensen-Shannon divergence of the maps of all queries (Lin 1991, equal weights): entropy of their mean minus the
    mean of their entropies, divided by its upper bound, the logarithm of the number of queries or tokens, whichever is
    less. Mean over heads and images. 0: all maps are the same; 1: no two queries attend to the same token.
``head_cosine``, ``head_divergence``
    The same between the heads' maps of one query, mean over queries and images.
``entropy``
    Entropy of a map divided by its upper bound, the logarithm of the number of tokens. 1: uniform; 0: one token has
    all the weight. Mean over queries, heads and images.
``top_share``
    Fraction of a map's weight on the tenth of the tokens (rounded up) with the largest weights. 0.1 where weight is
    uniform, 1 at most. Mean over queries, heads and images.
``other_share``
    Fraction of the patches' attention that goes to tokens other than patches.

Divergence, entropy and shares need distributions, for which they use ``|w| / sum |w|``. For a softmax these are the
weights themselves; AttnScale, talking heads and FCViT's similarity have negative weights, which count by their
magnitude. Cosines use the signed weights.

FCViT's similarity is one map per head for the complete image: there is no query. Its ``query_cosine`` of 1 and
``query_divergence`` of 0 follow from the construction, are not measured, and are marked as such.
"""

import math
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch import Tensor

from .attention import Attention, attention_layers, collect_attention, collect_similarity, similarity_layers
from .plots import COLORS, SMALL, draw_lines, new_figure
from .recording import AnalysisError, as_batch, describe

#: Fraction of the tokens whose weight ``top_share`` measures.
TOP = 0.1
#: Measures, their axis label in plots, and how to read them.
MEASURES = {
    'query_cosine': ('cosine between queries', '1: the query is irrelevant'),
    'head_cosine': ('cosine between heads', '1: all heads alike'),
    'entropy': ('entropy / its upper bound', '1: uniform, 0: one token'),
    'query_divergence': ('divergence between queries', '0: the query is irrelevant'),
    'head_divergence': ('divergence between heads', '0: all heads alike'),
    'top_share': ('weight on top 10 % of tokens', '0.1: uniform'),
    'other_share': ('weight on tokens other than patches', ''),
}
#: Measures of FCViT that do not depend on its weights.
BY_CONSTRUCTION = {'query_cosine': 1.0, 'query_divergence': 0.0, 'other_share': 0.0}


class Statistics(NamedTuple):
    """Measures of a network by layer.

    Attributes:
        kind (str): ``'attention'`` or ``'similarity'``.
        layers (dict[str, dict[str, float]]): Measures, as the module describes them, by layer. NaN where there is
            nothing to compare: a single head, or a single token.
        by_construction (tuple[str]): Measures that were not measured but follow from the network's definition.
        images (int): Number of images that the means are over.
    """

    kind: str
    layers: Dict[str, Dict[str, float]]
    by_construction: Tuple[str, ...]
    images: int


def attention_statistics(model: nn.Module, image: Tensor, layers: Optional[Sequence[str]] = None) -> Statistics:
    """Measure query irrelevance, difference of heads and sparsity, per layer, of attention or of FCViT's similarity.

    Args:
        model (nn.Module): A transformer or an FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalized; of a batch the mean.
        layers (Sequence[str], optional): Names of layers, or their beginnings. Default: all.

    Raises:
        AnalysisError: The network has neither, no such layer, or an image that the network does not accept.
    """
    image = as_batch(model, image)
    if has_layers(similarity_layers, model):
        maps = collect_similarity(model, image, layers)
        return Statistics(
            'similarity',
            {name: of_similarity(values) for name, values in maps.items()},
            tuple(BY_CONSTRUCTION),
            len(image),
        )
    if has_layers(attention_layers, model):
        return Statistics('attention', collect_attention(model, image, layers, of_attention), (), len(image))
    raise AnalysisError(
        f'{describe(model)} has neither attention nor similarity maps, expected a ViT or DeiT of timm or mmpretrain, '
        'ViT, CaiT, Swin, or an FCViT with weighted=True'
    )


def has_layers(find: Callable[[nn.Module], Dict[str, nn.Module]], model: nn.Module) -> bool:
    """Check whether ``find`` finds layers in a network."""
    try:
        find(model)
    except AnalysisError:
        return False
    return True


def of_similarity(similarity: Tensor) -> Dict[str, float]:
    """Compute the measures of one layer's similarity, ``(B, heads, H, W)``."""
    maps = similarity.flatten(2)
    shares = magnitude_shares(maps)
    measured = dict(
        head_cosine=pairwise_cosine(maps),
        head_divergence=divergence(shares),
        entropy=entropy(shares),
        top_share=top_share(shares),
    )
    return in_order({**BY_CONSTRUCTION, **{name: values.mean().item() for name, values in measured.items()}})


def of_attention(attention: Attention) -> Dict[str, float]:
    """Compute the measures of one layer's attention: means over its windows that contain at least two patches."""
    patches = attention.positions >= 0
    found: List[Tuple[int, Dict[str, float]]] = []
    for pattern in patches.unique(dim=0):
        windows = (patches == pattern).all(1)
        if pattern.sum() < 2:
            continue
        rows = attention.weights[:, windows][..., pattern, :].flatten(0, 1).double()  # (G, heads, n, N)
        weights = rows[..., pattern]
        shares = magnitude_shares(weights)
        measured = dict(
            query_cosine=pairwise_cosine(weights),
            query_divergence=divergence(shares),
            head_cosine=pairwise_cosine(weights.transpose(1, 2)),
            head_divergence=divergence(shares.transpose(1, 2)),
            entropy=entropy(shares),
            top_share=top_share(shares),
            other_share=1 - weights.abs().sum(-1) / rows.abs().sum(-1).clamp(min=1e-30),
        )
        found.append((len(rows), {name: values.mean().item() for name, values in measured.items()}))
    total = sum(count for count, _ in found)
    return in_order(
        {name: sum(count * values[name] for count, values in found) / total if total else math.nan for name in MEASURES}
    )


def in_order(measured: Dict[str, float]) -> Dict[str, float]:
    """Return measures in the order of ``MEASURES``."""
    return {name: measured[name] for name in MEASURES}


def mean_statistics(each: Sequence[Statistics]) -> Statistics:
    """Average statistics of the same network for several images, which may differ in size.

    Raises:
        AnalysisError: They are of different networks or layers, or there are none.
    """
    if not each or len({(one.kind, tuple(one.layers)) for one in each}) != 1:
        raise AnalysisError(
            f'{len(each)} statistics, expected one or more, all of the same layers of one network: average each '
            'network by itself'
        )
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


def magnitude_shares(weights: Tensor) -> Tensor:
    """Compute ``|w| / sum |w|`` over the last axis, ``(..., M)`` to the same; uniform where all are 0."""
    size = weights.abs()
    total = size.sum(-1, keepdim=True)
    return torch.where(total > 0, size / total.clamp(min=1e-30), torch.full_like(size, 1 / size.shape[-1]))


def pairwise_cosine(vectors: Tensor) -> Tensor:
    """Compute the mean cosine similarity over all pairs of different vectors.

    Args:
        vectors (Tensor): ``(..., K, M)``, K vectors.

    Returns:
        Tensor: ``(...)``, from -1 to 1; NaN for a single vector. A vector of zeros counts as orthogonal to all.
    """
    count = vectors.shape[-2]
    units = nn.functional.normalize(vectors, dim=-1)
    # Without forming the pairs: |sum of unit vectors|^2 counts each pair twice, and every vector with itself.
    pairs = units.sum(-2).square().sum(-1) - units.square().sum((-2, -1))
    return pairs / (count * (count - 1)) if count > 1 else torch.full_like(pairs, math.nan)


def entropy_in_nats(shares: Tensor) -> Tensor:
    """Compute the entropy over the last axis, in nats: ``(..., M)`` to ``(...)``."""
    return -torch.special.xlogy(shares, shares).sum(-1)


def entropy(shares: Tensor) -> Tensor:
    """Compute the entropy divided by its upper bound ``log M``: ``(..., M)`` to ``(...)``; NaN for ``M = 1``."""
    bound = math.log(shares.shape[-1]) or math.nan
    return entropy_in_nats(shares) / bound


def divergence(shares: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence of ``K`` distributions divided by its upper bound ``log min(K, M)``.

    Args:
        shares (Tensor): ``(..., K, M)``, each of the K summing to 1.

    Returns:
        Tensor: ``(...)``, from 0 to 1; NaN for a single distribution or a single value.
    """
    bound = math.log(min(shares.shape[-2:])) or math.nan
    return (entropy_in_nats(shares.mean(-2)) - entropy_in_nats(shares).mean(-1)).clamp(min=0) / bound


def top_share(shares: Tensor) -> Tensor:
    """Sum the largest ``ceil(TOP * M)`` values: ``(..., M)`` to ``(...)``."""
    return shares.topk(math.ceil(TOP * shares.shape[-1]), dim=-1).values.sum(-1)


# -- figure ----------------------------------------------------------------------------------------------------------


def draw_statistics(statistics: Dict[str, Statistics], title: Optional[str] = None) -> Figure:
    """Draw measures by layer, a line per network; measures that hold by construction are dotted, without markers.

    Args:
        statistics (dict[str, Statistics]): Statistics by name of the network.
        title (str, optional): Title of the figure.
    """
    if not statistics or len(statistics) > len(COLORS):
        raise AnalysisError(
            f'{len(statistics)} networks, expected 1 to {len(COLORS)}, the number of distinguishable colors'
        )
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
