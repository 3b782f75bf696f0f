"""Pooling of regions: RoIAlign, also of rotated regions, RoIPool and deformable RoIPool."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MMCVOperatorError
from .support import for_torchvision, recompute, torchvision_kernels


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Apply RoIAlign (arXiv 1703.06870): ``(B, C, H, W)`` and regions ``(R, 5)`` into ``output`` ``(R, C, h, w)``."""
    if pool_mode == 0:
        raise MMCVOperatorError("roi_align with pool_mode='max'")
    input = for_torchvision(input)
    output.copy_(
        torchvision_kernels().roi_align(
            input,
            rois.to(input.dtype).contiguous(),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` into ``grad_input``."""
    if pool_mode == 0:
        raise MMCVOperatorError("roi_align with pool_mode='max'")
    grad_output = for_torchvision(grad_output)
    grad_input.copy_(
        torchvision_kernels()._roi_align_backward(
            grad_output,
            rois.to(grad_output.dtype).contiguous(),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _bins(start: Tensor, end: Tensor, count: int, limit: int) -> List[List[List[int]]]:
    size = (end - start)[:, None] / count
    steps = torch.arange(count, device=start.device)
    low = (steps * size + start[:, None]).floor().clamp(0, limit)
    high = ((steps + 1) * size + start[:, None]).ceil().clamp(0, limit)
    return torch.stack((low, high), 2).long().tolist()


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Apply RoIPool (arXiv 1504.08083): ``(B, C, H, W)`` and regions ``(R, 5)`` into ``output`` ``(R, C, h, w)``.

    With mmcv's rounding, which differs from torchvision's. ``argmax`` gets the index of each maximum, -1 for none.
    """
    height, width = input.shape[2:]
    scaled = torch.stack((rois[:, 1], rois[:, 2], rois[:, 3] + 1, rois[:, 4] + 1), 1).to(input.dtype) * spatial_scale
    rows = _bins(scaled[:, 1], scaled[:, 3], pooled_height, height)
    columns = _bins(scaled[:, 0], scaled[:, 2], pooled_width, width)
    output.zero_()
    argmax.fill_(-1)
    for i, image in enumerate(rois[:, 0].long().tolist()):
        if scaled[i, 2] <= scaled[i, 0] or scaled[i, 3] <= scaled[i, 1]:
            continue
        for h, (top, bottom) in enumerate(rows[i]):
            for w, (left, right) in enumerate(columns[i]):
                if bottom > top and right > left:
                    part = input[image, :, top:bottom, left:right].flatten(1)
                    values, places = part.max(1)
                    output[i, :, h, w] = values
                    across = right - left
                    place = (top + places // across) * width + left + places % across
                    argmax[i, :, h, w] = place.to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of :func:`roi_pool_forward` into ``grad_input``."""
    channels, area = grad_input.shape[1], grad_input.shape[2] * grad_input.shape[3]
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    places = planes[:, :, None, None] * area + argmax.long()
    kept = argmax >= 0
    grad_input.view(-1).index_add_(0, places[kept], grad_output[kept])


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    """Interpolate a map ``(C, H, W)`` at places ``(..., 2)`` (x, y) in pixels, as RoIAlign does: ``(C, ...)``."""
    limits = image.new_tensor(image.shape[:0:-1])  # width, height
    seen = ((places >= -1) & (places <= limits)).all(-1)
    grid = 2 * places.clamp(min=0) / (limits - 1).clamp(min=1) - 1
    values = F.grid_sample(image[None], grid.view(1, -1, 1, 2), padding_mode='border', align_corners=True)
    return values.view(-1, *seen.shape) * seen


def _deform_roi_pool(
    input: Tensor, offset: Tensor, rois: Tensor, size: Tuple[int, int], scale: float, ratio: int, gamma: float
) -> Tensor:
    """Compute deformable RoI pooling (arXiv 1703.06211, section 2.2) of ``(B, C, H, W)``: ``(R, C, h, w)``.

    Regions one after the other: the number of samples in a bin depends on the region.
    """
    shift = offset.view(-1, 2, *size).movedim(1, -1) if offset.numel() else input.new_zeros(len(rois), *size, 2)
    outputs = []
    for region, moved in zip(rois, shift):
        start, sides = region[1:3] * scale - 0.5, (region[3:] - region[1:3]) * scale
        bins = sides / sides.new_tensor(size[::-1])
        columns, rows = [ratio if ratio > 0 else int(side) for side in bins.ceil().clamp(min=0)]
        if not rows * columns:
            outputs.append(input.new_zeros(input.shape[1], *size))
            continue
        # Samples (h, w, rows, columns) of each bin, x before y.
        inside = torch.stack(
            torch.meshgrid(*((torch.arange(n, device=input.device) + 0.5) / n for n in (columns, rows)), indexing='xy'),
            -1,
        )
        corners = torch.stack(
            torch.meshgrid(*(torch.arange(n, device=input.device) for n in size[::-1]), indexing='xy'), -1
        )
        places = (start + gamma * sides * moved)[:, :, None, None] + (corners[:, :, None, None] + inside) * bins
        outputs.append(_sampled(input[int(region[0])], places).mean((3, 4)))
    return torch.stack(outputs) if outputs else input.new_zeros(0, input.shape[1], *size)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write deformable RoI pooling of ``(B, C, H, W)`` and regions ``(R, 5)`` into ``output`` ``(R, C, h, w)``.

    The offsets are ``(R, 2, h, w)``, x before y, relative to the size of the region; empty for none.
    """
    size = (pooled_height, pooled_width)
    output.copy_(_deform_roi_pool(input, offset, rois, size, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of :func:`deform_roi_pool_forward` for its input and offsets."""
    size = (pooled_height, pooled_width)

    def pool(x: Tensor, y: Tensor) -> Tensor:
        return _deform_roi_pool(x, y, rois, size, spatial_scale, sampling_ratio, gamma) + 0 * y.sum()

    found = recompute(pool, [input, offset], grad_output)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[1])


def _pool_rotated(
    input: Tensor, rois: Tensor, size: Tuple[int, int], scale: float, ratio: int, aligned: bool, clockwise: bool
) -> Tensor:
    """Compute RoIAlign of rotated regions ``(R, 6)``: image, center, size, angle in radians; ``(R, C, h, w)``."""
    center, sides = rois[:, 1:3] * scale - (0.5 if aligned else 0.0), rois[:, 3:5] * scale
    if not aligned:
        sides = sides.clamp(min=1)
    bins = sides / sides.new_tensor(size[::-1])
    angle = rois[:, 5] if clockwise else -rois[:, 5]
    samples = torch.full_like(bins, ratio) if ratio > 0 else bins.ceil()
    groups = torch.cat((rois[:, :1], samples), 1)
    output = input.new_zeros(len(rois), input.shape[1], *size)
    for group in groups.unique(dim=0):
        chosen = (groups == group).all(1).nonzero()[:, 0]
        image, columns, rows = group.long().tolist()
        if not rows * columns:
            continue
        x, y = (_places(bins[chosen, axis], *each) for axis, each in enumerate(((size[1], columns), (size[0], rows))))
        x, y = x[:, None, :, None, :], y[:, :, None, :, None]  # (R, h, w, rows, columns)
        cos, sin = (function(angle[chosen])[:, None, None, None, None] for function in (torch.cos, torch.sin))
        places = torch.stack((x * cos - y * sin, x * sin + y * cos), -1) + center[chosen][:, None, None, None, None]
        output = output.index_copy(0, chosen, _sampled(input[image], places).mean((4, 5)).transpose(0, 1))
    return output


def _places(bins: Tensor, count: int, samples: int) -> Tensor:
    """Return the coordinates of samples along one side, from the center: ``(R,)`` gives ``(R, count, samples)``."""
    steps = torch.arange(count, device=bins.device)[:, None] - count / 2
    return bins[:, None, None] * (steps + (torch.arange(samples, device=bins.device) + 0.5) / samples)


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Apply RoIAlign to rotated regions ``(R, 6)`` of ``(B, C, H, W)``; writes into ``output``, ``(R, C, h, w)``."""
    size = (pooled_height, pooled_width)
    output.copy_(_pool_rotated(input, rois, size, spatial_scale, sampling_ratio, aligned, clockwise))


def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Write the gradient of :func:`roi_align_rotated_forward` into ``grad_input``."""
    size = (pooled_height, pooled_width)

    def pool(x: Tensor) -> Tensor:
        return _pool_rotated(x, rois, size, spatial_scale, sampling_ratio, aligned, clockwise) + 0 * x.sum()

    grad_input.copy_(recompute(pool, [torch.zeros_like(grad_input)], grad_output)[0])
