"""Depth-wise convolution, bias and exact GELU in one pass.

Bound by memory and arithmetic alike on a GPU: the 128 x 512 x 56 x 56 map of FCViT-B12's first stage in bfloat16 is
0.41 GB to read and as much to write, at least 0.25 ms of an H100's memory bandwidth; 9 multiplications and the error
function take about as long. For 126 images 0.38 ms were measured (docs/gpu.md). The reference moves the map four times
and stores the pre-activation for the backward pass; here the backward pass recomputes it from x.
"""

from typing import Any, Optional, Tuple

from torch import Tensor

from . import support
from .depthwise_conv import backward_of_convolution, run_depthwise


def dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the GELU of the depth-wise convolution, stride 1, same padding, with sums in float32.

    Under autocast the result is in the autocast dtype.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32, float16 or bfloat16.
        weight (Tensor): ``(C, 1, k, k)``, k odd; any of these dtypes.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``, in the dtype and memory format of ``x``. It has first derivatives.
    """
    return support.restore_layout(_dwconv_gelu(support.to_channels_last(support.autocast(x)), weight, bias), x)


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, weight, bias = ctx.saved_tensors
    grad = dwconv_gelu_grad_preactivation(grad, x, weight, bias)
    return backward_of_convolution(ctx, grad, x, weight)


@support.custom_op('dwconv_gelu', lambda x, weight, bias: support.empty_like(x), _backward, _save)
def _dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return run_depthwise(x, weight, bias, epilogue='gelu')


@support.custom_op('dwconv_gelu_grad_preactivation', lambda grad, x, weight, bias: support.empty_like(x))
def dwconv_gelu_grad_preactivation(grad: Tensor, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Compute the gradient ``(B, C, H, W)`` of GELU's input, which is computed again from x."""
    return run_depthwise(x, weight, bias, epilogue='gelu_grad', grad=grad)
