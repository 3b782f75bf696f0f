"""The channel mixer: expand, depth-wise convolution, GELU, reduce."""

from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import native
from .checks import check_arguments
from .conditions import LACKS_HALF, in_float32, lacks_half, needs_grad
from .conv import conv2d
from .dispatch import Implementation, operation
from .dwconv_gelu import dwconv_gelu
from .native import gradients
from .tracing import is_traced

#: Size of an expanded map in bytes above which it is computed in slices of images and channels. Larger buffers do not
#: fit into a cache, and glibc, which keeps no free buffers above 32 MiB, allocates them anew, with page faults.
SLICE_BYTES = 8 * 2**20
#: Number of expanded channels per slice below which slices get fewer images instead: narrow matrix products are slow.
WIDE = 128
#: Least number of expanded channels of a slice.
NARROW = 64


def _check(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> None:
    channels = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0
    hidden = fc1_weight.shape[0]
    size = dw_weight.shape[-1]
    check_arguments(
        'channel_mixer',
        x,
        fc1_weight=(fc1_weight, (hidden, channels, 1, 1)),
        fc1_bias=(fc1_bias, (hidden,)),
        dw_weight=(dw_weight, (hidden, 1, size, size)),
        dw_bias=(dw_bias, (hidden,)),
        fc2_weight=(fc2_weight, (channels, hidden, 1, 1)),
        fc2_bias=(fc2_bias, (channels,)),
        shortcut=(shortcut, tuple(x.shape) if isinstance(x, Tensor) else ()),
    )


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels, hidden = x.shape[1], 4 * x.shape[1]
    return (
        x,
        x.new_empty(hidden, channels, 1, 1).normal_(std=channels**-0.5),
        x.new_empty(hidden).normal_(),
        x.new_empty(hidden, 1, 3, 3).normal_(std=0.3),
        x.new_empty(hidden).normal_(),
        x.new_empty(channels, hidden, 1, 1).normal_(std=hidden**-0.5),
        x.new_empty(channels).normal_(),
    )


@operation(_check, _example)
def channel_mixer(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> Tensor:
    """Apply a 1x1 convolution to more channels, a depth-wise convolution, GELU, and a 1x1 convolution back.

    Source: arXiv 2212.12552, section 3.3.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        fc1_weight (Tensor): ``(E, C, 1, 1)``, with ``E`` expanded channels.
        fc1_bias (Tensor): ``(E,)``.
        dw_weight (Tensor): ``(E, 1, k, k)``, ``k`` odd.
        dw_bias (Tensor): ``(E,)``.
        fc2_weight (Tensor): ``(C, E, 1, 1)``.
        fc2_bias (Tensor): ``(C,)``.
        shortcut (Tensor, optional): ``(B, C, H, W)``, which is added to the result.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    x = F.conv2d(x, fc1_weight, fc1_bias)
    x = F.gelu(F.conv2d(x, dw_weight, dw_bias, padding=int(dw_weight.shape[-1]) // 2, groups=x.shape[1]))
    return _added(shortcut, F.conv2d(x, fc2_weight, fc2_bias))


def _added(shortcut: Optional[Tensor], x: Tensor) -> Tensor:
    return x if shortcut is None else shortcut + x


class Slices(NamedTuple):
    """Images and expanded channels that are computed at a time."""

    images: int
    channels: int


def plan_slices(x: Tensor, hidden: int) -> Slices:
    """Return the largest slices of an expanded map ``(B, hidden, H, W)`` that fit into :data:`SLICE_BYTES`."""
    bytes_of_channel = x.shape[2] * x.shape[3] * x.element_size()
    images = x.shape[0]
    while images > 1 and images * min(hidden, WIDE) * bytes_of_channel > SLICE_BYTES:
        images = -(-images // 2)
    channels = SLICE_BYTES // max(images * bytes_of_channel, 1)
    return Slices(images, hidden if channels >= hidden else max(1 << max(channels.bit_length() - 1, 0), NARROW))


def _slices_are_faster(x: Tensor, fc1_weight: Tensor, *others: Tensor) -> bool:
    hidden = fc1_weight.shape[0]
    return (
        x.device.type == 'cpu'
        and plan_slices(x, hidden) != (x.shape[0], hidden)
        and not needs_grad(x, fc1_weight, *others)
    )


def _sliced(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> Tensor:
    hidden = fc1_weight.shape[0]
    slices = plan_slices(x, hidden)
    outputs: List[Tensor] = []
    for images in x.split(slices.images):
        total: Optional[Tensor] = None
        for part in _parts(hidden, slices.channels):
            y = conv2d(images, fc1_weight[part], fc1_bias[part])
            y = dwconv_gelu(y, dw_weight[part], dw_bias[part])
            # The first slice adds the bias.
            y = conv2d(y, fc2_weight[:, part], fc2_bias if total is None else None)
            total = y if total is None else total.add_(y)
        assert total is not None
        outputs.append(total)
    return _added(shortcut, outputs[0] if len(outputs) == 1 else torch.cat(outputs))


def _parts(hidden: int, width: int) -> Iterator[slice]:
    return (slice(start, min(start + width, hidden)) for start in range(0, hidden, width))


def _composed(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> Tensor:
    x = dwconv_gelu(conv2d(x, fc1_weight, fc1_bias), dw_weight, dw_bias)
    return _added(shortcut, conv2d(x, fc2_weight, fc2_bias))


def _native_applies(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> bool:
    others = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    if any(other is None for other in others) or dw_weight.shape[-1] != 3 or not native.applies(x, *others, shortcut):
        return False
    return not is_traced() or not needs_grad(x, *others, shortcut)


_native_with_gradients = gradients.differentiable(
    channel_mixer.reference, gradients.channel_mixer, gradients.channel_mixer_grad
)


def _native(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> Tensor:
    args = (x, fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    if needs_grad(*args, shortcut):
        return _added(shortcut, _native_with_gradients(*args))
    return native.channel_mixer(*args, shortcut)


channel_mixer.implementations = (
    Implementation(
        'native',
        _native,
        when=_native_applies,
        condition=f'3x3; {native.APPLIES}; compiled: no gradients needed',
        why='the expanded map stays in the L2 cache: 1.1 to 2.0 times the speed of the other rows; in training one '
        'expanded map is stored, not three',
        traceable=True,
    ),
    Implementation(
        'float32',
        in_float32(channel_mixer),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: up to 70 times the time of float32',
    ),
    Implementation(
        'sliced',
        _sliced,
        when=_slices_are_faster,
        condition=f'expanded map of more than {SLICE_BYTES // 2**20} MiB on a CPU; no gradients needed',
        why='the expanded map stays in the cache: half the time or less, a quarter of the memory',
    ),
    Implementation(
        'composed',
        _composed,
        when=lambda *_: True,
        condition='always',
        why='conv2d and dwconv_gelu each run their fastest implementation',
        traceable=True,
    ),
)


def recomputed_channel_mixer(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    """Compute :func:`channel_mixer` in little memory, for training.

    The expanded channels are computed in slices, discarded, and recomputed in the backward pass: instead of three
    expanded maps of all channels, memory holds those of an eighth of the channels (at least :data:`NARROW`) at a time,
    for about a third more arithmetic.

    Arguments and result are those of :func:`channel_mixer`.
    """
    total: Optional[Tensor] = None
    hidden = fc1_weight.shape[0]
    for part in _parts(hidden, max(hidden // 8, NARROW)):
        bias = fc2_bias if total is None else torch.zeros_like(fc2_bias)
        y = checkpoint(
            channel_mixer,
            x,
            fc1_weight[part],
            fc1_bias[part],
            dw_weight[part],
            dw_bias[part],
            fc2_weight[:, part],
            bias,
            use_reentrant=False,
        )
        total = y if total is None else total + y
    assert total is not None
    return total
