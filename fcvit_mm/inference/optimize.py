"""Optimizing a trained model for inference."""

import copy
from functools import partial
from typing import Any, Iterator, Optional, Set, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ..models.backbone import Backbone
from ..models.caches import CachedWeight
from ..models.fcvit import FCViTBlock
from ..models.fcvit_packed import PackedBlock
from ..models.layers import Conv2d
from ..models.modified import is_unmodified
from ..models.stages import PatchEmbed
from ..ops import native, triton
from ..ops.conditions import HALF, lacks_half
from ..ops.measured import is_untuned
from .cuda_graphs import CudaGraphs
from .stock_modules import optimize_stock_modules_

#: Largest difference of outputs, relative to the largest output (at least 1).
TOLERANCE = 1e-4
TOLERANCE_HALF = 5e-2


def optimize_for_inference(model: nn.Module, example: Optional[Tensor] = None, cuda_graphs: bool = False) -> nn.Module:
    """Return a copy of a model that is faster at inference, with the same outputs.

    In a backbone of this package:

    - BatchNorms, the affine parts of norms and layer scales are fused into adjacent convolutions, by ``fuse_()`` of
      each module. Modules that were modified by a hook, pruning, a parametrization or an adapter, and layers of other
      classes, are not fused: merge or remove these first.
    - Weights are stored in channels_last.
    - A half-precision backbone computes in float32 between its input and its outputs on CPUs that are faster in
      float32. On CPUs with instructions for bfloat16, FCViT's 1x1 and large depth-wise convolutions and patch
      embeddings stay in bfloat16, and use it under autocast.

    Which kernels run is decided at each call, as for any model (see :mod:`fcvit_mm.ops`).

    Necks, heads and convolutional backbones of mmdet, mmseg and mmpretrain listed in
    :mod:`~fcvit_mm.inference.stock_modules` are optimized with any backbone: maps in channels_last, fused BatchNorms,
    Winograd 3x3 convolutions, and this package's RoIAlign on CPUs. Other modules are left unchanged.

    Args:
        model (nn.Module): A :class:`Backbone`, or a classifier, detector or segmentor. It is not changed. Load its
            checkpoint first: the copy has other parameters.
        example (Tensor, optional): Images ``(B, C, H, W)`` for the model's ``forward``; the outputs of copy and model
            are then compared.
        cuda_graphs (bool): Whether the forward pass of the backbone is captured on a GPU, for each image size that
            occurs twice, and replayed: see :class:`~fcvit_mm.inference.cuda_graphs.CudaGraphs`. Without this the launch
            overhead of Python dominates at small batches.

    Returns:
        nn.Module: The copy, in evaluation mode, without gradients. It can be pickled, traced and exported.

    Raises:
        ValueError: The model contains neither a :class:`Backbone` nor a supported module, or ``cuda_graphs`` is set for
            a model that is not on a GPU or contains no :class:`Backbone`.
        RuntimeError: The outputs for ``example`` differ by more than 1e-4 (half precision: 5e-2) of the largest.
    """
    optimized = _copy(model).requires_grad_(False)
    optimized.eval()  # not chained: mmdet's backbones return None from it
    backbones = [module for module in optimized.modules() if isinstance(module, Backbone)]
    if not backbones and cuda_graphs:
        raise ValueError(
            f'cuda_graphs=True, but {type(model).__name__} contains no backbone of fcvit_mm to capture: omit '
            'cuda_graphs'
        )
    parts = optimize_stock_modules_(optimized)
    if not backbones and not parts:
        raise ValueError(
            f'{type(model).__name__} contains nothing to optimize, expected FCViT, DWNet or another subclass of '
            'fcvit_mm.models.Backbone, or a module of mmdet, mmseg or mmpretrain listed in '
            'fcvit_mm.inference.stock_modules.KNOWN'
        )
    for backbone in backbones:
        _separate(backbone, set())
        for module in list(backbone.modules()):
            if hasattr(module, 'fuse_') and is_unmodified(module):
                module.fuse_()
        backbone.to(memory_format=torch.channels_last)
        parameter = next(backbone.parameters())
        _pack(backbone)
        if cuda_graphs:
            if not parameter.is_cuda:
                raise ValueError(
                    f'cuda_graphs=True, but the {type(backbone).__name__} is on {parameter.device}: move the model '
                    "to a GPU first, with .to('cuda')"
                )
            backbone.cuda_graphs = CudaGraphs()
        if _is_faster_in_float32(backbone, parameter):
            _keep_maps_in_float32(backbone, parameter)
    if example is not None:
        _compare(model, optimized, example)
    return optimized


