"""What the analyses share: run a network's backbone on an image and keep what its layers see, compute and give.

Everything is read by forward hooks, which leave the network as it is. Attention matrices are computed once more from a
layer's own input and weights, for the fused attention that networks run never forms them.
"""

import difflib
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..models.fcvit import GlobalContext

#: Names of the convolution that makes patches, in this project's transformers, timm's and mmpretrain's.
PATCH_CONVOLUTIONS = ('.stem.proj', '.patch_embed.proj', '.patch_embed.projection')
#: Blocks that pass maps with the channels last, by name, for timm is not imported here.
CHANNELS_LAST_BLOCKS = ('SwinTransformerBlock', 'SwinTransformerV2Block')
#: What a block's name ends in before its number, in order of preference: this project's, timm's and mmpretrain's
#: networks; timm's and mmpretrain's ResNets; mmpretrain's transformers.
BLOCK_LISTS = (('blocks',), ('layer1', 'layer2', 'layer3', 'layer4'), ('layers',))


class AnalysisError(UserError):
    """An analysis that does not apply to a network, or a layer or image that it has not."""


def describe(model: nn.Module) -> str:
    """A network's class, and its backbone's if it has one, for messages."""
    backbone = backbone_of(model)
    return type(model).__name__ + (f' with backbone {type(backbone).__name__}' if backbone is not model else '')


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a classifier, detector or segmentor; a model without one (timm's, a bare backbone) itself."""
    backbone = getattr(model, 'backbone', None)
    return backbone if isinstance(backbone, nn.Module) else model


def as_batch(model: nn.Module, image: Tensor) -> Tensor:
    """One normalised image ``(3, H, W)`` or a batch ``(B, 3, H, W)`` as a batch on the network's device.

    Raises:
        AnalysisError: It is neither.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim not in (3, 4):
        got = f'{image.dtype} {tuple(image.shape)}' if isinstance(image, Tensor) else type(image).__name__
        raise AnalysisError(
            f'the image is {got}, expected a floating-point tensor (3, H, W) or (B, 3, H, W), resized '
            'and normalised: load_network(...).prepare(image).image gives it'
        )
    image = image if image.ndim == 4 else image[None]
    like = next(model.parameters(), image)
    return image.to(like.device, like.dtype)


def as_single(model: nn.Module, image: Tensor) -> Tensor:
    """As :func:`as_batch`, of one image.

    Raises:
        AnalysisError: Several were given.
    """
    image = as_batch(model, image)
    if len(image) != 1:
        raise AnalysisError(f'{len(image)} images were given, expected one')
    return image


def run_backbone(model: nn.Module, image: Tensor) -> Any:
    """What the backbone gives for ``image``, in evaluation mode, which is undone afterwards; gradients as set outside.

    Raises:
        AnalysisError: The network refuses the image, for its size say.
    """
    backbone, image = backbone_of(model), as_batch(model, image)
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        return backbone(image)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise AnalysisError(
            f'{describe(model)} does not take an image of {tuple(image.shape[2:])} pixels (height, width): {error}'
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def recording(
    modules: Dict[str, nn.Module], take: Callable[[str, nn.Module, tuple, dict, Any], Any]
) -> Iterator[Dict[str, Any]]:
    """Within the context, keep a value of each module whenever it runs; the last run counts.

    Args:
        modules (dict[str, nn.Module]): By the names to keep the values under.
        take (callable): ``take(name, module, args, kwargs, output)`` gives the value; ``None`` keeps nothing.

    Yields:
        dict: Filled while the network runs, in the order in which the modules do.
    """
    values: Dict[str, Any] = {}

    def hook_of(name):
        def hook(module, args, kwargs, output):
            value = take(name, module, args, kwargs, output)
            if value is not None:
                values[name] = value

        return hook

    handles = [module.register_forward_hook(hook_of(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def select(names: Sequence[str], wanted: Optional[Sequence[str]], what: str) -> Tuple[str, ...]:
    """Names that were asked for, in the network's order.

    Args:
        names (Sequence[str]): All there are.
        wanted (Sequence[str], optional): Names, or what they begin with: ``stages.3`` stands for all in that stage.
            ``None`` for all.
        what (str): What they name, for the error.

    Raises:
        AnalysisError: One that names nothing; lists the choices.
    """
    if wanted is None:
        return tuple(names)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    chosen = set()
    for each in wanted:
        found = [name for name in names if name == each or name.startswith(f'{each}.')]
        if not found:
            raise AnalysisError(
                f'no {what} is called {each!r}, expected one of these, or what several of them begin '
                f'with: {", ".join(names)}'
            )
        chosen.update(found)
    return tuple(name for name in names if name in chosen)


# -- similarity ------------------------------------------------------------------------------------------------------


def similarity_layers(model: nn.Module) -> Dict[str, GlobalContext]:
    """The global contexts of an FCViT that weigh by similarity, by the names of the token mixes that they stand in.

    A block has two: ``stages.0.blocks.1.mixes.0`` and ``.mixes.1``.

    Raises:
        AnalysisError: The network has none.
    """
    found = {
        name.replace('.token_mixer', '').rpartition('.global_context')[0]: module
        for name, module in backbone_of(model).named_modules()
        if isinstance(module, GlobalContext) and module.weighted
    }
    if not found:
        raise AnalysisError(
            f'{describe(model)} has no similarity to show, expected an FCViT with global_context=True '
            'and weighted=True; a transformer has attention maps'
        )
    return found


@torch.no_grad()
def collect_similarity(model: nn.Module, image: Tensor, blocks: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Similarity of each position to the image's mean, as the global contexts of an FCViT weigh with it.

    Normalised over heads and positions together, then rescaled per head (arXiv 2212.12552, section 3.3): its mean over
    both is near 0 unless the rescaling was trained away from that.

    Args:
        model (nn.Module): An FCViT, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalised.
        blocks (Sequence[str], optional): Names as of :func:`similarity_layers`, or their beginnings. Default: all.

    Returns:
        dict[str, Tensor]: ``(B, heads, H_i, W_i)`` in float32, by name.

    Raises:
        AnalysisError: No FCViT, no such block, or an image that it does not take.
    """
    layers = similarity_layers(model)
    chosen = select(tuple(layers), blocks, 'token mix')
    with recording(
        {name: layers[name] for name in chosen}, lambda name, module, args, kwargs, output: module.similarity(args[0])
    ) as values:
        run_backbone(model, image)
    return values


# -- attention -------------------------------------------------------------------------------------------------------


class Attention(NamedTuple):
    """One layer's attention.

    Attributes:
        weights (Tensor): ``(B, windows, heads, N, N)``: how much the token of the last but one axis takes from that of
            the last. One window where attention is global. Rows sum to 1 and are not negative, but for AttnScale,
            which lets weights below the mean fall under 0, and talking heads, which are mixed after the softmax.
        positions (Tensor): ``(windows, N)``: where a token stands in the grid of patches, ``row * W + column``; -1 for
            class tokens and padding.
        grid (tuple[int]): ``(H, W)`` of that grid.
    """

    weights: Tensor
    positions: Tensor
    grid: Tuple[int, int]


def _project(module: nn.Module, x: Tensor) -> Tuple[Tensor, Tensor]:
    """Queries, scaled, and keys of a self-attention's input ``(B, N, C)``: ``(B, heads, N, d)`` each."""
    qkv = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = qkv[0], qkv[1]
    if hasattr(module, 'q_norm'):
        q, k = module.q_norm(q), module.k_norm(k)
    return q * q.shape[-1] ** -0.5, k


def _scale(weights: Tensor, lamb: Optional[Tensor]) -> Tensor:
    """AttnScale of a matrix ``(..., heads, N, N)``: see :func:`fcvit_mm.models.oversmoothing.attn_scale`."""
    return weights if lamb is None else weights + lamb[:, None, None] * (weights - 1 / weights.shape[-1])


def softmax_attention(module: nn.Module, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """The matrix of a self-attention, ``(B, heads, N, N)``, with AttnScale if it has that; ``mask`` is added before."""
    q, k = _project(module, x)
    scores = q @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return _scale(scores.softmax(-1), getattr(module, 'lamb', None))


def talking_attention(module: nn.Module, x: Tensor) -> Tensor:
    """The same where heads are mixed before and after the softmax; AttnScale is part of the second mixing."""
    q, k = _project(module, x)
    scores = module.proj_l((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
    return module.proj_w(scores.softmax(2)).permute(0, 3, 1, 2)


def window_attention(module: nn.Module, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """The same within windows, ``(B * windows, heads, N, N)``, from ``(B * windows, N, C)``."""
    bias = module._get_rel_pos_bias()
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
    return softmax_attention(module, x, bias)


#: How to compute the matrix again, by the class that defines a layer's ``forward``. A class that is not here may do
#: anything, so a subclass with a ``forward`` of its own needs a row of its own.
ATTENTION = {
    'timm.layers.attention:Attention': softmax_attention,
    'timm.models.cait:TalkingHeadAttn': talking_attention,
    'mmpretrain.models.utils.attention:MultiheadAttention': softmax_attention,
    'fcvit_mm.models.timm_blocks:AttnScaleSelfAttention': softmax_attention,
    'fcvit_mm.models.timm_blocks:TalkingHeads': talking_attention,
    'fcvit_mm.models.timm_blocks:AttnScaleWindowAttention': window_attention,
}


def _attention_function(module: nn.Module) -> Optional[Callable]:
    definer = next(cls for cls in type(module).__mro__ if 'forward' in vars(cls))
    return ATTENTION.get(f'{definer.__module__}:{definer.__qualname__}')


def attention_layers(model: nn.Module) -> Dict[str, nn.Module]:
    """The self-attentions of a transformer whose matrix can be computed, by the names of the blocks they stand in.

    CaiT's class attention is not among them: only its class token asks.

    Raises:
        AnalysisError: The network has none.
    """
    found = {
        name.rpartition('.')[0]: module
        for name, module in backbone_of(model).named_modules()
        if _attention_function(module)
    }
    if not found:
        raise AnalysisError(
            f'{describe(model)} has no attention that can be shown, expected a ViT or DeiT of timm or '
            'mmpretrain, or ViT, CaiT or Swin; an FCViT has similarity maps'
        )
    return found


@torch.no_grad()
def collect_attention(
    model: nn.Module,
    image: Tensor,
    layers: Optional[Sequence[str]] = None,
    reduce: Callable[[Attention], Any] = lambda attention: attention,
) -> Dict[str, Any]:
    """Attention of each layer, computed from what the layer is given when the network runs.

    Args:
        model (nn.Module): A transformer, or a classifier, detector or segmentor with one.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalised.
        layers (Sequence[str], optional): Names as of :func:`attention_layers`, or their beginnings. Default: all.
        reduce (callable): Applied to each layer's :class:`Attention` at once, so that not all matrices, which grow with
            the fourth power of the image's side, are in memory together.

    Returns:
        dict: What ``reduce`` makes of each layer, by name.

    Raises:
        AnalysisError: No such transformer or layer, or an image that it does not take.
    """
    found = attention_layers(model)
    chosen = select(tuple(found), layers, 'attention layer')
    backbone = backbone_of(model)
    blocks = {name: backbone.get_submodule(name) for name in chosen}
    sizes: Dict[str, Tuple[int, ...]] = {}

    def note_size(name, block, args):
        sizes[name] = tuple(args[0].shape[1:3])

    def take(name, module, args, kwargs, output):
        x, function = args[0], _attention_function(module)
        mask = args[1] if len(args) > 1 else kwargs.get('mask', kwargs.get('attn_mask'))
        weights = function(module, x) if mask is None else function(module, x, mask)
        if function is window_attention:
            grid = sizes[name]
            positions = window_positions(blocks[name], grid).to(x.device)
            weights = weights.unflatten(0, (-1, len(positions)))
        else:
            grid = grid_values.get('grid')
            weights = weights[:, None]
            positions = torch.arange(x.shape[1], device=x.device)[None] - class_tokens(model, x.shape[1], grid)
            positions = positions.clamp(min=-1)
        return reduce(Attention(weights.float(), positions, grid))

    handles = [
        block.register_forward_pre_hook(lambda block, args, name=name: note_size(name, block, args))
        for name, block in blocks.items()
        if _attention_function(found[name]) is window_attention
    ]
    try:
        with recording_grid(backbone) as grid_values, recording({name: found[name] for name in chosen}, take) as values:
            run_backbone(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return values


def window_positions(block: nn.Module, size: Tuple[int, int]) -> Tensor:
    """Where the tokens of a :class:`~fcvit_mm.models.timm_blocks.SwinBlock`'s windows stand in its map.

    Args:
        block (nn.Module): Its window and its shift count.
        size (tuple[int]): Height and width of the map.

    Returns:
        Tensor: ``(windows, N)``, ``row * W + column`` before the shift; -1 for what pads the map.
    """
    window = tuple(block.window_size)
    shift = [0 if side <= part else step for side, part, step in zip(size, window, block.shift_size)]
    index = torch.arange(size[0] * size[1]).view(size)
    index = F.pad(index, (0, -size[1] % window[1], 0, -size[0] % window[0]), value=-1)
    index = index.roll((-shift[0], -shift[1]), (0, 1))
    rows, columns = index.shape[0] // window[0], index.shape[1] // window[1]
    return index.view(rows, window[0], columns, window[1]).transpose(1, 2).reshape(rows * columns, -1)


@contextmanager
def recording_grid(backbone: nn.Module) -> Iterator[Dict[str, Tuple[int, int]]]:
    """Within the context, keep under ``'grid'`` the height and width in patches of what a transformer runs on."""
    found = [module for name, module in backbone.named_modules() if f'.{name}'.endswith(PATCH_CONVOLUTIONS)]
    with recording(
        {'grid': found[0]} if found else {}, lambda name, module, args, kwargs, output: tuple(output.shape[2:])
    ) as values:
        yield values


def class_tokens(model: nn.Module, tokens: int, grid: Optional[Tuple[int, int]]) -> int:
    """How many of a layer's ``tokens`` stand before those of the grid: class, distillation and register tokens.

    Raises:
        AnalysisError: There are fewer than the grid has patches, or the grid is not known.
    """
    if grid is None or tokens < grid[0] * grid[1]:
        there = f'of {grid[0]}x{grid[1]} patches' if grid else 'that was not found'
        raise AnalysisError(
            f'{describe(model)} has a layer of {tokens} tokens and a patch embedding {there}: expected '
            f'one called {" or ".join(name[1:] for name in PATCH_CONVOLUTIONS)}, and a token for each '
            'of its patches'
        )
    return tokens - grid[0] * grid[1]


# -- features --------------------------------------------------------------------------------------------------------


def feature_layers(model: nn.Module) -> Tuple[str, ...]:
    """Names of a backbone's blocks, in order: ``stages.0.blocks.1``, ``blocks.3``, ``layer1.0``, ...

    Raises:
        AnalysisError: Its blocks stand in no list of a known name.
    """
    names = [name for name, _ in backbone_of(model).named_modules()]
    for lists in BLOCK_LISTS:
        found = []
        for name in names:
            parts = name.split('.')
            within_block = any(name.startswith(f'{other}.') for other in found)
            if len(parts) > 1 and parts[-1].isdigit() and parts[-2] in lists and not within_block:
                found.append(name)
        if found:
            return tuple(found)
    raise AnalysisError(f'{describe(model)} has no blocks called blocks, layer1 to layer4 or layers: name the layers')


def find_layers(model: nn.Module, layers: Optional[Sequence[str]]) -> Dict[str, nn.Module]:
    """A backbone's modules by their full names (without ``backbone.``). Default: its blocks.

    Raises:
        AnalysisError: A name that it has not; lists its blocks and what is spelt like it.
    """
    backbone = backbone_of(model)
    modules = dict(backbone.named_modules())
    if layers is None:
        return {name: modules[name] for name in feature_layers(model)}
    layers = [layers] if isinstance(layers, str) else layers
    found = {}
    for layer in layers:
        name = layer[len('backbone.') :] if backbone is not model and layer.startswith('backbone.') else layer
        if not name or name not in modules:
            near = difflib.get_close_matches(name, modules, 4)
            try:
                choices = feature_layers(model)
            except AnalysisError:
                choices = tuple(name for name, _ in backbone.named_children())
            raise AnalysisError(
                f'{describe(model)} has no layer {layer!r}'
                + (f', but {", ".join(near)}' if near else '')
                + f'. Its blocks: {", ".join(choices)}'
            )
        found[name] = modules[name]
    return found


def as_map(module: nn.Module, output: Any, grid: Optional[Tuple[int, int]]) -> Optional[Tensor]:
    """A layer's output as a map ``(B, C, H, W)``.

    Tokens ``(B, N, C)`` are put where their patches stand; those before them (class, distillation, register tokens) are
    left out. ``None`` for what is no map: vectors, or CaiT's class token after its class attention.
    """
    if isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        # In such a block, linear layers and norms give as many channels as they are wide.
        width = module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else getattr(module, 'out_features', 0)
        last = (
            any(cls.__name__ in CHANNELS_LAST_BLOCKS for cls in type(module).__mro__)
            or output.shape[3] == width != output.shape[1]
        )
        return output.permute(0, 3, 1, 2) if last else output
    if output.ndim == 3 and grid is not None and output.shape[1] >= grid[0] * grid[1]:
        return output[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    return None


@contextmanager
def recording_features(model: nn.Module, layers: Optional[Sequence[str]] = None) -> Iterator[Dict[str, Tensor]]:
    """Within the context, keep the maps of layers while :func:`run_backbone` runs: with gradients, if those are on.

    Yields:
        dict[str, Tensor]: As :func:`collect_features` returns.
    """
    modules = find_layers(model, layers)
    with recording_grid(backbone_of(model)) as grid:

        def take(name, module, args, kwargs, output):
            found = as_map(module, output, grid.get('grid'))
            return None if found is None else found.clone()  # what follows may overwrite its input

        with recording(modules, take) as values:
            yield values


@torch.no_grad()
def collect_features(model: nn.Module, image: Tensor, layers: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Feature maps of layers, of convolutional networks and transformers alike.

    Args:
        model (nn.Module): A backbone, or a classifier, detector or segmentor with one, or a model of timm.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalised.
        layers (Sequence[str], optional): Names of modules in the backbone. Default: its blocks.

    Returns:
        dict[str, Tensor]: ``(B, C_i, H_i, W_i)`` by name, in the order in which they run. Of a transformer the tokens
        of the patches; class, distillation and register tokens are left out. Blocks that give no map (CaiT's class
        attention) are left out unless they were asked for.

    Raises:
        AnalysisError: No such layer, one that gives no map, or an image that the network does not take.
    """
    with recording_features(model, layers) as values:
        run_backbone(model, image)
    missing = [name for name in find_layers(model, layers) if name not in values]
    if missing and (layers is not None or not values):
        raise AnalysisError(
            f'{describe(model)} gives no map (B, C, H, W), nor tokens of patches, at '
            f'{", ".join(missing)}: name others, such as {", ".join(feature_layers(model)[:4])}'
        )
    return values
