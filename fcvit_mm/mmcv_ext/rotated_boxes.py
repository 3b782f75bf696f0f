"""Rotated boxes: overlaps, non-maximum suppression, and the order of vertices for differentiable overlaps.

A rotated box is its center x, y, its width and height, and its angle in radians, which turns the x-axis towards the
y-axis. Computations are in float64, because overlaps of boxes with a common edge depend on the sign of rounding errors.
"""

from typing import Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pairs of boxes that are compared at the same time.
PAIRS = 1 << 18
#: Relative difference of lengths, or of directions in radians, below which they count as equal.
EQUAL = 1e-9
#: Entries of a polygon in :func:`diff_iou_rotated_sort_vertices_forward`, and of these, corners of the two boxes.
VERTICES, CORNERS = 9, 8


def _corners(boxes: Tensor) -> Tensor:
    """Return the corners of rotated boxes ``(N, 5)``, in one direction of rotation, ``(N, 4, 2)``."""
    center, size, angle = boxes[:, None, :2], boxes[:, None, 2:4], boxes[:, 4]
    cos, sin = angle.cos(), angle.sin()
    signs = boxes.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    rotation = torch.stack((torch.stack((cos, sin), -1), torch.stack((-sin, cos), -1)), -2)
    return center + (signs * size) @ rotation


def _inside_part(first: Tensor, second: Tensor, closed: bool) -> Tensor:
    """Return twice the area between the origin and those parts of the edges of ``first`` that are inside ``second``.

    Args:
        first, second (Tensor): Corners of convex polygons, ``(N, 4, 2)``.
        closed (bool): An edge on an edge of ``second`` is inside.
    """
    edges, sides = first.roll(-1, 1) - first, second.roll(-1, 1) - second
    inward = torch.stack((-sides[..., 1], sides[..., 0]), -1)[:, None]  # (N, 1, 4, 2), as below
    start, direction = first[:, :, None], edges[:, :, None]
    height = ((start - second[:, None]) * inward).sum(-1)  # times the length of the side
    slope = (direction * inward).sum(-1)
    lengths = inward.norm(dim=-1)
    parallel = slope.abs() <= EQUAL * lengths * direction.norm(dim=-1)
    touching = height.abs() <= EQUAL * lengths * (lengths + direction.norm(dim=-1))
    # The part of an edge, from 0 to 1, on the inner side of each side.
    at = -height / slope.masked_fill(parallel, 1)
    low = at.masked_fill(parallel | (slope < 0), 0).amax(-1)
    high = at.masked_fill(parallel | (slope > 0), 1).amin(-1)
    outside = (parallel & ((height < 0) & ~touching | (touching & (not closed)))).any(-1)
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    found = (low < high) & ~outside
    ends = [first + part[..., None] * edges for part in (low, high)]
    return ((ends[0][..., 0] * ends[1][..., 1] - ends[0][..., 1] * ends[1][..., 0]) * found).sum(-1)


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """Return the area of the intersection of rotated boxes, pair by pair: ``(N, 5)`` and ``(N, 5)`` give ``(N,)``."""
    shift = F.pad((first[:, :2] + second[:, :2]) / 2, (0, 3))  # small numbers are more exact
    one, other = _corners(first - shift), _corners(second - shift)
    # The boundary of the intersection consists of each box's edges inside the other; common parts count once.
    return (_inside_part(one, other, closed=True) + _inside_part(other, one, closed=False)).clamp(min=0) / 2


def _overlaps(first: Tensor, second: Tensor, iof: bool = False) -> Tensor:
    """Return IoU, or intersection over the first one's area, of rotated boxes, pair by pair, ``(N,)`` float64."""
    first, second = first.double(), second.double()
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (first, second)]
    parts = zip(first.split(PAIRS), second.split(PAIRS))
    overlap = torch.cat([_intersections(*part) for part in parts]) if len(first) else first.new_zeros(0)
    found = overlap / (areas[0] if iof else areas[0] + areas[1] - overlap)
    return found.masked_fill((areas[0] < 1e-14) | (areas[1] < 1e-14), 0)