def _copy(model: nn.Module) -> nn.Module:
    """Return a deep copy.

    PyTorch copies only leaf tensors; weights that pruning or old ``weight_norm`` computed in their last forward pass
    are none.
    """
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _separate(module: nn.Module, seen: Set[nn.Module]) -> None:
    """Copy modules that are used in two places, because such a module would be fused with two neighbours."""
    for name, child in module._modules.items():
        if child in seen:
            child = module._modules[name] = copy.deepcopy(child)
        if child is not None:
            seen.add(child)
            _separate(child, seen)


def _is_faster_in_float32(backbone: Backbone, parameter: Tensor) -> bool:
    """Return whether a half-precision backbone is faster in float32.

    This is the case on CPUs without instructions for half precision, and for FCViT on CPUs that the compiled kernels
    were tuned on: with AVX-512 on AMD, B12 takes longer in PyTorch's bfloat16 than with these kernels in float32.
    """
    if parameter.device.type != 'cpu' or parameter.dtype not in HALF:
        return False
    has_kernels = native.available() and not is_untuned(parameter)
    return lacks_half(parameter) or (has_kernels and any(isinstance(each, FCViTBlock) for each in backbone.modules()))


def _keep_maps_in_float32(backbone: Backbone, parameter: Tensor) -> None:
    """Let a half-precision backbone compute in float32 between its input and its outputs.

    If the CPU has instructions for bfloat16, 1x1 and large depth-wise convolutions and patch embeddings use bfloat16.

    Args:
        backbone (Backbone): It is changed.
        parameter (Tensor): One of its parameters before the change.
    """
    dtype = parameter.dtype
    keeps_products = dtype == torch.bfloat16 and native.multiplies_bfloat16() and not lacks_half(parameter)
    backbone.float()
    backbone.output_dtype = dtype  # no hooks: timm's methods do not call the backbone itself
    for module in backbone.modules() if keeps_products else ():
        if isinstance(module, FCViTBlock) and module.packed is not None:
            module.packed = PackedBlock(dtype)
        elif type(module) is PatchEmbed:
            _cast(module.to(dtype), dtype, torch.float32)


def _cast(module: nn.Module, inputs: torch.dtype, outputs: torch.dtype) -> None:
    module.register_forward_pre_hook(partial(_cast_args, dtype=inputs))
    module.register_forward_hook(partial(_cast_outputs, dtype=outputs))


def _cast_args(module: nn.Module, args: Tuple[Tensor, ...], dtype: torch.dtype) -> Tuple[Tensor, ...]:
    return tuple(arg.to(dtype) for arg in args)


def _cast_outputs(module: nn.Module, args: Tuple[Tensor, ...], outputs: Any, dtype: torch.dtype) -> Any:
    return outputs.to(dtype) if isinstance(outputs, Tensor) else tuple(output.to(dtype) for output in outputs)


def _pack(backbone: Backbone) -> None:
    """Store weights in the layout of the kernels, which saves a copy per call: depth-wise ones on GPUs, all on CPUs."""
    for module in backbone.modules():
        if not is_unmodified(module):
            continue
        if isinstance(module, FCViTBlock):
            module.packed = PackedBlock()
        if type(module) is not Conv2d:
            continue
        is_depthwise = module.groups == module.in_channels == module.out_channels
        if module.weight.is_cuda:
            if is_depthwise:
                module.weight = nn.Parameter(triton.pack_taps(module.weight), requires_grad=False)
        elif module.bias is not None and (is_depthwise or module.groups == 1):
            module.packed = CachedWeight()


@torch.no_grad()
def _compare(model: nn.Module, optimized: nn.Module, example: Tensor) -> None:
    training = model.training
    model.eval()
    try:
        pairs = list(zip(_tensors(model(example)), _tensors(optimized(example))))
    finally:
        model.train(training)
    for expected, got in pairs:
        limit = TOLERANCE_HALF if expected.dtype in HALF else TOLERANCE
        difference = (got.float() - expected.float()).abs().max().item() if expected.numel() else 0.0
        largest = expected.float().abs().max().clamp(min=1).item() if expected.numel() else 1.0
        if not difference <= limit * largest:
            raise RuntimeError(
                f'the optimized {type(model).__name__} differs from the model by {difference:.3g} (largest output '
                f'{largest:.3g}), more than the tolerance of {limit:g} of it: please report this with the config, and '
                'use the model without optimization meanwhile'
            )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
