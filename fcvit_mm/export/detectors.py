"""Complete detectors as one graph, from an image to boxes, scores, labels and masks.

The networks are mmdet's own modules. mmdet's postprocessing uses lists of objects with data-dependent branches, which
no exporter records; here the same steps are arithmetic on tensors of dynamic length, with one class per detection head
type. The type of a head is determined by the class that defines its prediction method, not by its name.

Shapes: ``N`` candidates or detections, ``C`` classes, ``R`` regions.
"""

import copy
import math
import warnings
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError
from .parts import Features, Part

#: What is exported whole, for messages.
WHOLE = (
    'Faster, Mask, Cascade and Cascade Mask R-CNN, RetinaNet, FCOS, ATSS, RTMDet and RTMDet-Ins, and detectors whose '
    'heads predict as theirs do'
)
#: Keys of an ``nms`` in a test_cfg that mean the same here; ``split_thr`` says in which order the work is done.
NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr', 'max_num'}
#: Least overlap, and largest difference of scores, of two detections that are the same.
SAME_IOU, SAME_SCORE = 0.99, 1e-3
#: Pixels between the sides of boxes that are the same, too.
SAME_PLACE = 0.01
#: Share of detections that may have no partner: where two scores or overlaps are equal but for rounding.
UNMATCHED = 0.01


# -- steps ------------------------------------------------------------------------------------------------------------


def smaller(limit: int, size: Any) -> Any:
    """Return the smaller of a constant and a size, which may be a symbol of torch.export or a tensor of a trace."""
    if isinstance(size, torch.SymInt):
        return torch.sym_min(size, limit)
    if isinstance(size, Tensor):
        return size.clamp(max=limit)
    return min(limit, size)


def rows(x: Tensor, width: int) -> Tensor:
    """Turn an image's map ``(1, A * width, H, W)`` into one row for each prior, ``(H * W * A, width)``."""
    return x[0].permute(1, 2, 0).reshape(-1, width)


def clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Clip boxes ``(..., 4 * C)`` to an image."""
    x, y = boxes[..., 0::2].clamp(min=0, max=width), boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), -1).flatten(-2)


def best_of(values: Tensor, limit: int, stable: bool) -> Tuple[Tensor, Tensor]:
    """Return the top ``limit`` of values ``(N,)``, best first, and their indices; ties are broken by order.

    Ties are common: after a ReLU scores are 0.5, and padded or black areas have constant scores.

    Args:
        values (Tensor): Not empty.
        limit (int): Number of values to return.
        stable (bool): Whether ``topk`` breaks ties by order. ONNX defines this, PyTorch breaks ties arbitrarily.
    """
    found, index = values.topk(smaller(limit, values.shape[0]))
    if not stable:
        index = (values >= found[-1]).nonzero()[:, 0]
        found, order = values[index].sort(descending=True, stable=True)
        found, index = found[:limit], index[order[:limit]]
    return found, index


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any, limit: int) -> Tensor:
    """Apply non-maximum suppression within groups; return at most ``limit`` indices, best first.

    Groups are shifted apart as mmcv's ``batched_nms`` shifts them, so that rounding is the same.
    """
    import torchvision

    if not cfg.get('class_agnostic', False):
        # A 0 among them: of no boxes there is no largest coordinate.
        farthest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()
        boxes = boxes + (groups.to(boxes) * (farthest + 1))[:, None]
    keep = torchvision.ops.nms(boxes, scores, float(cfg['iou_threshold']))
    limit = min([limit, *([cfg['max_num']] if cfg.get('max_num', -1) > 0 else [])])
    return keep[:limit]


def with_image(boxes: Tensor) -> Tensor:
    """Prepend the image index 0 to boxes: ``(R, 4)`` to ``(R, 5)``."""
    return torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)


class StableSorts(TorchDispatchMode):
    """Context in which PyTorch sorts stably, as graphs do; mmdet breaks ties arbitrarily."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.sort.default:
            given = dict(zip(('self', 'dim', 'descending'), args), **(kwargs or {}))
            return torch.ops.aten.sort.stable(given.pop('self'), stable=True, **given)
        return function(*args, **(kwargs or {}))