def _close_pairs(first: Tensor, second: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """Yield indices of the pairs whose circles around the boxes overlap: the others' IoU is 0."""
    radii = [boxes[:, 2:4].norm(dim=1) / 2 for boxes in (first, second)]
    rows = max(1, PAIRS // max(1, len(second)))
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        # Not cdist, which is inexact.
        apart = (first[part, None, :2] - second[:, :2]).norm(dim=-1)
        pairs = (apart <= (radii[0][part, None] + radii[1]) * (1 + EQUAL)).nonzero()
        yield pairs[:, 0] + start, pairs[:, 1]


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Write overlaps of rotated boxes into ``ious``: ``(N * M,)``, or ``(N,)`` if ``aligned``. Mode 0 is IoU, 1 IoF."""
    if aligned:
        ious.copy_(_overlaps(boxes1, boxes2, mode_flag == 1))
        return
    table = ious.view(len(boxes1), len(boxes2)).zero_()
    first, second = boxes1.double(), boxes2.double()
    for rows, columns in _close_pairs(first, second):
        table[rows, columns] = _overlaps(first[rows], second[columns], mode_flag == 1).to(ious.dtype)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Apply non-maximum suppression to rotated boxes.

    Args:
        dets, scores, labels (Tensor): Not read; the following are the same, sorted.
        order (Tensor): Indices of the boxes, best first, ``(N,)``.
        dets_sorted (Tensor): Boxes in this order, ``(N, 5)``; with ``multi_label`` and labels, ``(N, 6)``.
        iou_threshold (float): Overlap above which a better box suppresses another.
        multi_label (int): Whether boxes of different labels suppress each other (0) or not. (mmcv's kernel for CPUs
            does not read the labels; that for GPUs does.)

    Returns:
        Tensor: Indices of the boxes that are kept, best first.
    """
    boxes = dets_sorted.double()
    found = []
    for rows, columns in _close_pairs(boxes, boxes):
        later = columns > rows
        if multi_label:
            later &= boxes[rows, 5] == boxes[columns, 5]
        rows, columns = rows[later], columns[later]
        above = _overlaps(boxes[rows, :5], boxes[columns, :5]) > iou_threshold
        found.append(torch.stack((rows[above], columns[above])).cpu())
    kept = torch.ones(len(boxes), dtype=torch.bool)
    if found:
        rows, columns = torch.cat(found, 1)  # ordered by row
        numbers, counts = rows.unique_consecutive(return_counts=True)
        for number, suppressed in zip(numbers.tolist(), columns.split(counts.tolist())):
            if kept[number]:
                kept[suppressed] = False
    return order[kept.to(order.device)]


def diff_iou_rotated_sort_vertices_forward(vertices: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """Sort the vertices of intersections of boxes by angle.

    Args:
        vertices (Tensor): Corners of both boxes, then intersections of edges, with the origin inside,
            ``(B, N, 24, 2)``.
        mask (Tensor): Which of them are vertices, ``(B, N, 24)``.
        num_valid (Tensor): Their numbers; not read, because vertices at the same place count once here.

    Returns:
        Tensor: Indices of the vertices in order, the first one again, then an index of none, ``(B, N, 9)`` int32.
    """
    pad = (~mask[..., CORNERS:]).int().argmax(-1, keepdim=True) + CORNERS
    angles = torch.atan2(vertices[..., 1], vertices[..., 0]).masked_fill(~mask, torch.inf)
    angles, order = angles.sort(dim=-1, stable=True)
    repeated = F.pad(angles[..., 1:] - angles[..., :-1] < 1e-6, (1, 0)) & angles.isfinite()
    angles, again = angles.masked_fill(repeated, torch.inf).sort(dim=-1, stable=True)
    order, valid = order.gather(-1, again)[..., :VERTICES], angles[..., :VERTICES].isfinite()
    count = valid.sum(-1, keepdim=True).clamp(max=VERTICES - 1)
    places = torch.arange(VERTICES, device=vertices.device)
    order = torch.where(places < count, order, torch.where(places == count, order[..., :1], pad))
    return torch.where(count < 3, pad, order).int()
