"""RoIAlign on CPUs as weighted sums of rows of a channels_last map."""

from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops.conditions import HALF, needs_grad
from ..ops.dispatch import current_mode
from ..ops.tracing import is_traced, is_transformed

#: Number of regions computed at once, which limits the memory for their samples.
REGIONS = 256


class RoIAlign(nn.Module):
    """RoIAlign with averages, for inference: torchvision's, or :func:`roi_align_rows` where that is faster.

    It replaces mmcv's RoIAlign, whose compiled CPU operator reads any memory as if it were contiguous.

    Source: He et al., "Mask R-CNN", arXiv 1703.06870.

    Args:
        output_size (tuple[int, int]): Height and width of the outputs.
        spatial_scale (float): Factor that regions are multiplied by.
        sampling_ratio (int): Samples in each bin along each axis; 0: as many as the bin has pixels.
        aligned (bool): Whether pixels have their centres at halves.

    Shape:
        ``(B, C, H, W)`` and ``(R, 5)``, image and corners, to ``(R, C, h, w)``.
    """

    pool_mode, use_torchvision = 'avg', True  # attributes of mmcv's RoIAlign

    def __init__(
        self, output_size: Tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        options = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        if (
            not is_traced()
            and current_mode() != 'reference'
            and not is_transformed()
            and input.device.type == 'cpu'
            and all(x.dtype in (torch.float32, *HALF) for x in (input, rois))
            and input.is_contiguous(memory_format=torch.channels_last)
            and not needs_grad(input, rois)
        ):
            return roi_align_rows(input.float(), rois.float(), *options).to(input.dtype)
        from torchvision.ops import roi_align

        return roi_align(input.contiguous(), rois, *options)

    def extra_repr(self) -> str:
        return (
            f'output_size={self.output_size}, spatial_scale={self.spatial_scale}, '
            f'sampling_ratio={self.sampling_ratio}, aligned={self.aligned}'
        )


@torch.no_grad()
def roi_align_rows(
    x: Tensor, rois: Tensor, output_size: Tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Apply RoIAlign to a channels_last map: each bin is a weighted sum of the pixels around its samples.

    Args:
        x (Tensor): ``(B, C, H, W)`` in channels_last, float32.
        rois (Tensor): ``(R, 5)``: image, and left, top, right, bottom.
        output_size (tuple[int, int]): ``(h, w)``.
        scale (float): Factor that regions are multiplied by.
        sampling_ratio (int): Samples in each bin along each axis; 0: as many as the bin has pixels.
        aligned (bool): Whether pixels have their centres at halves.

    Returns:
        Tensor: ``(R, C, h, w)`` in channels_last.
    """
    (_, channels, height, width), (bins_y, bins_x) = x.shape, output_size
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    result = x.new_empty(len(rois), bins_y, bins_x, channels)
    for begin in range(0, len(rois), REGIONS):
        part = rois[begin : begin + REGIONS]
        corners = part[:, 1:] * scale - (0.5 if aligned else 0.0)
        sides = corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        index_x, weight_x, count_x = _taps(corners[:, 0], sides[:, 0], bins_x, sampling_ratio, width)
        index_y, weight_y, count_y = _taps(corners[:, 1], sides[:, 1], bins_y, sampling_ratio, height)
        index_y = index_y * width + part[:, 0].long()[:, None, None] * (height * width)
        # The pixels of all bins, one bin after the other: rows times columns.
        counts = (count_y * count_x)[:, None].expand(-1, bins_y * bins_x).reshape(-1)
        ends = counts.cumsum(0)
        starts = ends - counts
        bins = torch.repeat_interleave(counts)
        place = torch.arange(len(bins)) - starts[bins]
        region = bins // (bins_y * bins_x)
        across = count_x[region]
        row = bins // bins_x * index_y.shape[2] + place // across
        column = (region * bins_x + bins % bins_x) * index_x.shape[2] + place % across
        result[begin : begin + REGIONS].view(-1, channels).copy_(
            F.embedding_bag(
                index_y.view(-1)[row] + index_x.view(-1)[column],
                pixels,
                starts,
                mode='sum',
                per_sample_weights=weight_y.view(-1)[row] * weight_x.view(-1)[column],
            )
        )
    return result.permute(0, 3, 1, 2)


def _taps(start: Tensor, side: Tensor, bins: int, sampling_ratio: int, size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the pixels that each bin of each region reads along an axis.

    Args:
        start, side (Tensor): ``(R,)``, in pixels.
        bins (int): ``P``.
        sampling_ratio (int): Samples in each bin; 0: as many as it has pixels.
        size (int): Pixels of the axis.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Indices and weights ``(R, P, K)``, and the number of valid ones of the K,
        ``(R,)``.
    """
    bin_size = side / bins
    number = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
    number = number.clamp(min=0)
    steps = torch.arange(max(1, int(number.max())))
    used = steps < number[:, None, None]
    offsets = torch.arange(bins)[:, None] * bin_size[:, None, None]
    at = start[:, None, None] + offsets + (steps + 0.5) * (bin_size / number.clamp(min=1))[:, None, None]
    used = used & (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.long()
    part = at - low
    share = used / number.clamp(min=1)[:, None, None]
    if sampling_ratio > 0:
        index = torch.cat((low, (low + 1).clamp(max=size - 1)), 2)
        weight = torch.cat((share * (1 - part), share * part), 2)
        return index, weight, number.long() * 2
    # Samples are at most one pixel apart, so together they read one pixel more than there are samples.
    first = low[:, :, :1]
    weight = start.new_zeros(len(start), bins, len(steps) + 1)
    place = (low - first).clamp(0, len(steps))
    weight.scatter_add_(2, place, share * (1 - part))
    weight.scatter_add_(2, (place + 1).clamp(max=len(steps)), share * part)
    index = (first + torch.arange(len(steps) + 1)).clamp(max=size - 1)
    return index, weight, number.long() + 1