# -- what stands in the place of mmdet's ------------------------------------------------------------------------------


class BoxCoder:
    """A box coder of mmdet whose decoding does not branch on the number of boxes.

    Args:
        coder (BaseBBoxCoder): A ``DeltaXYWHBBoxCoder`` or ``DistancePointBBoxCoder``.
    """

    encode_size = 4

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def decode(self, priors: Tensor, deltas: Tensor, max_shape: Sequence[Any]) -> Tensor:
        """Return boxes ``(N, 4 * C)`` of priors ``(N, 2 or 4)``, clipped to ``max_shape`` if the coder clips."""
        with warnings.catch_warnings():
            # Of a batch of one the coder decodes by the arithmetic that was made for export, and says it is deprecated.
            warnings.simplefilter('ignore')
            boxes = self.coder.decode(priors[None], deltas[None])[0]
        return clip(boxes, *max_shape) if self.coder.clip_border else boxes


class RoIExtractor(nn.Module):
    """mmdet's ``SingleRoIExtractor`` without branches, with torchvision's RoIAlign, which exporters support.

    Args:
        extractor (SingleRoIExtractor): Source of the level assignment, strides and sizes.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def num_inputs(self) -> int:
        return self.extractor.num_inputs

    def forward(self, maps: Sequence[Tensor], regions: Tensor, roi_scale_factor: Optional[float] = None) -> Tensor:
        """Extract RoI features of regions ``(R, 5)``: ``(R, channels, height, width)``."""
        levels = self.extractor.map_roi_levels(regions, len(maps))
        if roi_scale_factor is not None:
            regions = self.extractor.roi_rescale(regions, roi_scale_factor)
        if len(maps) == 1:
            return self._align(0, maps[0], regions)
        places = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
        found = torch.cat([self._align(i, x, regions[place]) for i, (x, place) in enumerate(zip(maps, places))])
        # Back into the order of the regions: where each of them went.
        order = torch.zeros_like(levels)
        where = torch.cat(places)
        return found[order.scatter(0, where, torch.arange(where.shape[0], device=where.device))]

    def _align(self, level: int, x: Tensor, regions: Tensor) -> Tensor:
        import torchvision

        layer = self.extractor.roi_layers[level]
        return torchvision.ops.roi_align(
            x, regions, layer.output_size, layer.spatial_scale, max(layer.sampling_ratio, 0), layer.aligned
        )


# -- ways of predicting -----------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Detections of an image, best first.

    Attributes:
        boxes (Tensor): ``(N, 4)``: left, top, right, bottom in pixels of the graph's input.
        scores (Tensor): ``(N,)``.
        labels (Tensor): ``(N,)`` int64; the level of the pyramid in proposals.
        others (tuple[Tensor]): Rows that the head predicts beside them.
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
        head (BaseDenseHead): Its coder is replaced.
    """

    has_masks = False
    #: Whether what scores too little is dropped.
    has_threshold = True
    #: Whether the runtime's ``topk`` takes the first of equal values.
    stable_topk = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head
        self.cfg = _checked_cfg(head, head.test_cfg)
        head.bbox_coder = _box_coder(head)
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            refuse(head, f'scores by its loss {type(head.loss_cls).__name__}')

    def description(self) -> Dict[str, str]:
        """Describe masks, if there are any, for the file's metadata."""
        return {}

    def forward(self, maps: Sequence[Tensor], height: Any, width: Any) -> Tuple[Tensor, ...]:
        """Turn feature maps of an image of a height and width into boxes, scores and labels."""
        found = self.find(self.head(maps), height, width)
        return found.boxes, found.scores, found.labels

    def find(self, outputs: Sequence[Any], height: Any, width: Any) -> Found:
        """Select, decode and suppress the outputs of a head for each level: scores, deltas and more."""
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
        best = suppress(boxes, scores, labels, self.cfg['nms'], self.cfg['max_per_img'])
        return Found(boxes[best], scores[best], labels[best], tuple(x[kept][best] for x in rest), priors[best])

    def priors(self, sizes: List[Any], like: Tensor) -> List[Tensor]:
        """Return the anchors or points of each level."""
        return self.head.prior_generator.grid_priors(sizes, dtype=like.dtype, device=like.device)

    def points(self, priors: Tensor) -> Tensor:
        """Return the prior values that the coder needs."""
        return priors

    def choose(
        self, number: int, scores: Tensor, deltas: Tensor, priors: Tensor, *others: Tensor
    ) -> Tuple[Tensor, ...]:
        """Select the best pairs of location and class of a level."""
        logits = rows(scores, self.head.cls_out_channels)
        values = logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        classes = values.shape[1]
        values = values.flatten()
        if self.cfg.get('nms_pre', -1) > 0:
            values, index = best_of(values, self.cfg['nms_pre'], self.stable_topk)
        else:
            index = torch.arange(values.shape[0], device=values.device)
        place = index.div(classes, rounding_mode='floor')
        rest = [rows(x, width)[place] for x, width in zip(others, self.widths(len(others)))]
        return (values, self.label(number, index - place * classes), rows(deltas, 4)[place], priors[place], *rest)

    def widths(self, number: int) -> List[int]:
        """Return the number of values per prior of each additional output."""
        return [1] * number

    def label(self, number: int, classes: Tensor) -> Tensor:
        """Return the groups of non-maximum suppression: the classes."""
        return classes

    def weighted(self, scores: Tensor, rest: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        """Multiply scores by the centre-ness that a head predicts, if it does."""
        return (scores * rest[0][:, 0].sigmoid(), rest[1:]) if rest else (scores, rest)


class DenseMasks(Dense):
    """RTMDet-Ins: a small network per detection, applied to shared feature maps.

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

    def cover(self, boxes: Tensor, masks: Tensor, size: Sequence[int], scale: Sequence[float]) -> Tensor:
        """Return masks ``(N, height, width)`` bool of an image of a size, of those of the graph."""
        stride = self.head.prior_generator.strides[0][0]
        masks = F.interpolate(masks[None], scale_factor=stride, mode='bilinear')
        sides = [math.ceil(side * (1 / each)) for side, each in zip(masks.shape[2:], scale[::-1])]
        masks = F.interpolate(masks, size=sides, mode='bilinear', align_corners=False)[0]
        return masks.sigmoid()[:, : size[0], : size[1]] > self.cfg['mask_thr_binary']


class Proposals(Dense):
    """RPN: class-agnostic, NMS per level."""

    has_threshold = False

    def label(self, number: int, classes: Tensor) -> Tensor:
        return torch.full_like(classes, number)


class TwoStage(nn.Module):
    """Faster and Mask R-CNN: proposals, RoI heads, NMS.

    The masks are probabilities of the detection's class within its box, ``(N, 28, 28)``: mmdet pastes them.

    Args:
        model (TwoStageDetector): Its heads are copied: coders and extractors of the copies are replaced.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.proposals = Proposals(copy.deepcopy(model.rpn_head))
        self.roi_head = copy.deepcopy(model.roi_head)
        self.cfg = _checked_cfg(self.roi_head, self.roi_head.test_cfg)
        self.has_masks = bool(self.roi_head.with_mask)
        for head in self.box_heads:
            if {_definer(head, name) for name in STEPS} != {'BBoxHead'}:
                refuse(head, 'predicts boxes in its own way')
            if not (head.with_cls and head.with_reg):
                refuse(head, 'has no classes, or no boxes')
            if getattr(head, 'custom_cls_channels', False):
                refuse(head, f'scores by its loss {type(head.loss_cls).__name__}')
            head.bbox_coder = _box_coder(head)
        for head in self.mask_heads:
            if {_definer(head, name) for name in STEPS} != {'FCNMaskHead'}:
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
        self.roi_head.bbox_roi_extractor = _extractor(self.roi_head.bbox_roi_extractor)
        if self.has_masks:
            self.roi_head.mask_roi_extractor = _extractor(self.roi_head.mask_roi_extractor)

    def forward(self, maps: Sequence[Tensor], height: Any, width: Any) -> Tuple[Tensor, ...]:
        """Turn feature maps of an image of a height and width into boxes, scores, labels and, if any, masks."""
        regions = with_image(self.proposals(maps, height, width)[0])
        regions, logits, deltas = self.refine(maps, regions, height, width)
        head = self.box_heads[-1]
        scores = logits.softmax(-1)[:, :-1]
        boxes = head.bbox_coder.decode(regions[:, 1:], deltas, (height, width))
        place, labels = (scores > float(self.cfg['score_thr'])).nonzero().unbind(1)
        scores = scores[place, labels]
        boxes = boxes[place] if head.reg_class_agnostic else boxes.unflatten(1, (-1, 4))[place, labels]
        best = suppress(boxes, scores, labels, self.cfg['nms'], self.cfg['max_per_img'])
        boxes, scores, labels = boxes[best], scores[best], labels[best]
        if not self.has_masks:
            return boxes, scores, labels
        masks = self.masks(maps, with_image(boxes))
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

    def cover(self, boxes: Tensor, masks: Tensor, size: Sequence[int], scale: Sequence[float]) -> Tensor:
        """Return masks ``(N, height, width)`` bool of an image of a size, of those of the graph."""
        if not len(masks):
            return masks.new_zeros((0, *size), dtype=torch.bool)
        told = dict(scale_factor=scale, ori_shape=size)
        # As if of one class: the graph has chosen the detection's.
        labels = torch.zeros(len(masks), dtype=torch.long)
        paste = self.mask_heads[-1]._predict_by_feat_single
        return paste(masks[:, None], boxes.clone(), labels, told, self.cfg, rescale=True, activate_map=True)


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
                extractors[i] = _extractor(extractor)

    def refine(self, maps: Sequence[Tensor], regions: Tensor, height: Any, width: Any) -> Tuple[Tensor, Tensor, Tensor]:
        logits = []
        for stage, head in enumerate(self.box_heads):
            found = self.roi_head._bbox_forward(stage, maps, regions)
            logits.append(found['cls_score'])
            if stage < len(self.box_heads) - 1:
                labels = found['cls_score'][:, :-1].argmax(1)
                image = dict(img_shape=(height, width))
                regions = with_image(head.regress_by_class(regions[:, 1:], labels, found['bbox_pred'], image))
        return regions, sum(logits[1:], logits[0]) / len(logits), found['bbox_pred']

    def masks(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        stages = range(len(self.mask_heads))
        found = [self.roi_head._mask_forward(stage, maps, regions)['mask_preds'].sigmoid() for stage in stages]
        return torch.stack(found).mean(0)


#: Ways of predicting, by the class of mmdet that defines it.
DENSE: Dict[str, Type[Dense]] = {'BaseDenseHead': Dense, 'RTMDetInsHead': DenseMasks}
TWO_STAGE: Dict[str, Type[TwoStage]] = {'StandardRoIHead': TwoStage, 'CascadeRoIHead': Cascade}
#: Methods in which heads predict, of one image and of all.
STEPS = ('_predict_by_feat_single', 'predict_by_feat')
BOX_CODERS = ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder')


# -- the part ---------------------------------------------------------------------------------------------------------


class Detections(Part):
    """An image to its detections. ``(1, C, H, W)`` to boxes ``(N, 4)``, scores ``(N,)``, labels ``(N,)``, masks.

    The image is padded inside to what the model's data preprocessor pads to; boxes are clipped to the image as given.

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
        self.form = _form(model)
        self.features = Features(model.backbone, getattr(model, 'neck', None))
        self.divisor = int(getattr(model.data_preprocessor, 'pad_size_divisor', 1) or 1)
        self.padding = float(getattr(model.data_preprocessor, 'pad_value', 0))
        # Not as a module: the graph has no use for it.
        self.original = (model,)

    def names(self, number: int) -> Tuple[str, ...]:
        return ('boxes', 'scores', 'labels', 'masks')[:number]

    def description(self) -> Dict[str, str]:
        told = dict(boxes='float32 (N, 4): left, top, right, bottom in pixels of the input', scores='float32 (N,)')
        return dict(told, labels='int64 (N,): places in classes', **self.form.description())

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        height, width = images.shape[2:]
        return self.form(self.features(self.pad(images)), height, width)

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
        told = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=tuple(padded.shape[2:]))
        (model,) = self.original
        with StableSorts():
            (sample,) = model.predict(padded, [DetDataSample(metainfo=told)], rescale=False)
        found = sample.pred_instances
        outputs = [found.bboxes, found.scores, found.labels]
        return (*outputs, found.masks[:, : size[0], : size[1]]) if self.form.has_masks else tuple(outputs)

    def complete(self, outputs: Sequence[Tensor], images: Tensor) -> Tuple[Tensor, ...]:
        """Return the graph's outputs with masks pasted into the images by mmdet, ``(N, H, W)`` bool."""
        return self.placed(outputs, tuple(images.shape[2:]), (1.0, 1.0))

    def placed(self, outputs: Sequence[Tensor], size: Sequence[int], scale: Sequence[float]) -> Tuple[Tensor, ...]:
        """Map the graph's outputs back to the original image, as mmdet does.

        Args:
            outputs (Sequence[Tensor]): Of the graph.
            size (Sequence[int]): Height and width of the original image, and of the returned masks.
            scale (Sequence[float]): Factors of its width and height in resizing.
        """
        boxes, scores, labels, *masks = outputs
        covers = [self.form.cover(boxes, each, size, scale) for each in masks]
        return (boxes / boxes.new_tensor(scale).repeat(2), scores, labels, *covers)


class Matches(NamedTuple):
    """Agreement of two lists of detections.

    Attributes:
        expected, found (int): Lengths of the lists.
        matched (int): Pairs of the same label, an overlap of at least ``iou``, of masks too, and scores that differ by
            at most ``score``.
        score (float): Largest difference of scores within the pairs.
    """

    expected: int
    found: int
    matched: int
    score: float

    @property
    def agree(self) -> bool:
        """Check whether all but a fraction of :data:`UNMATCHED` are matched."""
        return max(self.expected, self.found) - self.matched <= UNMATCHED * max(self.expected, self.found)


def match(
    expected: Sequence[Tensor], found: Sequence[Tensor], iou: float = SAME_IOU, score: float = SAME_SCORE
) -> Matches:
    """Match detections of the same object, preferring the nearest score.

    Args:
        expected, found (Sequence[Tensor]): Boxes ``(N, 4)``, scores and labels ``(N,)`` and, if there are, masks ``(N,
            H, W)`` bool.
        iou (float): Minimum IoU of a pair.
        score (float): Largest difference of their scores.
    """
    from torchvision.ops import box_iou

    counts = len(expected[0]), len(found[0])
    if not min(counts):
        return Matches(*counts, 0, 0.0)
    apart = (expected[1][:, None] - found[1]).abs()
    same = box_iou(expected[0].double(), found[0].double()) >= iou
    # Lines, which boxes outside the image are clipped to, overlap with nothing.
    same |= (expected[0][:, None] - found[0]).abs().amax(2) <= SAME_PLACE
    same &= apart <= score
    same &= expected[2][:, None] == found[2]
    differences: List[float] = []
    for row in range(counts[0]):
        partners = same[row].nonzero()[:, 0]
        if len(partners):
            partner = partners[apart[row, partners].argmin()]
            same[:, partner] = False
            if len(expected) > 3:
                want, have = expected[3][row], found[3][partner]
                if (want & have).sum() < iou * (want | have).sum():
                    continue
            differences.append(apart[row, partner].item())
    return Matches(*counts, len(differences), max(differences, default=0.0))


def _form(model: Any) -> Any:
    """Return the graph class for a detection head type, by the class that defines its prediction."""
    kind = _definer(model, 'predict')
    if kind == 'SingleStageDetector':
        head = copy.deepcopy(model.bbox_head)
        way = _definer(head, '_predict_by_feat_single')
        if way not in DENSE or way != _definer(head, 'predict_by_feat') or _definer(head, 'predict') != 'BaseDenseHead':
            refuse(head, 'predicts in its own way')
        if _definer(head, '_bbox_post_process') != 'BaseDenseHead':
            refuse(head, 'chooses among boxes in its own way')
        if head.test_cfg.get('min_bbox_size', -1) > 0:
            raise UserError(
                f'model.test_cfg.min_bbox_size {head.test_cfg.min_bbox_size} is measured in the original image, which '
                'the graph does not know: export with --cfg-options model.test_cfg.min_bbox_size=0'
            )
        return DENSE[way](head)
    if kind == 'TwoStageDetector' and hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        single, all_images = (_definer(model.rpn_head, name) for name in STEPS)
        if single != 'RPNHead' or all_images != 'BaseDenseHead':
            refuse(model.rpn_head, 'proposes in its own way')
        way = _definer(model.roi_head, 'predict_bbox')
        if way not in TWO_STAGE or _definer(model.roi_head, 'predict') != 'BaseRoIHead':
            refuse(model.roi_head, 'predicts in its own way')
        if model.roi_head.with_mask and _definer(model.roi_head, 'predict_mask') != way:
            refuse(model.roi_head, 'predicts masks in its own way')
        return TWO_STAGE[way](model)
    refuse(model, 'predicts in its own way')


def _definer(instance: Any, method: str) -> Optional[str]:
    """Return the name of the class that defines a method of an object; ``None`` if undefined."""
    return next((kind.__name__ for kind in type(instance).__mro__ if method in vars(kind)), None)


def refuse(part: Any, why: str) -> NoReturn:
    """Raise an error that names the component that cannot be exported, and the alternatives.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f'{type(part).__name__} {why}, which cannot be exported as one graph. Complete detectors are supported for '
        f'{WHOLE}. For others use --part neck (the feature maps for their heads) or --part backbone'
    )


def _checked_cfg(head: Any, cfg: Any) -> Any:
    """Return a head's test_cfg after checking that its steps are supported."""
    name = type(head).__name__
    if not cfg or not cfg.get('nms') or 'max_per_img' not in cfg:
        raise UserError(
            f'the test_cfg of {name} lacks nms or max_per_img: the graph needs both, set them by --cfg-options'
        )
    nms = cfg['nms']
    kind = nms.get('type', 'nms')
    unknown = sorted(set(nms) - NMS_KEYS)
    if kind != 'nms' or unknown:
        what = f'type {kind!r}' if kind != 'nms' else ', '.join(unknown)
        raise UserError(
            f"the test_cfg of {name} has nms with {what}, for which ONNX has no operator: export with type='nms' and "
            'an iou_threshold, by --cfg-options'
        )
    return cfg


def _box_coder(head: Any) -> BoxCoder:
    coder = head.bbox_coder
    if type(coder).__name__ not in BOX_CODERS:
        refuse(coder, 'decodes boxes in its own way')
    return BoxCoder(coder)


def _extractor(extractor: Any) -> RoIExtractor:
    if _definer(extractor, 'forward') != 'SingleRoIExtractor':
        refuse(extractor, 'extracts regions in its own way')
    for layer in extractor.roi_layers:
        if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
            refuse(layer, f'pools regions by {getattr(layer, "pool_mode", "its own rule")}')
    return RoIExtractor(extractor)
