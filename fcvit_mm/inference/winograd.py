"""Winograd 3x3 convolutions, for inference on CPUs."""

from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.caches import CachedWeight
from ..models.layers import Conv2d
from ..ops import native
from ..ops.checks import autocast_dtype
from ..ops.conditions import needs_grad
from ..ops.dispatch import current_mode
from ..ops.tracing import is_traced, is_transformed

#: Outputs of a tile on each side, and inputs that it reads.
TILE, READ = 4, 6
#: Number of tiles computed at once: few enough for the cache, and enough for efficient matrix products.
TILES = 256
#: Minimum numbers of channels and tiles, below which the transforms take longer than they save: for PyTorch's
#: operators, and for compiled kernels (:mod:`fcvit_mm.ops.native`).
MIN_CHANNELS, MIN_CHANNELS_NATIVE = 192, 48
MIN_TILES, MIN_TILES_NATIVE = 96, 1
#: The transform of a kernel's taps to the ``READ`` points 0, 1, -1, 2, -2 and infinity.
_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class WinogradConv2d(Conv2d):
    """A 3x3 convolution by Winograd F(4x4, 3x3): 36 instead of 144 multiplications per channel pair and tile.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308: F(4x4, 3x3). Outputs
    differ from those of the convolution by about 1e-5 of the largest (3e-5 at 2048 channels), because of rounding in
    float32. It is used in float32 inference on a CPU, for maps that are large enough; otherwise this layer computes as
    :class:`~fcvit_mm.models.layers.Conv2d` does.

    The transformed weight, four times as large as the weight, is computed lazily and recomputed when the weight
    changes; it is neither stored in ``state_dict`` nor pickled.

    Shape:
        ``(B, C, H, W)`` to ``(B, D, H, W)`` in channels_last.
    """

    _transformed: Optional[CachedWeight] = None

    @staticmethod
    def fits(layer: torch.nn.Conv2d) -> bool:
        """Return whether this class supports a convolution and is faster."""
        return (
            layer.kernel_size == (3, 3)
            and layer.stride == layer.dilation == (1, 1)
            and layer.padding in ((1, 1), 'same')
            and layer.padding_mode == 'zeros'
            and layer.groups == 1
            and min(layer.in_channels, layer.out_channels) >= min(MIN_CHANNELS, MIN_CHANNELS_NATIVE)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self._applies(x):
            return super().forward(x)
        if native.available():
            return native.winograd_conv2d(x, self._transform(), self.out_channels, self.bias)
        return winograd_conv2d(x, self._transform(), self.bias)

    def _applies(self, x: Tensor) -> bool:
        return (
            not is_traced()
            and current_mode() != 'reference'
            and not is_transformed()
            and x.ndim == 4
            and x.device.type == self.weight.device.type == 'cpu'
            and x.dtype == self.weight.dtype == torch.float32
            and autocast_dtype(x) is None
            and x.shape[1] == self.in_channels
            and self._is_faster(x.shape[0] * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE))
            and not needs_grad(x, self.weight, self.bias)
        )

    def _is_faster(self, tiles: int) -> bool:
        channels = min(self.in_channels, self.out_channels)
        if native.available():
            return tiles >= MIN_TILES_NATIVE and channels >= MIN_CHANNELS_NATIVE
        return tiles >= MIN_TILES and channels >= MIN_CHANNELS

    def _transform(self) -> Tensor:
        compiled = native.available()

        def make(weight: Tensor) -> Tensor:
            return native.winograd_panels(winograd_weight(weight)) if compiled else winograd_weight(weight)

        if self._transformed is None:
            self._transformed = CachedWeight()
        return self._transformed.get(self.weight, make, compiled)


