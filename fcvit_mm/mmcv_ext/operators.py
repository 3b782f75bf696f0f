"""The operators of ``mmcv._ext``: from torchvision's prebuilt kernels, or in a few lines of PyTorch.

The functions have the names and arguments of mmcv's C++ (``mmcv/ops/csrc/pytorch/pybind.cpp``): they write into
tensors that they are given. Shapes: ``B`` images, ``C`` channels, ``R`` regions, ``N`` boxes, ``K`` classes.
"""

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

#: The smallest normal float32: mmcv's kernels keep logarithms finite with it.
TINY = torch.finfo(torch.float32).tiny


class MMCVOperatorError(UserError, NotImplementedError):
    """An operator of mmcv that only its compiled build has.

    Args:
        name (str): The operator, or the part of it, as mmcv calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f'the operator {name} of mmcv is not available: this mmcv was installed without its compiled operators, '
            'and torchvision has none in its place. With a C++ compiler (and nvcc for a GPU), MMCV=compiled make setup '
            'builds it; in an environment of your own: pip install --no-build-isolation --no-cache-dir '
            '--force-reinstall --no-deps onedl-mmcv'
        )


def _kernels() -> Any:
    """Return torchvision's registered operators."""
    import torchvision  # noqa: F401 (registers them)

    return torch.ops.torchvision


