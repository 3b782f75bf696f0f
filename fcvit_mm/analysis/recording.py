"""Common code of the analyses: run a backbone on an image and record inputs and outputs of its layers.

Everything is recorded by forward hooks, which leave the network unchanged.
"""

import difflib
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ..errors import UserError
from .libraries import channels_last_blocks

#: Names of the patch embedding's convolution in this project's transformers, timm's and mmpretrain's.
PATCH_CONVOLUTIONS = ('.stem.proj', '.patch_embed.proj', '.patch_embed.projection')
#: Names of the lists that contain blocks, in order of preference: of networks of this project, timm and mmpretrain; of
#: ResNets of timm and mmpretrain; of transformers of mmpretrain; of stages, if there is no known list of blocks.
BLOCK_LISTS = (('blocks',), ('layer1', 'layer2', 'layer3', 'layer4'), ('layers',), ('stages',))
#: Function ``take(name, module, args, kwargs, output)`` that returns the value to record for a module, or ``None``.
Take = Callable[[str, Any, Tuple[Any, ...], Dict[str, Any], Any], Any]


class AnalysisError(UserError):
    """An analysis does not apply to a network, a layer is missing, or an image is not accepted."""


def describe(model: nn.Module) -> str:
    """Return the name of a network's class, and of its backbone's if it has one, for messages."""
    backbone = backbone_of(model)
    return type(model).__name__ + (f' with backbone {type(backbone).__name__}' if backbone is not model else '')


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone of a model; a model without one (of timm, or a backbone) is returned itself."""
    backbone = getattr(model, 'backbone', None)
    return backbone if isinstance(backbone, nn.Module) else model


def as_batch(model: nn.Module, image: Tensor) -> Tensor:
    """Return an image ``(3, H, W)`` or a batch ``(B, 3, H, W)`` as a batch on the network's device, in its dtype.

    Raises:
        AnalysisError: The tensor is neither.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim not in (3, 4):
        got = f'{image.dtype} {tuple(image.shape)}' if isinstance(image, Tensor) else type(image).__name__
        raise AnalysisError(
            f'the image is {got}, expected a floating-point tensor (3, H, W) or (B, 3, H, W), resized '
            'and normalized: load_network(...).prepare(image).image gives it'
        )
    image = image if image.ndim == 4 else image[None]
    like = next(model.parameters(), image)
    return image.to(like.device, like.dtype)


def as_single(model: nn.Module, image: Tensor) -> Tensor:
    """Return one image ``(3, H, W)`` or ``(1, 3, H, W)`` as :func:`as_batch` does.

    Raises:
        AnalysisError: Several were given.
    """
    image = as_batch(model, image)
    if len(image) != 1:
        raise AnalysisError(f'{len(image)} images given, expected one: call this for each image')
    return image


def run_backbone(model: nn.Module, image: Tensor) -> Any:
    """Run the backbone on an image in evaluation mode, then restore its mode; with gradients, if they are enabled.

    Returns:
        Any: The backbone's output.

    Raises:
        AnalysisError: The network does not accept the image, for example because of its size.
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
            f'{describe(model)} does not take an image of {tuple(image.shape[2:])} pixels (height, width): {error}. '
            'Give an image, or a size, that it takes'
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def recording(modules: Mapping[str, nn.Module], take: Take) -> Iterator[Dict[str, Any]]:
    """Record a value for each module whenever it runs within the context; the last run counts.

    Args:
        modules (Mapping[str, nn.Module]): Modules by the names to record them under.
        take (callable): ``take(name, module, args, kwargs, output)`` returns the value; ``None`` records nothing.

    Yields:
        dict: Values by name, filled while the network runs, in the order in which the modules run.
    """
    values: Dict[str, Any] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], output: Any) -> None:
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


@contextmanager
def recording_inputs(modules: Mapping[str, nn.Module]) -> Iterator[Dict[str, Any]]:
    """Record the first argument of each module, before it runs, within the context.

    Yields:
        dict: Recorded arguments by name, filled while the network runs.
    """
    values: Dict[str, Any] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Tuple[Any, ...]) -> None:
            values[name] = args[0]

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def select(names: Sequence[str], wanted: Optional[Sequence[str]], what: str) -> Tuple[str, ...]:
    """Return the names that were asked for, in the network's order.

    Args:
        names (Sequence[str]): Existing names.
        wanted (Sequence[str], optional): Names, or their beginnings: ``stages.3`` stands for all in that stage.
            ``None`` for all.
        what (str): Kind of object that is named, for the error.

    Raises:
        AnalysisError: A name that is not there; lists the choices.
    """
    if wanted is None:
        return tuple(names)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    chosen = set()
    for each in wanted:
        found = [name for name in names if name == each or name.startswith(f'{each}.')]
        if not found:
            raise AnalysisError(
                f'unknown {what} {each!r}, expected one of these names or a common prefix of them: {", ".join(names)}'
            )
        chosen.update(found)
    return tuple(name for name in names if name in chosen)


# -- the grid of patches -----------------------------------------------------------------------------------------------


def find_patch_convolution(backbone: nn.Module) -> Optional[nn.Module]:
    """Find a transformer's patch embedding: by name, else the first convolution whose stride equals its kernel size."""
    named = dict(backbone.named_modules())
    found = [module for name, module in named.items() if f'.{name}'.endswith(PATCH_CONVOLUTIONS)]
    convolutions = [module for module in named.values() if isinstance(module, nn.Conv2d)]
    found += [each for each in convolutions if each.stride == each.kernel_size != (1, 1)]
    return found[0] if found else None