def winograd_weight(weight: Tensor) -> Tensor:
    """Transform a weight ``(D, C, 3, 3)`` for :func:`winograd_conv2d`: ``(36, C, D)``."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    taps = weight.detach().double().permute(2, 3, 1, 0).flatten(2)
    rows = (points @ taps.flatten(1)).view(READ, *taps.shape[1:])
    return torch.stack([(points @ row).float() for row in rows]).view(READ * READ, weight.shape[1], weight.shape[0])


@torch.no_grad()
def winograd_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Convolve with a kernel of 3x3 and one zero around the map.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(36, C, D)``, of :func:`winograd_weight`.
        bias (Tensor, optional): ``(D,)``.

    Returns:
        Tensor: ``(B, D, H, W)`` in channels_last.
    """
    (batch, channels, height, width), outputs = x.shape, weight.shape[2]
    down, across = -(-height // TILE), -(-width // TILE)
    padded = F.pad(
        x.permute(0, 2, 3, 1), (0, 0, 1, TILE * across + 1 - width, 1, TILE * down + 1 - height)
    ).contiguous()
    result = x.new_empty(batch, TILE * down, TILE * across, outputs)
    # Several complete images at a time if they fit, otherwise rows of tiles of one image.
    images = max(1, TILES // (down * across))
    rows = down if images > 1 else max(1, min(down, TILES // across))
    tiles = min(images, batch) * rows * across
    read = x.new_empty(READ * READ * tiles * channels)
    products = x.new_empty(READ * READ * tiles * outputs)
    for first in range(0, batch, images):
        for top in range(0, down, rows):
            part = padded[first : first + images, TILE * top : TILE * min(top + rows, down) + 2]
            shape = (len(part), (part.shape[1] - 2) // TILE, across)
            count = shape[0] * shape[1] * across
            inputs = read[: READ * READ * count * channels].view(READ * READ, *shape, channels)
            _transform_inputs(part, inputs)
            product = products[: READ * READ * count * outputs].view(READ * READ, count, outputs)
            torch.bmm(inputs.view(READ * READ, count, channels), weight, out=product)
            target = result[first : first + images, TILE * top : TILE * (top + shape[1])]
            _transform_outputs(product.view(READ, READ, *shape, outputs), bias, target)
    return result[:, :height, :width].permute(0, 3, 1, 2)


def _transform_inputs(part: Tensor, inputs: Tensor) -> None:
    """Transform ``(b, 4 n + 2, 4 m + 2, C)``, whose tiles overlap by two, into ``(36, b, n, m, C)``."""
    last = (part.shape[1] - READ, part.shape[2] - READ)
    rows = [part[:, start : last[0] + start + 1 : TILE] for start in range(READ)]
    buffer = part.new_empty(READ, *rows[0].shape)
    _to_points(rows, buffer.unbind(0))
    for row, target in zip(buffer, inputs.view(READ, READ, *inputs.shape[1:])):
        _to_points([row[:, :, start : last[1] + start + 1 : TILE] for start in range(READ)], target.unbind(0))


def _to_points(d: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Write the values of six neighbouring inputs at the six points."""
    torch.sub(d[4], d[2], alpha=5, out=into[0]).add_(d[0], alpha=4)
    torch.sub(d[5], d[3], alpha=5, out=into[5]).add_(d[1], alpha=4)
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=into[1])
    torch.sub(even, odd, out=into[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=into[3])
    torch.sub(even, odd, alpha=2, out=into[4])


def _transform_outputs(products: Tensor, bias: Optional[Tensor], into: Tensor) -> None:
    """Transform ``(6, 6, b, n, m, D)`` back, into maps ``(b, 4 n, 4 m, D)``."""
    batch, rows, columns, outputs = products.shape[2:]
    tiles = into.view(batch, rows, TILE, columns, TILE, outputs)
    if bias is not None:
        # The value at point 1 is added to all outputs of a tile with the same factor.
        products[1, 1].add_(bias)
    for i, line in enumerate(_from_points(products.unbind(0))):
        _from_points(line.unbind(0), [tiles[:, :, i, :, j] for j in range(TILE)])


def _from_points(m: Sequence[Tensor], into: Optional[List[Tensor]] = None) -> List[Tensor]:
    """Return the four outputs of the products at the six points."""
    into = into or [torch.empty_like(m[0]) for _ in range(TILE)]
    plus, minus, plus2, minus2 = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    torch.add(plus, plus2, out=into[0]).add_(m[0])
    torch.add(minus, minus2, alpha=2, out=into[1])
    torch.add(plus, plus2, alpha=4, out=into[2])
    torch.add(minus, minus2, alpha=8, out=into[3]).add_(m[5])
    return into
