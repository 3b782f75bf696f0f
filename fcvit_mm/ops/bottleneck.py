"""Bottleneck at the end of a token mix: two 1x1 convolutions with a GELU after each."""

from typing import Any, Tuple

import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import check_arguments
from .conditions import LACKS_HALF, in_float32, lacks_half, needs_grad
from .conv import conv2d
from .dispatch import Implementation, operation
from .gelu import gelu_
from .native import gradients
from .tracing import is_traced


def _check(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> None:
    channels = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0
    hidden, out_channels = fc1_weight.shape[0], fc2_weight.shape[0]
    check_arguments(
        'bottleneck',
        x,
        fc1_weight=(fc1_weight, (hidden, channels, 1, 1)),
        fc1_bias=(fc1_bias, (hidden,)),
        fc2_weight=(fc2_weight, (out_channels, hidden, 1, 1)),
        fc2_bias=(fc2_bias, (out_channels,)),
    )


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels = x.shape[1]
    hidden = max(channels // 8, 3)
    return (
        x,
        x.new_empty(hidden, channels, 1, 1).normal_(std=channels**-0.5),
        x.new_empty(hidden).normal_(),
        x.new_empty(channels, hidden, 1, 1).normal_(std=hidden**-0.5),
        x.new_empty(channels).normal_(),
    )


@operation(_check, _example)
def bottleneck(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """Apply a 1x1 convolution to few channels, GELU, a 1x1 convolution to many channels, and GELU.

    Source: arXiv 2212.12552, section 3.3.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        fc1_weight (Tensor): ``(E, C, 1, 1)``, with ``E`` channels between the two.
        fc1_bias (Tensor): ``(E,)``.
        fc2_weight (Tensor): ``(D, E, 1, 1)``.
        fc2_bias (Tensor): ``(D,)``.

    Returns:
        Tensor: ``(B, D, H, W)``.
    """
    return F.gelu(F.conv2d(F.gelu(F.conv2d(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias))


def _composed(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    return gelu_(conv2d(gelu_(conv2d(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias))


_native_with_gradients = gradients.differentiable(bottleneck.reference, gradients.bottleneck, gradients.bottleneck_grad)


def _native_applies(*args: Tensor) -> bool:
    complete = all(arg is not None for arg in args)
    return complete and native.applies(*args) and not (is_traced() and needs_grad(*args))


def _native(*args: Tensor) -> Tensor:
    return (_native_with_gradients if needs_grad(*args) else native.bottleneck)(*args)


bottleneck.implementations = (
    Implementation(
        'native',
        _native,
        when=_native_applies,
        condition=f'{native.APPLIES}; compiled: no gradients needed',
        why='one call that reads and writes the map once: 1.3 to 2.5 times the speed of four calls; in training only '
        'the map is stored',
        traceable=True,
    ),
    Implementation(
        'float32',
        in_float32(bottleneck),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: 1x1 kernels take 6 times as long as in float32',
    ),
    Implementation(
        'composed',
        _composed,
        when=lambda *_: True,
        condition='always',
        why='conv2d and gelu_ each run their fastest implementation, GELU in place',
        traceable=True,
    ),
)
