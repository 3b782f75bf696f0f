"""Convolutions of any kind: patch embeddings, 1x1 convolutions, necks and heads."""

from typing import Any, Callable, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import autocast_dtype, check_arguments
from .conditions import HALF, LACKS_HALF, in_float32, is_channels_last, lacks_half, needs_grad
from .dispatch import Implementation, current_mode, operation
from .tracing import is_traced, is_transformed, records_any_size


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    channels = (x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0) // groups
    check_arguments(
        'conv2d',
        x,
        weight=(weight, (weight.shape[0], channels) + tuple(weight.shape[2:])),
        bias=(bias, tuple(weight.shape[:1])),
    )


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels = x.shape[1]
    return x, x.new_empty(24, channels, 1, 1).normal_(std=channels**-0.5), x.new_empty(24).normal_()


@operation(_check, _example)
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Union[int, Tuple[int, int]] = 1,
    padding: Union[str, int, Tuple[int, int]] = 0,
    groups: int = 1,
    dilation: Union[int, Tuple[int, int]] = 1,
) -> Tensor:
    """Convolve with zero padding.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(D, C / groups, k, k)``.
        bias (Tensor, optional): ``(D,)``.
        stride (int | tuple[int, int]): Steps between windows.
        padding (int | tuple[int, int] | str): Zeros around the map; ``'same'`` or ``'valid'``, as PyTorch's.
        groups (int): Number of channel groups.
        dilation (int | tuple[int, int]): Steps between the elements that a window reads.

    Returns:
        Tensor: ``(B, D, H', W')``.
    """
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_pointwise(weight: Tensor, stride: Any, padding: Any, groups: int) -> bool:
    """Return whether a convolution is 1x1 with stride 1, and therefore a matrix product."""
    return (
        weight.shape[2:] == (1, 1) and groups == 1 and stride in (1, (1, 1)) and padding in (0, (0, 0), 'same', 'valid')
    )


