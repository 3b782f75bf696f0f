"""Heads that predict at every location: RetinaNet, FCOS, ATSS, RTMDet, RTMDet-Ins, and proposals."""

import math
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .replacements import box_coder
from .steps import flatten_priors, grouped_nms, topk
from .supported import checked_cfg, refuse


class Found(NamedTuple):
    """Detections of an image, best first.

    Attributes:
        boxes (Tensor): ``(N, 4)``: left, top, right, bottom in pixels of the graph's input.
        scores (Tensor): ``(N,)``.
        labels (Tensor): ``(N,)`` int64; the level of the pyramid in proposals.
        others (tuple[Tensor]): Further outputs of the head, one row per detection.
        priors (Tensor): ``(N, 2 or 4)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    others: Tuple[Tensor, ...]
    priors: Tensor


class Dense(nn.Module):
    """Heads that predict at every location, as ``BaseDenseHead`` does: RetinaNet, FCOS, ATSS, RTMDet.

    Args:
        head (BaseDenseHead): A head; its box coder is replaced.
    """

    has_masks = False
    #: Whether candidates below the score threshold are dropped.
    has_threshold = True
    #: Whether ``topk`` in the runtime breaks ties by order.
    stable_topk = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head
        self.cfg = checked_cfg(head, head.test_cfg)
        head.bbox_coder = box_coder(head)
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            refuse(head, f'scores by its loss {type(head.loss_cls).__name__}')

    def description(self) -> Dict[str, str]:
        """Describe masks, if there are any, for the file's metadata."""
        return {}

    def forward(self, maps: Sequence[Tensor], height: Any, width: Any) -> Tuple[Tensor, ...]:
        """Return boxes, scores and labels for the feature maps of an image of this height and width."""
        found = self.find(self.head(maps), height, width)
        return found.boxes, found.scores, found.labels

    def find(self, outputs: Sequence[Any], height: Any, width: Any) -> Found:
        """Return detections from a head's outputs: for each level scores, deltas and others, ``(1, A * n, H, W)``."""
        maps, deltas, *others = outputs
        levels = zip(maps, deltas, self.priors([x.shape[-2:] for x in maps], maps[0]), *others)
        chosen = [self.choose(number, *level) for number, level in enumerate(levels)]
        scores, labels, decoded, priors, *rest = (torch.cat(parts) for parts in zip(*chosen))
        boxes = self.head.bbox_coder.decode(self.points(priors), decoded, (height, width))
        keep = torch.ones_like(scores, dtype=torch.bool)
        least = self.cfg.get('min_bbox_size', -1)
        if least >= 0:
            keep = (boxes[:, 2] - boxes[:, 0] > least) & (boxes[:, 3] - boxes[:, 1] > least)
        if self.has_threshold:
            keep = keep & (scores > float(self.cfg.get('score_thr', 0)))
        kept = keep.nonzero()[:, 0]
        scores, rest = self.weighted(scores, rest)
        boxes, scores, labels, priors = boxes[kept], scores[kept], labels[kept], priors[kept]
        best = grouped_nms(boxes, scores, labels, self.cfg['nms'], self.cfg['max_per_img'])
        return Found(boxes[best], scores[best], labels[best], tuple(x[kept][best] for x in rest), priors[best])

    def priors(self, sizes: List[Any], like: Tensor) -> List[Tensor]:
        """Return the anchors ``(H * W * A, 4)`` or points ``(H * W, 2)`` of each level, in pixels of the image."""
        return self.head.prior_generator.grid_priors(sizes, dtype=like.dtype, device=like.device)

    def points(self, priors: Tensor) -> Tensor:
        """Return the part of the priors ``(N, 2 or 4)`` that the box coder needs."""
        return priors

    def choose(
        self, number: int, scores: Tensor, deltas: Tensor, priors: Tensor, *others: Tensor
    ) -> Tuple[Tensor, ...]:
        """Select the best pairs of location and class of a level.

        Args:
            number (int): Number of the level.
            scores (Tensor): Logits of the classes, ``(1, A * classes, H, W)``.
            deltas (Tensor): Encoded boxes, ``(1, A * 4, H, W)``.
            priors (Tensor): ``(H * W * A, 2 or 4)``.
            others (Tensor): Further outputs of the head, ``(1, A * n, H, W)`` each.

        Returns:
            tuple[Tensor]: Of at most ``nms_pre`` candidates: scores ``(N,)``, labels ``(N,)``, deltas ``(N, 4)``,
            priors ``(N, 2 or 4)``, and the further outputs ``(N, n)``.
        """
        logits = flatten_priors(scores, self.head.cls_out_channels)
        values = logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        classes = values.shape[1]
        values = values.flatten()
        if self.cfg.get('nms_pre', -1) > 0:
            values, index = topk(values, self.cfg['nms_pre'], self.stable_topk)
        else:
            index = torch.arange(values.shape[0], device=values.device)
        place = index.div(classes, rounding_mode='floor')
        rest = [flatten_priors(x, width)[place] for x, width in zip(others, self.widths(len(others)))]
        labels = self.labels(number, index - place * classes)
        return (values, labels, flatten_priors(deltas, 4)[place], priors[place], *rest)

    def widths(self, number: int) -> List[int]:
        """Return the number of values per prior of each additional output."""
        return [1] * number

    def labels(self, number: int, classes: Tensor) -> Tensor:
        """Return the group of each candidate for non-maximum suppression, ``(N,)``: by default its class."""
        return classes

    def weighted(self, scores: Tensor, rest: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        """Multiply scores ``(N,)`` by the centre-ness ``(N, 1)`` that a head predicts, if it does."""
        return (scores * rest[0][:, 0].sigmoid(), rest[1:]) if rest else (scores, rest)


class DenseMasks(Dense):
    """Heads with masks of RTMDet-Ins: a small network per detection, applied to shared feature maps.

    The masks are logits at the stride of the first level, ``(N, H / stride, W / stride)``: mmdet enlarges them.
    """

    has_masks = True

    def description(self) -> Dict[str, str]:
        stride = self.head.prior_generator.strides[0][0]
        return dict(
            masks='float32 (N, h, w): logits of the whole input, padded, each of mask_stride pixels',
            mask_kind='image',
            mask_stride=str(stride),
            mask_threshold=str(float(self.cfg['mask_thr_binary'])),
        )

    def forward(self, maps: Sequence[Tensor], height: Any, width: Any) -> Tuple[Tensor, ...]:
        *outputs, shared = self.head(maps)
        found = self.find(outputs, height, width)
        return found.boxes, found.scores, found.labels, self._masks(shared, found.others[0], found.priors)

    def priors(self, sizes: List[Any], like: Tensor) -> List[Tensor]:
        generator = self.head.prior_generator
        return generator.grid_priors(sizes, dtype=like.dtype, device=like.device, with_stride=True)

    def points(self, priors: Tensor) -> Tensor:
        return priors[:, :2]

    def widths(self, number: int) -> List[int]:
        return [self.head.num_gen_params]

    def weighted(self, scores: Tensor, rest: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        return scores, rest

    def _masks(self, shared: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
        """Convolve by matrix products: the number of groups of 1x1 convolutions cannot be dynamic in a graph."""
        head = self.head
        height, width = shared.shape[-2:]
        grid = head.prior_generator.single_level_grid_priors((height, width), level_idx=0, device=shared.device)
        relative = (priors[:, None, :2] - grid).transpose(1, 2) / (priors[:, 2, None, None] * 8)
        common = shared[0].flatten(1)[None].expand(kernels.shape[0], -1, -1)
        x = torch.cat((relative, common), 1)
        values = kernels.split_with_sizes([*head.weight_nums, *head.bias_nums], 1)
        for i in range(head.num_dyconvs):
            weight, bias = values[i], values[head.num_dyconvs + i]
            weight = weight.reshape(-1, head.bias_nums[i], head.weight_nums[i] // head.bias_nums[i])
            x = weight @ x + bias[:, :, None]
            if i < head.num_dyconvs - 1:
                x = F.relu(x)
        # A copy: an output that is a view of another tensor cannot be recorded.
        return x[:, 0].unflatten(1, (height, width)).clone()

    def paste_masks(self, boxes: Tensor, masks: Tensor, size: Sequence[int], scale: Sequence[float]) -> Tensor:
        """Return the masks of the graph as masks of the image, ``(N, height, width)`` bool."""
        stride = self.head.prior_generator.strides[0][0]
        masks = F.interpolate(masks[None], scale_factor=stride, mode='bilinear')
        sides = [math.ceil(side * (1 / each)) for side, each in zip(masks.shape[2:], scale[::-1])]
        masks = F.interpolate(masks, size=sides, mode='bilinear', align_corners=False)[0]
        return masks.sigmoid()[:, : size[0], : size[1]] > self.cfg['mask_thr_binary']


class Proposals(Dense):
    """RPN: class-agnostic, NMS per level."""

    has_threshold = False

    def labels(self, number: int, classes: Tensor) -> Tensor:
        return torch.full_like(classes, number)
