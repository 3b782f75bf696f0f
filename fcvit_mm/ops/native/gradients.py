"""The compiled CPU kernels in training: autograd functions with their derivatives.

Each stores little for the backward pass and recomputes the rest there, for as many images at a time as fit into the
cache.
"""

import math
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

kernels = torch.ops.fcvit_mm_cpu
Gradients = Tuple[Optional[Tensor], ...]

#: Bytes of a map of as many images as are computed at a time in the backward pass: a part of a third-level cache.
SLICE_BYTES = 8 * 2**20


def differentiable(
    reference: Callable[..., Tensor],
    forward: Callable[..., Tuple[Tensor, ...]],
    backward: Callable[..., Gradients],
) -> Callable[..., Tensor]:
    """Build a differentiable operation from kernels without derivatives.

    Args:
        reference (Callable): Computes the same by PyTorch's operations, for derivatives of the derivatives.
        forward (Callable): Function that returns the output, and further tensors to keep for ``backward``.
        backward (Callable): Function of the output's gradient, whether each argument needs one (a sequence), the
            arguments and the tensors kept; returns a gradient or ``None`` for each argument.

    Returns:
        Callable: Function of the arguments, tensors or not, that returns the output.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            output, *kept = forward(*args)
            ctx.others = [None if isinstance(arg, Tensor) else (arg,) for arg in args]
            ctx.save_for_backward(*(arg for arg in args if isinstance(arg, Tensor)), *kept)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Gradients:
            saved = iter(ctx.saved_tensors)
            args = [next(saved) if other is None else other[0] for other in ctx.others]
            if torch.is_grad_enabled():
                return reference_gradients(reference, args, ctx.needs_input_grad, grad)
            return backward(grad.contiguous(memory_format=torch.channels_last), ctx.needs_input_grad, args, *saved)

    apply: Callable[..., Tensor] = Differentiable.apply
    return apply


def reference_gradients(
    reference: Callable[..., Tensor], args: Sequence[Any], needed: Sequence[bool], grad: Tensor
) -> Gradients:
    """Compute gradients by differentiating the reference; they can be differentiated again.

    Args:
        reference (Callable): Function of the arguments, made of PyTorch's operations.
        args (Sequence): The arguments, tensors or not.
        needed (Sequence[bool]): Whether each argument needs a gradient.
        grad (Tensor): Gradient of the output.
    """
    # Copies, not views: of views in channels_last torch 2.1 computes wrong gradients here.
    inputs = [arg.clone() if wanted else arg for arg, wanted in zip(args, needed)]
    gradients = iter(
        torch.autograd.grad(
            reference(*inputs),
            [value for value, wanted in zip(inputs, needed) if wanted],
            grad,
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(gradients) if wanted else None for wanted in needed)


def _slices(x: Tensor, channels: int, buffers: int) -> Iterator[Tuple[Any, ...]]:
    """Yield slices of a map's images ``(B, C, H, W)``, each with buffers ``(b, channels, H, W)`` for its ``b`` images.

    A buffer has at most :data:`SLICE_BYTES`, but at least one image; the same memory serves all slices.
    """
    images, _, *size = x.shape
    count = max(SLICE_BYTES // max(channels * math.prod(size) * x.element_size(), 1), 1)
    count = -(-images // -(-images // count)) if images else 1
    shape = (min(count, images), channels, *size)
    memory = [
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for _ in range(buffers)
    ]
    for start in range(0, images, count):
        part = slice(start, min(start + count, images))
        yield (part, *(buffer[: part.stop - start] for buffer in memory))


class _Sums:
    """Sums of gradients over slices of images, for the arguments that need one; the first, the map, is excluded."""

    def __init__(self, args: Sequence[Any], needed: Sequence[bool]) -> None:
        self.needed = needed
        self.totals: List[Optional[Tensor]] = [
            torch.zeros_like(arg) if wanted and place else None for place, (arg, wanted) in enumerate(zip(args, needed))
        ]

    def wants(self, first: int) -> bool:
        """Return whether a weight or its bias, which are arguments ``first`` and the next, need a gradient."""
        return any(self.needed[first : first + 2])

    def add(self, first: int, gradients: Tuple[Tensor, Tensor]) -> None:
        """Add the gradients of a weight and its bias, as far as they are needed."""
        for total, gradient in zip(self.totals[first : first + 2], gradients):
            if total is not None:
                total += gradient


def channel_mixer(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tuple[Tensor, Tensor]:
    """Compute the channel mixer.

    Arguments are those of :func:`fcvit_mm.ops.channel_mixer`, the depth-wise kernel 3x3.

    Returns:
        tuple[Tensor, Tensor]: Output, and the tensor to keep: the expanded map before the depth-wise convolution.
    """
    expanded = kernels.pointwise_conv2d(x, fc1_weight, fc1_bias)
    output = torch.empty_like(x, memory_format=torch.channels_last)
    for images, activated in _slices(x, expanded.shape[1], buffers=1):
        kernels.dwconv_gelu.out(expanded[images], dw_weight, dw_bias, out=activated)
        kernels.pointwise_conv2d.out(activated, fc2_weight, fc2_bias, out=output[images])
    return output, expanded


def channel_mixer_grad(grad: Tensor, needed: Sequence[bool], args: Sequence[Tensor], expanded: Tensor) -> Gradients:
    """Return the gradients of :func:`channel_mixer`: see :func:`differentiable`."""
    x, fc1_weight, _, dw_weight, dw_bias, fc2_weight, _ = args
    sums = _Sums(args, needed)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if needed[0] else None
    turned = dw_weight.flip(2, 3)
    for images, inner, other in _slices(x, expanded.shape[1], buffers=2):
        # First the gradient of the values after GELU; in place, it becomes that before GELU, then of the expanded map.
        kernels.pointwise_conv2d.out(grad[images], fc2_weight.transpose(0, 1), None, out=inner)
        sums.add(3, kernels.dwconv_gelu_grad_(inner, expanded[images], dw_weight, dw_bias, activated=other))
        if sums.wants(5):
            sums.add(5, kernels.pointwise_conv2d_grad_weight(grad[images], other))
        if any(needed[:3]):
            kernels.depthwise_conv2d.out(inner, turned, None, out=other)
        if sums.wants(1):
            sums.add(1, kernels.pointwise_conv2d_grad_weight(other, x[images]))
        if grad_x is not None:
            kernels.pointwise_conv2d.out(other, fc1_weight.transpose(0, 1), None, out=grad_x[images])
    return (grad_x, *sums.totals[1:])


def bottleneck(*args: Tensor) -> Tuple[Tensor]:
    """Compute :func:`fcvit_mm.ops.bottleneck`; nothing is stored besides the arguments."""
    return (kernels.bottleneck(*args),)


def bottleneck_grad(grad: Tensor, needed: Sequence[bool], args: Sequence[Tensor]) -> Gradients:
    """Return the gradients of :func:`bottleneck`: see :func:`differentiable`."""
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias = args
    sums = _Sums(args, needed)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if needed[0] else None
    for images, outer in _slices(x, grad.shape[1], buffers=1):
        inner = kernels.pointwise_conv2d(x[images], fc1_weight, fc1_bias)
        activated = kernels.gelu_(inner.clone())
        kernels.pointwise_conv2d.out(activated, fc2_weight, fc2_bias, out=outer)
        kernels.gelu_grad_(outer, grad[images])
        if sums.wants(3):
            sums.add(3, kernels.pointwise_conv2d_grad_weight(outer, activated))
        if any(needed[:3]):
            kernels.gelu_grad_(inner, kernels.pointwise_conv2d(outer, fc2_weight.transpose(0, 1), None))
        if sums.wants(1):
            sums.add(1, kernels.pointwise_conv2d_grad_weight(inner, x[images]))
        if grad_x is not None:
            kernels.pointwise_conv2d.out(inner, fc1_weight.transpose(0, 1), None, out=grad_x[images])
    return (grad_x, *sums.totals[1:])
