"""A complete detector as an exportable part: its network, and the graph class of its head."""

import copy
from typing import Any, Dict, Sequence, Tuple, Type

import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ..parts import Features, Part
from .one_stage import Dense, DenseMasks
from .steps import StableSorts
from .supported import STEPS, defining_class, refuse
from .two_stage import Cascade, TwoStage

#: Class of mmdet that defines a head's prediction -> graph class.
DENSE: Dict[str, Type[Dense]] = {'BaseDenseHead': Dense, 'RTMDetInsHead': DenseMasks}
TWO_STAGE: Dict[str, Type[TwoStage]] = {'StandardRoIHead': TwoStage, 'CascadeRoIHead': Cascade}


def graph_of(model: Any) -> Any:
    """Return the graph class for a detection head type, by the class that defines its prediction."""
    kind = defining_class(model, 'predict')
    if kind == 'SingleStageDetector':
        head = copy.deepcopy(model.bbox_head)
        way = defining_class(head, '_predict_by_feat_single')
        if (
            way not in DENSE
            or way != defining_class(head, 'predict_by_feat')
            or defining_class(head, 'predict') != 'BaseDenseHead'
        ):
            refuse(head, 'predicts in its own way')
        if defining_class(head, '_bbox_post_process') != 'BaseDenseHead':
            refuse(head, 'chooses among boxes in its own way')
        if head.test_cfg.get('min_bbox_size', -1) > 0:
            raise UserError(
                f'model.test_cfg.min_bbox_size {head.test_cfg.min_bbox_size} is measured in the original image, which '
                'the graph does not know: export with --cfg-options model.test_cfg.min_bbox_size=0'
            )
        return DENSE[way](head)
    if kind == 'TwoStageDetector' and hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        single, all_images = (defining_class(model.rpn_head, name) for name in STEPS)
        if single != 'RPNHead' or all_images != 'BaseDenseHead':
            refuse(model.rpn_head, 'proposes in its own way')
        way = defining_class(model.roi_head, 'predict_bbox')
        if way not in TWO_STAGE or defining_class(model.roi_head, 'predict') != 'BaseRoIHead':
            refuse(model.roi_head, 'predicts in its own way')
        if model.roi_head.with_mask and defining_class(model.roi_head, 'predict_mask') != way:
            refuse(model.roi_head, 'predicts masks in its own way')
        return TWO_STAGE[way](model)
    refuse(model, 'predicts in its own way')


class Detections(Part):
    """An image to its detections. ``(1, C, H, W)`` to boxes ``(N, 4)``, scores ``(N,)``, labels ``(N,)``, masks.

    The graph pads the image as the model's data preprocessor does, and clips boxes to the unpadded image.

    Args:
        model (nn.Module): A detector of mmdet. It is not changed.

    Raises:
        UserError: The detection head type of one of its components is not supported; the message names it.
    """

    output = 'detections'
    axes = {2: 'height', 3: 'width'}
    pads = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head_graph = graph_of(model)
        self.features = Features(model.backbone, getattr(model, 'neck', None))
        self.divisor = int(getattr(model.data_preprocessor, 'pad_size_divisor', 1) or 1)
        self.padding = float(getattr(model.data_preprocessor, 'pad_value', 0))
        # In a tuple, because a submodule would be exported.
        self.original = (model,)

    def names(self, number: int) -> Tuple[str, ...]:
        return ('boxes', 'scores', 'labels', 'masks')[:number]

    def description(self) -> Dict[str, str]:
        known = dict(boxes='float32 (N, 4): left, top, right, bottom in pixels of the input', scores='float32 (N,)')
        return dict(known, labels='int64 (N,): places in classes', **self.head_graph.description())

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        height, width = images.shape[2:]
        return self.head_graph(self.features(self.pad(images)), height, width)

    def record_for(self, kind: str) -> None:
        for module in self.modules():
            if isinstance(module, Dense):
                module.stable_topk = kind == 'onnx'

    def pad(self, images: Tensor) -> Tensor:
        """Pad on the right and below."""
        height, width = images.shape[2:]
        right, below = -width % self.divisor, -height % self.divisor
        return F.pad(images, (0, right, 0, below), value=self.padding) if self.divisor > 1 else images

    def expected(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return mmdet's own predictions, with masks of the size of the given image, ``(N, H, W)`` bool.

        mmdet breaks ties arbitrarily, the graph by order.
        """
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[2:])
        padded = self.pad(images)
        metainfo = dict(
            img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=tuple(padded.shape[2:])
        )
        (model,) = self.original
        with StableSorts():
            (sample,) = model.predict(padded, [DetDataSample(metainfo=metainfo)], rescale=False)
        found = sample.pred_instances
        outputs = [found.bboxes, found.scores, found.labels]
        return (*outputs, found.masks[:, : size[0], : size[1]]) if self.head_graph.has_masks else tuple(outputs)

    def complete(self, outputs: Sequence[Tensor], images: Tensor) -> Tuple[Tensor, ...]:
        """Return the graph's outputs with masks pasted into the images by mmdet, ``(N, H, W)`` bool."""
        return self.placed(outputs, tuple(images.shape[2:]), (1.0, 1.0))

    def placed(self, outputs: Sequence[Tensor], size: Sequence[int], scale: Sequence[float]) -> Tuple[Tensor, ...]:
        """Map the graph's outputs back to the original image, as mmdet does.

        Args:
            outputs (Sequence[Tensor]): Outputs of the graph.
            size (Sequence[int]): Height and width of the original image, and of the returned masks.
            scale (Sequence[float]): Factors of its width and height in resizing.
        """
        boxes, scores, labels, *masks = outputs
        pasted = [self.head_graph.paste_masks(boxes, each, size, scale) for each in masks]
        return (boxes / boxes.new_tensor(scale).repeat(2), scores, labels, *pasted)