def _native_applies(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> bool:
    return (
        native.applies(x, weight, bias)
        and not needs_grad(x, weight, bias)
        and _is_pointwise(weight, stride, padding, groups)
    )


def _native(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *_: Any) -> Tensor:
    return native.pointwise_conv2d(x, weight, bias)


#: Most output positions, and fewest weight elements, at which oneDNN spends most of its time on reordering the weight.
FEW_POSITIONS, MANY_WEIGHTS = 400, 2**18


def _pair(value: Any) -> Tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _im2col_applies(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> bool:
    if groups != 1 or dilation not in (1, (1, 1)) or isinstance(padding, str) or weight.numel() < MANY_WEIGHTS:
        return False
    height, width = _output_size(x, weight, stride, padding)
    return (
        0 < x.shape[0] * height * width <= FEW_POSITIONS
        and min(height, width) > 0
        and native.applies(x, weight, bias)
        and is_channels_last(weight)
        and not needs_grad(x, weight, bias)
    )


def _output_size(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tuple[int, ...]:
    sides = zip(x.shape[2:], weight.shape[2:], _pair(stride), _pair(padding))
    return tuple((side + 2 * around - size) // step + 1 for side, size, step, around in sides)


def _im2col_product(
    x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, stride: Any = 1, padding: Any = 0, *_: Any
) -> Tensor:
    """Convolve by im2col and a matrix product with the weight in its own order, which is not packed in each call."""
    return native.pointwise_conv2d(_im2col(x, weight, stride, padding), im2col_weight(weight), bias)


def _im2col(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
    """Copy the window of each output position into a vector (im2col): ``(B, k * k * C, H', W')``."""
    (rows, columns), (row_step, column_step) = _pair(padding), _pair(stride)
    nhwc = F.pad(x.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    size, (of_image, of_row, of_column) = _output_size(x, weight, stride, padding), nhwc.stride()[:3]
    channels, height, width = map(int, weight.shape[1:])
    windows = nhwc.as_strided(
        (x.shape[0], *size, height, width * channels),
        (of_image, of_row * row_step, of_column * column_step, of_row, 1),
    )
    return windows.flatten(3).permute(0, 3, 1, 2)


def im2col_weight(weight: Tensor) -> Tensor:
    """Reshape a weight ``(D, C, k, k)`` to that of a 1x1 convolution after im2col: ``(D, k * k * C, 1, 1)``."""
    return weight.permute(0, 2, 3, 1).flatten(1)[:, :, None, None]


def packed_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any, pack: Callable[[], Tensor]
) -> Optional[Tensor]:
    """Convolve with a weight that is packed already, where :func:`conv2d` would use im2col.

    Args:
        x, weight, bias, stride, padding, dilation: Arguments of :func:`conv2d`.
        pack (Callable): Returns ``native.pack(im2col_weight(weight))``.

    Returns:
        Tensor, optional: ``(B, D, H', W')``.
    """
    if is_traced() or current_mode() == 'reference' or is_transformed() or x.ndim != 4 or x.shape[1] != weight.shape[1]:
        return None
    if not _im2col_applies(x, weight, bias, stride, padding, 1, dilation):
        return None
    return native.pointwise_conv2d(_im2col(x, weight, stride, padding), pack(), bias)


def _product_applies(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> bool:
    if not (x.is_cuda and is_channels_last(x) and _is_pointwise(weight, stride, padding, groups)):
        return False
    # By default, PyTorch allows TF32 for float32 convolutions, but not for matrix products.
    precise = torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    half = (autocast_dtype(x) or x.dtype) in HALF
    return half or not precise


def _product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *_: Any) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _is_square(value: Any) -> bool:
    """Return whether a setting is the same number for both sides."""
    return isinstance(value, int) or (not isinstance(value, str) and value[0] == value[1])


def _side(value: Any) -> int:
    """Return the number of a square setting."""
    return value if isinstance(value, int) else value[0]


def _space_to_depth_applies(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> bool:
    half = (autocast_dtype(x) or x.dtype) in HALF
    return (
        x.is_cuda
        and half
        and x.shape[1] <= 4
        and groups == 1
        and all(map(_is_square, (stride, padding, dilation)))
        and _side(dilation) == 1
        and 1 < _side(stride) < weight.shape[-1] == weight.shape[-2]
        and _side(padding) < weight.shape[-1]
        and min(x.shape[2:]) + 2 * _side(padding) >= weight.shape[-1]
        and not records_any_size()
    )


def _space_to_depth(
    x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, stride: Any = 1, padding: Any = 0, *_: Any
) -> Tensor:
    """Convolve after space-to-depth: blocks of ``stride x stride`` pixels become channels, and the stride becomes 1."""
    (batch, channels, *sides), size = x.shape, int(weight.shape[-1])
    step, before = _side(stride), -(-_side(padding) // _side(stride))
    # Offset of the first window in its first block, and the number of blocks that a window overlaps.
    start = before * step - _side(padding)
    blocks = -(-(start + size) // step)
    rows, columns = ((side + 2 * _side(padding) - size) // step + blocks for side in sides)
    margins = [(before * step, count * step - before * step - side) for count, side in zip((rows, columns), sides)]
    x = F.pad(x, (*margins[1], *margins[0])).view(batch, channels, rows, step, columns, step)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)
    rest = blocks * step - start - size
    weight = F.pad(weight, (start, rest) * 2).view(len(weight), channels, blocks, step, blocks, step)
    weight = weight.permute(0, 2, 4, 1, 3, 5).reshape(len(weight), blocks, blocks, -1).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


conv2d.implementations = (
    Implementation(
        'product',
        _product,
        when=_product_applies,
        condition='1x1, stride 1, channels_last on a GPU, half precision (or float32 with TF32 as for convolutions)',
        why='cuDNN adds the bias in a separate pass: up to 4 times the time of a matrix product',
        traceable=True,
    ),
    Implementation(
        'space_to_depth',
        _space_to_depth,
        when=_space_to_depth_applies,
        condition='up to 4 channels, 1 < stride < kernel, half precision on a GPU; not in graphs for any size',
        why="cuDNN's kernels are made for many channels: the 3 of the stem took 0.7 of 10 ms of FCViT-B12",
        traceable=True,
    ),
    Implementation(
        'native',
        _native,
        when=_native_applies,
        condition=f'1x1, stride 1; {native.APPLIES}; no gradients needed',
        why="oneDNN packs the weights at each call and PyTorch's kernel handles small maps: 1.0 to 1.9 times their "
        'speed',
        traceable=True,
    ),
    Implementation(
        'im2col',
        _im2col_product,
        when=_im2col_applies,
        condition=f'up to {FEW_POSITIONS} output positions, weights of {MANY_WEIGHTS} or more elements in '
        f'channels_last; {native.APPLIES}; no gradients needed; not in compiled graphs',
        why='oneDNN reorders the weight at each call: 1.0 to 2.2 times its speed in the last patch embedding',
    ),
    Implementation(
        'float32',
        in_float32(conv2d),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: 1x1 kernels take 6 times as long as in float32',
    ),
)
