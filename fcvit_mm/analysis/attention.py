"""Attention and similarity of a network's layers, computed by its own modules from their recorded inputs.

Networks of any package provide them by methods of their modules, which need not inherit from classes of this package:

``attention_matrix(...)``
    of an attention module, with the arguments of its ``forward``: the attention matrix ``(B, heads, N, N)``, or
    ``(B * windows, heads, N, N)`` of attention within windows. Fused attention never forms the matrix, so it is
    computed separately.
``window_positions(x)``
    of the block around attention within windows, with the block's input: the positions of the tokens of each window,
    ``(windows, N)``, and the height and width of the map (see ``positions`` and ``grid`` of :class:`Attention`).
``similarity(x)``
    of a module that adds one context vector everywhere, weighted by the similarity of each position to the image's
    mean, as FCViT's does, with the module's input: ``(B, heads, H, W)``. If its attribute ``weighted`` is ``False``, it
    does not use the similarity.

A subclass that overrides ``forward`` must override the method, too; otherwise the method is not used, because its maps
might be wrong. Attention modules of timm and mmpretrain have no such method; :mod:`.libraries` provides it for them.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from .libraries import AttentionFunction, attention_functions
from .recording import (
    AnalysisError,
    backbone_of,
    count_extra_tokens,
    describe,
    recording,
    recording_grid,
    recording_inputs,
    run_backbone,
    select,
)


class Attention(NamedTuple):
    """Attention of one layer.

    Attributes:
        weights (Tensor): ``(B, windows, heads, queries, keys)``; one window if attention is global. Rows sum to 1 and
            are not negative, except for AttnScale, with which weights below the mean may be negative, and talking
            heads, which are mixed after the softmax.
        positions (Tensor): ``(windows, N)``: position of a token in the grid of patches, ``row * W + column``; -1 for
            class tokens and padding.
        grid (tuple[int, int]): ``(H, W)`` of that grid.
    """

    weights: Tensor
    positions: Tensor
    grid: Tuple[int, int]


def method_of_forward(module: nn.Module, name: str) -> Optional[Callable[..., Any]]:
    """Return a module's method; ``None`` if it has none, or if a subclass overrides ``forward`` but not the method."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            method: Callable[..., Any] = getattr(module, name)
            return method
        if 'forward' in vars(cls):
            return None
    return None


# -- similarity ------------------------------------------------------------------------------------------------------


def similarity_layers(model: nn.Module) -> Dict[str, nn.Module]:
    """Find the modules that weight by similarity (FCViT's global contexts), by the names of their token mixes.

    A block of FCViT has two: ``stages.0.blocks.1.mixes.0`` and ``.mixes.1``.

    Raises:
        AnalysisError: The network has none.
    """
    found = {
        name.replace('.token_mixer', '').replace('.global_context', ''): module
        for name, module in backbone_of(model).named_modules()
        if method_of_forward(module, 'similarity') and getattr(module, 'weighted', True)
    }
    if not found:
        raise AnalysisError(
            f'{describe(model)} has no similarity maps, expected an FCViT with global_context=True and weighted=True; '
            'a transformer has attention maps'
        )
    return found


@torch.no_grad()
def collect_similarity(model: nn.Module, image: Tensor, blocks: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Compute the similarity of each position to the image's mean, which weights the global contexts of an FCViT.

    It is normalized over heads and positions together, then rescaled per head (arXiv 2212.12552, section 3.3). Its mean
    over both is near 0 unless the trained rescaling shifts it.

    Args:
        model (nn.Module): An FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalized.
        blocks (Sequence[str], optional): Names as of :func:`similarity_layers`, or their beginnings. Default: all.

    Returns:
        dict[str, Tensor]: ``(B, heads, H_i, W_i)`` in float32, by name.

    Raises:
        AnalysisError: Not an FCViT, no such block, or an image that the network does not accept.
    """
    layers = similarity_layers(model)
    chosen = {name: layers[name] for name in select(tuple(layers), blocks, 'token mix')}
    with recording(chosen, lambda name, module, args, kwargs, output: module.similarity(args[0])) as values:
        run_backbone(model, image)
    return values


# -- attention -------------------------------------------------------------------------------------------------------


def attention_function(module: nn.Module, others: Mapping[type, AttentionFunction]) -> Optional[AttentionFunction]:
    """Return the function that computes a module's attention matrix from the arguments of its ``forward``.

    Args:
        module (nn.Module): Any module.
        others (Mapping[type, callable]): Functions for modules without ``attention_matrix``, as from
            :func:`~.libraries.attention_functions`.

    Returns:
        callable, optional: ``None`` for a module whose attention matrix cannot be computed.
    """
    method = method_of_forward(module, 'attention_matrix')
    if method is not None:
        return method
    definer = next(cls for cls in type(module).__mro__ if 'forward' in vars(cls))
    return partial(others[definer], module) if definer in others else None


def attention_layers(model: nn.Module) -> Dict[str, nn.Module]:
    """Find self-attention modules that expose their matrix, keyed by block name.

    CaiT's class attention is not among them: its only query is the class token.

    Raises:
        AnalysisError: The network has none.
    """
    others = attention_functions()
    found = {
        name.rpartition('.')[0]: module
        for name, module in backbone_of(model).named_modules()
        if attention_function(module, others)
    }
    if not found:
        raise AnalysisError(
            f'{describe(model)} has no attention maps that can be computed, expected a ViT or DeiT of timm or '
            'mmpretrain, ViT, CaiT or Swin, or attention modules with a method attention_matrix; an FCViT has '
            'similarity maps'
        )
    return found


@torch.no_grad()
def collect_attention(
    model: nn.Module,
    image: Tensor,
    layers: Optional[Sequence[str]] = None,
    reduce: Callable[[Attention], Any] = lambda attention: attention,
) -> Dict[str, Any]:
    """Compute the attention of each layer from its recorded input.

    Args:
        model (nn.Module): A transformer, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalized.
        layers (Sequence[str], optional): Names as of :func:`attention_layers`, or their beginnings. Default: all.
        reduce (callable): Applied to each layer's :class:`Attention` immediately, so that only one matrix is in memory;
            its size grows with the fourth power of the image's side.

    Returns:
        dict: Results of ``reduce`` by name of the layer.

    Raises:
        AnalysisError: No such transformer or layer, or an image that the network does not accept.
    """
    backbone, found, others = backbone_of(model), attention_layers(model), attention_functions()
    chosen = {name: found[name] for name in select(tuple(found), layers, 'attention layer')}
    blocks = {name: backbone.get_submodule(name) for name in chosen}
    windowed: Dict[str, Any] = {name: block for name, block in blocks.items() if hasattr(block, 'window_positions')}

    def take(name: str, module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], output: Any) -> Any:
        function = attention_function(module, others)
        assert function is not None  # attention_layers only returns modules that have one
        weights = function(*args, **kwargs).float()
        if name in windowed:
            positions, grid = windowed[name].window_positions(block_inputs[name])
            return reduce(Attention(weights.unflatten(0, (-1, len(positions))), positions, grid))
        tokens = weights.shape[-1]
        extra = count_extra_tokens(model, tokens, grids.get('grid'))
        positions = torch.arange(tokens, device=weights.device)[None] - extra
        return reduce(Attention(weights[:, None], positions.clamp(min=-1), grids['grid']))

    with ExitStack() as stack:
        grids = stack.enter_context(recording_grid(backbone))
        block_inputs = stack.enter_context(recording_inputs(windowed))
        values = stack.enter_context(recording(chosen, take))
        run_backbone(model, image)
    return values