@contextmanager
def recording_grid(backbone: nn.Module) -> Iterator[Dict[str, Tuple[int, int]]]:
    """Record, within the context, the height and width of a transformer's input in patches, as ``'grid'``."""
    convolution = find_patch_convolution(backbone)
    modules = {} if convolution is None else {'grid': convolution}
    with recording(modules, lambda name, module, args, kwargs, output: tuple(output.shape[2:])) as values:
        yield values


def count_extra_tokens(model: nn.Module, tokens: int, grid: Optional[Tuple[int, int]]) -> int:
    """Count the class, distillation and register tokens of a layer, which precede the patch tokens.

    Args:
        model (nn.Module): The model, named in the error.
        tokens (int): Number of tokens of the layer.
        grid (tuple[int, int], optional): Patches in height and width; ``None`` if not known.

    Raises:
        AnalysisError: There are fewer tokens than patches, or the grid is not known.
    """
    if grid is None or tokens < grid[0] * grid[1]:
        embedding = f'of {grid[0]}x{grid[1]} patches' if grid else 'that was not found'
        raise AnalysisError(
            f'{describe(model)} has a layer of {tokens} tokens and a patch embedding {embedding}, expected a '
            f'convolution named {" or ".join(name[1:] for name in PATCH_CONVOLUTIONS)}, or one whose stride equals '
            'its kernel size, and one token per patch: analyse other layers, or a network with such an embedding'
        )
    return tokens - grid[0] * grid[1]


# -- features --------------------------------------------------------------------------------------------------------


def feature_layers(model: nn.Module) -> Tuple[str, ...]:
    """Return the names of a backbone's blocks, in order: ``stages.0.blocks.1``, ``blocks.3``, ``layer1.0``, ...

    Raises:
        AnalysisError: No list of blocks has a known name.
    """
    names = [name for name, _ in backbone_of(model).named_modules()]
    for lists in BLOCK_LISTS:
        found: List[str] = []
        for name in names:
            parts = name.split('.')
            within_block = any(name.startswith(f'{other}.') for other in found)
            if len(parts) > 1 and parts[-1].isdigit() and parts[-2] in lists and not within_block:
                found.append(name)
        if found:
            return tuple(found)
    raise AnalysisError(
        f'{describe(model)} has no blocks named blocks, layer1 to layer4, layers or stages: give the names of the '
        'layers'
    )


def find_layers(model: nn.Module, layers: Optional[Sequence[str]]) -> Dict[str, nn.Module]:
    """Return modules of a backbone by their full names (without ``backbone.``). Default: its blocks.

    Raises:
        AnalysisError: The backbone lacks a name; the error lists its blocks and similar names.
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
    """Return a layer's output as a map ``(B, C, H, W)``; ``None`` if it cannot be a map.

    Tokens of patches ``(B, N, C)`` are arranged like the patches; the tokens before them (class, distillation,
    register tokens) are skipped. Vectors and CaiT's class token after its class attention are no maps.

    Args:
        module (nn.Module): The layer.
        output (Any): Output of the layer.
        grid (tuple[int, int], optional): Patches in height and width, for tokens.
    """
    if isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if is_channels_last(module, output) else output
    if output.ndim == 3 and grid is not None and output.shape[1] >= grid[0] * grid[1]:
        return output[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    return None


def is_channels_last(module: nn.Module, output: Tensor) -> bool:
    """Check whether a layer's output is ``(B, H, W, C)``.

    Blocks of another package declare it by ``output_fmt = 'NHWC'``, timm's name for it. Linear layers and norms inside
    such blocks are recognized by their number of channels.
    """
    if isinstance(module, channels_last_blocks()) or getattr(module, 'output_fmt', None) == 'NHWC':
        return True
    width = module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else getattr(module, 'out_features', 0)
    return bool(output.shape[3] == width != output.shape[1])


@contextmanager
def recording_features(model: nn.Module, layers: Optional[Sequence[str]] = None) -> Iterator[Dict[str, Tensor]]:
    """Record the maps of layers within the context, while :func:`run_backbone` runs; with gradients, if enabled.

    Yields:
        dict[str, Tensor]: Features by layer, as from :func:`collect_features`.
    """
    modules = find_layers(model, layers)
    with recording_grid(backbone_of(model)) as grid:

        def take(name: str, module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], output: Any) -> Any:
            found = as_map(module, output, grid.get('grid'))
            return None if found is None else found.clone()  # the next layer may overwrite its input

        with recording(modules, take) as values:
            yield values


@torch.no_grad()
def collect_features(model: nn.Module, image: Tensor, layers: Optional[Sequence[str]] = None) -> Dict[str, Tensor]:
    """Compute the feature maps of layers, of convolutional networks and transformers alike.

    Args:
        model (nn.Module): A backbone, or a classifier, detector or segmentor with one, or a model of timm.
        image (Tensor): ``(3, H, W)`` or ``(B, 3, H, W)``, normalized.
        layers (Sequence[str], optional): Names of modules in the backbone. Default: its blocks.

    Returns:
        dict[str, Tensor]: ``(B, C_i, H_i, W_i)`` by name, in the order in which the layers run. In transformers these
        are the tokens of the patches, without class, distillation and register tokens. Blocks whose output is no map
        (CaiT's class attention) are skipped, unless ``layers`` names them.

    Raises:
        AnalysisError: No such layer, a layer whose output is no map, or an image that the network does not accept.
    """
    with recording_features(model, layers) as values:
        run_backbone(model, image)
    missing = [name for name in find_layers(model, layers) if name not in values]
    if missing and (layers is not None or not values):
        raise AnalysisError(
            f'{describe(model)} returns neither a map (B, C, H, W) nor patch tokens at {", ".join(missing)}: choose '
            f'other layers, such as {", ".join(feature_layers(model)[:4])}'
        )
    return values
