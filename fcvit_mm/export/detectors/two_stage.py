"""Detectors with proposals and region heads: Faster, Mask, Cascade and Cascade Mask R-CNN."""

import copy
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from .one_stage import Proposals
from .replacements import box_coder, region_extractor
from .steps import add_image_index, grouped_nms
from .supported import STEPS, checked_cfg, defining_class, refuse


class TwoStage(nn.Module):
    """Faster and Mask R-CNN: proposals, RoI heads, NMS.

    The masks are probabilities of the detection's class within its box, ``(N, 28, 28)``: mmdet pastes them.

    Args:
        model (TwoStageDetector): A detector. Its heads are copied, and coders and extractors of the copies replaced.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.proposals = Proposals(copy.deepcopy(model.rpn_head))
        self.roi_head = copy.deepcopy(model.roi_head)
        self.cfg = checked_cfg(self.roi_head, self.roi_head.test_cfg)
        self.has_masks = bool(self.roi_head.with_mask)
        for head in self.box_heads:
            if {defining_class(head, name) for name in STEPS} != {'BBoxHead'}:
                refuse(head, 'predicts boxes in its own way')
            if not (head.with_cls and head.with_reg):
                refuse(head, 'has no classes, or no boxes')
            if getattr(head, 'custom_cls_channels', False):
                refuse(head, f'scores by its loss {type(head.loss_cls).__name__}')
            head.bbox_coder = box_coder(head)
        for head in self.mask_heads:
            if {defining_class(head, name) for name in STEPS} != {'FCNMaskHead'}:
                refuse(head, 'predicts masks in its own way')
        self._replace_extractors()

    def description(self) -> Dict[str, str]:
        """Describe masks, if there are any, for the file's metadata."""
        if not self.has_masks:
            return {}
        return dict(
            masks='float32 (N, h, w): probabilities within the box',
            mask_kind='box',
            mask_threshold=str(float(self.cfg['mask_thr_binary'])),
        )

    @property
    def box_heads(self) -> List[Any]:
        return [self.roi_head.bbox_head]

    @property
    def mask_heads(self) -> List[Any]:
        return [self.roi_head.mask_head] if self.has_masks else []

    def _replace_extractors(self) -> None:
        self.roi_head.bbox_roi_extractor = region_extractor(self.roi_head.bbox_roi_extractor)
        if self.has_masks:
            self.roi_head.mask_roi_extractor = region_extractor(self.roi_head.mask_roi_extractor)

    def forward(self, maps: Sequence[Tensor], height: Any, width: Any) -> Tuple[Tensor, ...]:
        """Return boxes, scores, labels and, if any, masks for the feature maps of an image of this height and width."""
        regions = add_image_index(self.proposals(maps, height, width)[0])
        regions, logits, deltas = self.refine(maps, regions, height, width)
        head = self.box_heads[-1]
        scores = logits.softmax(-1)[:, :-1]
        boxes = head.bbox_coder.decode(regions[:, 1:], deltas, (height, width))
        place, labels = (scores > float(self.cfg['score_thr'])).nonzero().unbind(1)
        scores = scores[place, labels]
        boxes = boxes[place] if head.reg_class_agnostic else boxes.unflatten(1, (-1, 4))[place, labels]
        best = grouped_nms(boxes, scores, labels, self.cfg['nms'], self.cfg['max_per_img'])
        boxes, scores, labels = boxes[best], scores[best], labels[best]
        if not self.has_masks:
            return boxes, scores, labels
        masks = self.masks(maps, add_image_index(boxes))
        if self.mask_heads[-1].class_agnostic:
            return boxes, scores, labels, masks[:, 0].clone()
        return boxes, scores, labels, masks[torch.arange(masks.shape[0], device=masks.device), labels]

    def refine(self, maps: Sequence[Tensor], regions: Tensor, height: Any, width: Any) -> Tuple[Tensor, Tensor, Tensor]:
        """Return regions, and the logits ``(R, C + 1)`` and deltas ``(R, 4)`` or ``(R, 4 * C)`` of each."""
        found = self.roi_head._bbox_forward(maps, regions)
        return regions, found['cls_score'], found['bbox_pred']

    def masks(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Return probabilities ``(N, C, 28, 28)``."""
        return self.roi_head._mask_forward(maps, regions)['mask_preds'].sigmoid()

    def paste_masks(self, boxes: Tensor, masks: Tensor, size: Sequence[int], scale: Sequence[float]) -> Tensor:
        """Return the masks of the graph as masks of the image, ``(N, height, width)`` bool."""
        if not len(masks):
            return masks.new_zeros((0, *size), dtype=torch.bool)
        meta = dict(scale_factor=scale, ori_shape=size)
        # One class: the graph has selected the mask of the detection's class.
        labels = torch.zeros(len(masks), dtype=torch.long)
        paste = self.mask_heads[-1]._predict_by_feat_single
        return paste(masks[:, None], boxes.clone(), labels, meta, self.cfg, rescale=True, activate_map=True)


class Cascade(TwoStage):
    """Cascade R-CNN and Cascade Mask R-CNN: stages that refine the regions, whose scores and masks are averaged."""

    @property
    def box_heads(self) -> List[Any]:
        return list(self.roi_head.bbox_head)

    @property
    def mask_heads(self) -> List[Any]:
        return list(self.roi_head.mask_head) if self.has_masks else []

    def _replace_extractors(self) -> None:
        for extractors in [self.roi_head.bbox_roi_extractor, *([self.roi_head.mask_roi_extractor] * self.has_masks)]:
            for i, extractor in enumerate(extractors):
                extractors[i] = region_extractor(extractor)

    def refine(self, maps: Sequence[Tensor], regions: Tensor, height: Any, width: Any) -> Tuple[Tensor, Tensor, Tensor]:
        logits = []
        for stage, head in enumerate(self.box_heads):
            found = self.roi_head._bbox_forward(stage, maps, regions)
            logits.append(found['cls_score'])
            if stage < len(self.box_heads) - 1:
                labels = found['cls_score'][:, :-1].argmax(1)
                image = dict(img_shape=(height, width))
                regions = add_image_index(head.regress_by_class(regions[:, 1:], labels, found['bbox_pred'], image))
        return regions, sum(logits[1:], logits[0]) / len(logits), found['bbox_pred']

    def masks(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        stages = range(len(self.mask_heads))
        found = [self.roi_head._mask_forward(stage, maps, regions)['mask_preds'].sigmoid() for stage in stages]
        return torch.stack(found).mean(0)