def _recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> Tuple[Tensor, ...]:
    """Return the gradients of ``function(*inputs)`` with respect to ``inputs``."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


# Boxes


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes ``(N, 4)`` that non-maximum suppression keeps, best first."""
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes, scores = boxes.float(), scores.float()
    if offset:  # sides are x2 - x1 + offset
        boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    return _kernels().nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Apply soft non-maximum suppression (arXiv 1704.04503) on the CPU.

    Args:
        boxes (Tensor): ``(N, 4)``.
        scores (Tensor): ``(N,)``.
        dets (Tensor): ``(N, 5)``, gets the boxes that are kept, with their new scores.
        iou_threshold, sigma, min_score (float): As for ``mmcv.ops.soft_nms``.
        method (int): 0 naive, 1 linear, 2 Gaussian.
        offset (int): Sides are ``x2 - x1 + offset``.

    Returns:
        Tensor: Indices of the boxes in ``dets``.
    """
    rows = torch.cat((boxes.float(), scores.float()[:, None]), 1).numpy().copy()
    areas = (rows[:, 2] - rows[:, 0] + offset) * (rows[:, 3] - rows[:, 1] + offset)
    order = torch.arange(len(rows)).numpy()
    number, first = len(rows), 0
    while first < number:
        best = first + int(rows[first:number, 4].argmax())
        for values in (rows, areas, order):
            values[[first, best]] = values[[best, first]]
        rest = slice(first + 1, number)
        width = rows[rest, 2].clip(max=rows[first, 2]) - rows[rest, 0].clip(min=rows[first, 0]) + offset
        height = rows[rest, 3].clip(max=rows[first, 3]) - rows[rest, 1].clip(min=rows[first, 1]) + offset
        overlap = width.clip(min=0) * height.clip(min=0)
        overlap = torch.from_numpy(overlap / (areas[first] + areas[rest] - overlap))
        if method == 2:
            weight = torch.exp(-(overlap * overlap) / sigma)
        else:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap if method == 1 else 0 * overlap, 1.0)
        rows[rest, 4] *= weight.numpy()
        position = first + 1
        while position < number:  # what falls below the least score changes places with the last
            low = (rows[position:number, 4] < min_score).nonzero()[0]
            if not len(low):
                break
            position += int(low[0])
            number -= 1
            for values in (rows, areas, order):
                values[position] = values[number]
        first += 1
    dets[:number].copy_(torch.from_numpy(rows[:number]))
    return torch.from_numpy(order[:number].copy())


def line_nms_forward(boxes: Tensor, scores: Tensor, thresh: float, top_k: int) -> List[Tensor]:
    """Apply non-maximum suppression to lanes (arXiv 2203.10350): of close lanes the best one is kept.

    A lane is known at some of ``P`` rows from the image's bottom to its top. Two lanes are close if their mean distance
    along x, over the rows that both have, is below ``thresh``. (mmcv's own kernel, for CUDA alone, compares what is
    sorted by score with what is not: it is the same for lanes that are sorted.)

    Args:
        boxes (Tensor): ``(N, 5 + P)``: in column 2 the first row, 0 to 1, in column 4 the number of rows, from column 5
            on x at each row. Columns 0, 1 and 3 are not read.
        scores (Tensor): ``(N,)``.
        thresh (float): In the unit of x.
        top_k (int): At most so many stay.

    Returns:
        list[Tensor]: Indices of those that stay, best first, then zeros, ``(N,)``; their number; for each lane
            the number, from 1, of the last better one that stays and is close to it, or of itself; else 0; ``(N,)``.
    """
    order = scores.argsort(descending=True)
    lanes = boxes[order].float()
    count = lanes.shape[1] - 5
    start = (lanes[:, 2] * (count - 1) + 0.5).trunc()
    end = (start + lanes[:, 4].trunc() - 1).clamp(max=count - 1)
    first, last = torch.maximum(start[:, None], start), torch.minimum(end[:, None], end)
    rows = torch.arange(count, device=boxes.device)
    common = (rows >= first[..., None]) & (rows <= last[..., None])
    xs = lanes[:, 5:]
    distance = ((xs[:, None] - xs).abs() * common).sum(-1)
    close = ((last >= first) & (first >= 0) & (distance < thresh * (last - first + 1))).cpu()
    keep, parents = torch.zeros(len(lanes), dtype=torch.long), torch.zeros(len(lanes), dtype=torch.long)
    removed = torch.zeros(len(lanes), dtype=torch.bool)
    number = 0
    for index in range(len(lanes)):
        if removed[index]:
            continue
        if number >= top_k:
            break
        keep[number] = index
        number += 1
        later = close[index].clone()
        later[: index + 1] = False
        removed |= later
        parents[index] = number
        parents[later] = number
    order = order.cpu()
    kept = torch.zeros_like(keep)
    kept[:number] = order[keep[:number]]
    found = [kept, torch.tensor(number), torch.zeros_like(parents).scatter_(0, order, parents)]
    return [each.to(boxes.device) for each in found]


def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    """Group boxes ``(N, 5)`` by the box that suppresses them: each group's first is the one that is kept."""
    order = dets[:, 4].sort(descending=True)[1]
    suppressed = torch.zeros(len(dets), dtype=torch.bool)
    groups = []
    overlaps = _overlaps(dets[:, :4], dets[:, :4])
    for place, index in enumerate(order.tolist()):
        if suppressed[index]:
            continue
        later = order[place + 1 :]
        matched = later[(overlaps[index, later] >= iou_threshold) & ~suppressed[later]]
        suppressed[matched] = True
        groups.append([index, *matched.tolist()])
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write overlaps of boxes into ``ious``: ``(N, M)``, or ``(N,)`` if ``aligned``. Mode 0 is IoU, 1 is IoF."""
    first = bboxes1 if aligned else bboxes1[:, None]
    ious.copy_(_overlaps(first, bboxes2, offset, iof=mode == 1, broadcast=True))


def _overlaps(first: Tensor, second: Tensor, offset: int = 0, iof: bool = False, broadcast: bool = False) -> Tensor:
    if not broadcast:
        first = first[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    overlap = sides.clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second)]
    return overlap / (areas[0] if iof else areas[0] + areas[1] - overlap)


# Regions


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
    # Contiguous: torchvision's kernels read any memory as if it were.
    output.copy_(
        _kernels().roi_align(
            input.contiguous(),
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
    grad_input.copy_(
        _kernels()._roi_align_backward(
            grad_output.contiguous(),
            rois.to(grad_output.dtype).contiguous(),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


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


def _bins(start: Tensor, end: Tensor, count: int, limit: int) -> List[List[List[int]]]:
    size = (end - start)[:, None] / count
    steps = torch.arange(count, device=start.device)
    low = (steps * size + start[:, None]).floor().clamp(0, limit)
    high = ((steps + 1) * size + start[:, None]).ceil().clamp(0, limit)
    return torch.stack((low, high), 2).long().tolist()


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


def _deform_roi_pool(
    input: Tensor, offset: Tensor, rois: Tensor, size: Tuple[int, int], scale: float, ratio: int, gamma: float
) -> Tensor:
    """Compute deformable RoI pooling (arXiv 1703.06211, section 2.2) of ``(B, C, H, W)``: ``(R, C, h, w)``.

    Regions one after the other: the number of samples in a bin depends on the region.
    """
    limits = input.new_tensor(input.shape[:1:-1])  # width, height
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
        seen = ((places >= -1) & (places <= limits)).all(-1)
        grid = 2 * places.clamp(min=0) / (limits - 1).clamp(min=1) - 1
        image = input[int(region[0])][None]
        values = F.grid_sample(image, grid.view(1, -1, 1, 2), padding_mode='border', align_corners=True)
        outputs.append((values.view(-1, *seen.shape) * seen).mean((3, 4)))
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
    """Write deformable RoI pooling into ``output``."""
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

    found = _recompute(pool, [input, offset], grad_output)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[1])


# Losses


def _sigmoid_focal(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    chance = input.sigmoid()
    hit = target[:, None] == torch.arange(input.shape[1], device=input.device)
    positive = -alpha * (1 - chance) ** gamma * chance.clamp(min=TINY).log()
    negative = -(1 - alpha) * chance**gamma * (1 - chance).clamp(min=TINY).log()
    loss = torch.where(hit, positive, negative)
    return loss * weight[target][:, None] if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of logits ``(N, K)`` and classes ``(N,)`` into ``output`` ``(N, K)``."""
    output.copy_(_sigmoid_focal(input.float(), target, weight.float(), gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write each loss's derivative by its own logit into ``grad_input`` ``(N, K)``."""
    (gradient,) = _recompute(
        lambda x: _sigmoid_focal(x, target, weight.float(), gamma, alpha),
        [input.float()],
        torch.ones_like(input, dtype=torch.float32),
    )
    grad_input.copy_(gradient)


def _of_class(softmax: Tensor, target: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the probability of each row's class and its weight, 0 where the class is negative."""
    known = target >= 0
    classes = target.clamp(min=0)
    factor = known.float() * (weight.float()[classes] if weight.numel() else 1.0)
    return softmax.float().gather(1, classes[:, None])[:, 0], factor


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of softmax probabilities ``(N, K)`` and classes ``(N,)`` into ``output`` ``(N,)``."""
    chance, factor = _of_class(input, target, weight)
    output.copy_(-alpha * (1 - chance) ** gamma * chance.clamp(min=TINY).log() * factor)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each row's loss by the logits into ``grad_input`` ``(N, K)``."""
    chance, factor = _of_class(input, target, weight)
    slope = -((1 - chance) ** gamma) + gamma * (1 - chance) ** (gamma - 1) * chance * chance.clamp(min=TINY).log()
    buff.copy_(alpha * slope * factor)
    hit = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(buff[:, None] * (hit.to(input.dtype) - input))


# Convolutions


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the deformable convolution (arXiv 1703.06211) into ``output``."""
    output.copy_(
        _kernels().deform_conv2d(
            input.contiguous(),
            weight,
            offset.contiguous(),
            input.new_zeros(input.shape[0], 1),
            input.new_zeros(weight.shape[0]),
            dH,
            dW,
            padH,
            padW,
            dilationH,
            dilationW,
            group,
            deformable_group,
            False,
        )
    )


def _deform_conv_backward(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    dH: int,
    dW: int,
    padH: int,
    padW: int,
    dilationH: int,
    dilationW: int,
    group: int,
    deformable_group: int,
) -> Tuple[Tensor, ...]:
    return _kernels()._deform_conv2d_backward(
        grad_output.contiguous(),
        input.contiguous(),
        weight,
        offset.contiguous(),
        input.new_zeros(input.shape[0], 1),
        input.new_zeros(weight.shape[0]),
        dH,
        dW,
        padH,
        padW,
        dilationH,
        dilationW,
        group,
        deformable_group,
        False,
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` for its input and offsets."""
    grad_input, _, grad_offset, *_ = _deform_conv_backward(
        input, offset, gradOutput, weight, dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    )
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of :func:`deform_conv_forward` for its weight to ``gradWeight``."""
    # The gradient of the weight does not depend on the weight.
    _, grad_weight, *_ = _deform_conv_backward(
        input,
        offset,
        gradOutput,
        torch.zeros_like(gradWeight),
        dH,
        dW,
        padH,
        padW,
        dilationH,
        dilationW,
        group,
        deformable_group,
    )
    gradWeight.add_(grad_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the modulated deformable convolution (arXiv 1811.11168) into ``output``."""
    output.copy_(
        _kernels().deform_conv2d(
            input.contiguous(),
            weight,
            offset.contiguous(),
            mask.contiguous(),
            bias if with_bias else input.new_zeros(weight.shape[0]),
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            group,
            deformable_group,
            True,
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    found = _kernels()._deform_conv2d_backward(
        grad_output.contiguous(),
        input.contiguous(),
        weight,
        offset.contiguous(),
        mask.contiguous(),
        bias if with_bias else input.new_zeros(weight.shape[0]),
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
        True,
    )
    for into, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), found):
        into.copy_(gradient)
    if with_bias:
        grad_bias.copy_(found[4])


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the windows of ``(1, C, H, W)`` around chosen positions into ``col`` ``(C h w, positions)``."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx[None, :] + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx[None, :] + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write columns ``(C, positions)`` to chosen positions of ``(1, C, H, W)``."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Compute CARAFE (arXiv 1905.02188): ``(B, C, h, w)``, ``(B, G k k, H, W)`` to ``(B, C, H, W)``."""
    batch, channels, height, width = features.shape
    windows = F.unfold(features, kernel_size, padding=kernel_size // 2)
    windows = windows.view(batch, group_size, channels // group_size, kernel_size**2, height, 1, width, 1)
    weights = masks.view(batch, group_size, 1, kernel_size**2, height, scale_factor, width, scale_factor)
    return (windows * weights).sum(3).reshape(batch, channels, height * scale_factor, width * scale_factor)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write CARAFE's upsampled map into ``output``."""
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_naive_forward`."""
    found = _recompute(lambda x, y: _carafe(x, y, kernel_size, group_size, scale_factor), [features, masks], top_grad)
    bottom_grad.copy_(found[0])
    mask_grad.copy_(found[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write CARAFE's upsampled map into ``output``; ``rfeatures`` keeps the features for the backward pass."""
    rfeatures.resize_(features.shape).copy_(features)
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_forward`."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


# Attention


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute multi-scale deformable attention (arXiv 2010.04159) with mmcv's PyTorch version: ``(B, queries, C)``."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    found = _recompute(
        lambda x, y, z: ms_deform_attn_forward(x, value_spatial_shapes, value_level_start_index, y, z, im2col_step),
        [value, sampling_locations, attention_weights],
        grad_output,
    )
    for into, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found):
        into.copy_(gradient)


def _psa_places(
    size: Tuple[int, int], mask: Tuple[int, int], psa_type: int, device: torch.device
) -> Tuple[Tensor, ...]:
    """Return which position of which mask goes to which position of the output."""
    (height, width), (rows, columns) = size, mask
    h, w, i, j = torch.meshgrid(
        *(torch.arange(n, device=device) for n in (height, width, rows, columns)), indexing='ij'
    )
    other_h, other_w = h + i - (rows - 1) // 2, w + j - (columns - 1) // 2
    inside = (other_h >= 0) & (other_h < height) & (other_w >= 0) & (other_w < width)
    h, w, i, j, other_h, other_w = (each[inside] for each in (h, w, i, j, other_h, other_w))
    here, there = h * width + w, other_h * width + other_w
    place = (there, h, w) if psa_type == 0 else (here, other_h, other_w)
    return (i * columns + j, h, w, *place)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spread PSANet's attention (ECCV 2018) ``(B, h w, H, W)`` over all positions ``(B, H W, H, W)``."""
    channel, h, w, *place = _psa_places((h_feature, w_feature), (h_mask, w_mask), psa_type, input.device)
    output[:, place[0], place[1], place[2]] = input[:, channel, h, w]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of :func:`psamask_forward` into ``grad_input``."""
    channel, h, w, *place = _psa_places((h_feature, w_feature), (h_mask, w_mask), psa_type, grad_output.device)
    grad_input[:, channel, h, w] = grad_output[:, place[0], place[1], place[2]]


# Normalisation


def _of_channels(values: Tensor) -> Tensor:
    return values[:, None]


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of each channel of ``(B, C, L)`` into ``mean`` ``(C,)``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared distance of each channel of ``(B, C, L)`` from ``mean`` ``(C,)`` into ``var`` ``(C,)``."""
    var.copy_((input.float() - _of_channels(mean)).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Normalise (arXiv 1502.03167) ``(B, C, L)`` by statistics ``(C,)`` of all processes.

    Args:
        input (Tensor): ``(B, C, L)``.
        mean, var (Tensor): Of each channel, biased.
        weight, bias (Tensor, optional): ``(C,)``.
        running_mean, running_var (Tensor, optional): ``(C,)``; they move by ``momentum``, the variance unbiased.
        norm, std, output (Tensor): Get the normalised map, the standard deviations and the result.
        eps (float): Added to the variance.
        momentum (float): Of the running statistics, as PyTorch has it: the share of the new ones.
        group_size (int): Number of processes, each with a batch like this one.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - _of_channels(mean)) / _of_channels(std))
    result = norm if weight is None else norm * _of_channels(weight)
    output.copy_(result if bias is None else result + _of_channels(bias))
    if running_mean is not None and running_var is not None:
        count = input.shape[0] * input.shape[2] * group_size
        running_mean.lerp_(mean.to(running_mean), float(momentum))
        running_var.lerp_((var * count / (count - 1) if count > 1 else var).to(running_var), float(momentum))


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of :func:`sync_bn_forward_output` for weight and bias, of this process's batch."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the input's gradient of :func:`sync_bn_forward_output`; those of weight and bias are of all processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    shared = (_of_channels(grad_weight) * norm + _of_channels(grad_bias)) / count
    grad_input.copy_(_of_channels(weight / std) * (grad_output.float() - shared))


# What mmcv asks of the module itself


def get_compiler_version() -> str:
    """Return the compiler entry in reports of the environment."""
    return 'none (operators from torchvision, by fcvit_mm.mmcv_ext)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version entry in reports of the environment."""
    return 'not compiled'


def __getattr__(name: str) -> Callable[..., Any]:
    """Give every other operator, for mmcv asks for all of them when it is imported: one that raises when called."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise MMCVOperatorError(name)

    missing.__name__ = name
    return missing
