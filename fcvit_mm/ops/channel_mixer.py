"""The channel mixer: expand, depth-wise convolution, GELU, reduce."""
from typing import Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .checks import check_arguments
from .conditions import add_float32_form, needs_grad
from .conv import conv2d
from .dispatch import operation
from .dwconv_gelu import dwconv_gelu

#: Bytes of an expanded map above which a CPU computes it in slices of channels. Larger buffers fit no cache, and come
#: from the system anew at each use (glibc keeps none above 32 MiB), page fault by page fault.
SLICE_BYTES = 8 * 2**20
MIN_SLICE_CHANNELS = 32


def _check(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, dw_weight: Tensor, dw_bias: Tensor, fc2_weight: Tensor,
           fc2_bias: Tensor) -> None:
    channels = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0
    hidden = fc1_weight.shape[0]
    size = dw_weight.shape[-1]
    check_arguments('channel_mixer', x, fc1_weight=(fc1_weight, (hidden, channels, 1, 1)),
                    fc1_bias=(fc1_bias, (hidden,)), dw_weight=(dw_weight, (hidden, 1, size, size)),
                    dw_bias=(dw_bias, (hidden,)), fc2_weight=(fc2_weight, (channels, hidden, 1, 1)),
                    fc2_bias=(fc2_bias, (channels,)))


@operation(_check)
def channel_mixer(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, dw_weight: Tensor, dw_bias: Tensor,
                  fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """1x1 convolution to more channels, depth-wise convolution, GELU, 1x1 convolution back.

    Source: arXiv 2212.12552, section 3.3.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        fc1_weight (Tensor): ``(E, C, 1, 1)``, with ``E`` expanded channels.
        fc1_bias (Tensor): ``(E,)``.
        dw_weight (Tensor): ``(E, 1, k, k)``, ``k`` odd.
        dw_bias (Tensor): ``(E,)``.
        fc2_weight (Tensor): ``(C, E, 1, 1)``.
        fc2_bias (Tensor): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    x = F.conv2d(x, fc1_weight, fc1_bias)
    x = F.gelu(F.conv2d(x, dw_weight, dw_bias, padding=int(dw_weight.shape[-1]) // 2, groups=x.shape[1]))
    return F.conv2d(x, fc2_weight, fc2_bias)


add_float32_form(channel_mixer)


def slice_channels(x: Tensor, hidden: int) -> int:
    """Expanded channels in one slice: a power of two, or all ``hidden`` where they fit :data:`SLICE_BYTES`."""
    position_bytes = x.shape[0] * x.shape[2] * x.shape[3] * x.element_size()
    if position_bytes * hidden <= SLICE_BYTES:
        return hidden
    return max(1 << (SLICE_BYTES // position_bytes).bit_length() - 1, MIN_SLICE_CHANNELS)


def _pays(x: Tensor, fc1_weight: Tensor, *others: Tensor) -> bool:
    return (x.device.type == 'cpu' and slice_channels(x, fc1_weight.shape[0]) < fc1_weight.shape[0]
            and not needs_grad(x, fc1_weight, *others))


@channel_mixer.fast('sliced', when=_pays)
def _sliced(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, dw_weight: Tensor, dw_bias: Tensor, fc2_weight: Tensor,
            fc2_bias: Tensor) -> Tensor:
    total: Optional[Tensor] = None
    for part in _slices(x, fc1_weight.shape[0]):
        y = conv2d(x, fc1_weight[part], fc1_bias[part])
        y = dwconv_gelu(y, dw_weight[part], dw_bias[part])
        # The first slice brings the bias.
        y = conv2d(y, fc2_weight[:, part], fc2_bias if total is None else None)
        total = y if total is None else total.add_(y)
    return total


def _slices(x: Tensor, hidden: int) -> Iterator[slice]:
    width = slice_channels(x, hidden)
    return (slice(start, min(start + width, hidden)) for start in range(0, hidden, width))


@channel_mixer.fast('composed', when=lambda *_: True, traceable=True)
def _composed(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, dw_weight: Tensor, dw_bias: Tensor,
              fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    return conv2d(dwconv_gelu(conv2d(x, fc1_weight, fc1_bias), dw_weight, dw_bias), fc2_weight, fc2_bias)


def recomputed_channel_mixer(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, dw_weight: Tensor, dw_bias: Tensor,
                             fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """:func:`channel_mixer` for training in little memory.

    The expanded channels are computed in slices, forgotten, and computed again in the backward pass: instead of three
    expanded maps for the whole mixer, memory holds three slices at a time. It takes about a third more arithmetic.

    Args, Returns: As of :func:`channel_mixer`.
    """
    total = None
    for part in _slices(x, fc1_weight.shape[0]):
        bias = fc2_bias if total is None else torch.zeros_like(fc2_bias)
        y = checkpoint(channel_mixer, x, fc1_weight[part], fc1_bias[part], dw_weight[part], dw_bias[part],
                       fc2_weight[:, part], bias, use_reentrant=False)
        total = y if total is None else total + y
    return total
