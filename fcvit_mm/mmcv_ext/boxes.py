"""Boxes and lanes: overlaps and non-maximum suppression."""

from typing import List

import torch
from torch import Tensor

from .support import torchvision_kernels


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes ``(N, 4)`` that non-maximum suppression keeps, best first."""
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes, scores = boxes.float(), scores.float()
    if offset:  # sides are x2 - x1 + offset
        boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    return torchvision_kernels().nms(boxes, scores.to(boxes.dtype), iou_threshold)


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
        iou_threshold, sigma, min_score (float): Arguments of ``mmcv.ops.soft_nms``.
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
        while position < number:  # a box whose score falls below the minimum is swapped with the last one
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

    A lane has points at some of ``P`` rows from the image's bottom to its top. Two lanes are close if their mean
    distance along x, over the rows that both have, is below ``thresh``. (mmcv's own kernel, for CUDA only, compares
    sorted lanes with unsorted ones; for lanes sorted by score the results are equal.)

    Args:
        boxes (Tensor): ``(N, 5 + P)``: in column 2 the first row, 0 to 1, in column 4 the number of rows, from column 5
            on x at each row. Columns 0, 1 and 3 are not read.
        scores (Tensor): ``(N,)``.
        thresh (float): Threshold, in the unit of x.
        top_k (int): Largest number of lanes that are kept.

    Returns:
        list[Tensor]: Indices of the lanes that are kept, best first, followed by zeros, ``(N,)``; their number; for
            each lane ``(N,)`` the number, from 1, of the last better lane that is kept and close to it, or of itself if
            it is kept; otherwise 0.
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
