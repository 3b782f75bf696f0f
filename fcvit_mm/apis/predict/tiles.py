"""Tiled prediction of large images: tiles by SAHI, detections merged by mmdet, segmentation maps stitched."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

#: Left, top, right, bottom, in pixels of the image.
Box = Tuple[int, int, int, int]
#: Config of the NMS with which mmdet merges boxes of several tiles.
TILE_NMS = dict(type='nms', iou_threshold=0.5)


def tile_boxes(size: Tuple[int, int], tile: int, overlap: float) -> List[Box]:
    """Cover an image with tiles, by SAHI.

    Args:
        size (tuple[int, int]): Height and width of the image.
        tile (int): Side of a tile; limited by the size of the image.
        overlap (float): Overlap of neighbouring tiles, as a fraction.

    Returns:
        list[tuple[int]]: Left, top, right, bottom.
    """
    from sahi.slicing import get_slice_bboxes

    height, width = min(tile, size[0]), min(tile, size[1])
    boxes = get_slice_bboxes(*size, height, width, False, overlap, overlap)
    return [(left, top, right, bottom) for left, top, right, bottom in boxes]


def merge(samples: List[Any], boxes: Sequence[Box], size: Tuple[int, int]) -> Any:
    """Merge the detections of an image's tiles, by mmdet.

    Args:
        samples (list[DetDataSample]): Predictions for the tiles, masks run-length encoded; they are changed.
        boxes (Sequence[tuple[int]]): Boxes of the tiles.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        DetDataSample: Prediction for the image.
    """
    from mmdet.utils.large_image import merge_results_by_nms

    masks: List[Tuple[Dict[str, Any], Box]] = []
    for sample, box in zip(samples, boxes):
        instances = sample.pred_instances
        # mmdet only shifts boxes. The masks of the detections that are kept are placed afterwards.
        masks += [(mask, box) for mask in instances.pop('masks', [])]
    has_masks = bool(masks)
    first = 0
    for sample in samples:
        instances = sample.pred_instances
        instances.row = torch.arange(first, first + len(instances))
        first += len(instances)
    result = samples[0] if not first else merge_results_by_nms(samples, [box[:2] for box in boxes], size, TILE_NMS)
    result.set_metainfo(dict(ori_shape=size))
    rows = result.pred_instances.pop('row')
    if has_masks:
        result.pred_instances.masks = [_placed(rle, box, size) for rle, box in (masks[row] for row in rows.tolist())]
    return result


def _placed(rle: Dict[str, Any], box: Box, size: Tuple[int, int]) -> Dict[str, Any]:
    """Place the mask of a tile in the image."""
    from pycocotools import mask as coder

    left, top, right, bottom = box
    mask = np.zeros(size, np.uint8, order='F')
    mask[top:bottom, left:right] = coder.decode(rle)
    return coder.encode(mask)


def stitch(samples: Sequence[Any], boxes: Sequence[Box], size: Tuple[int, int]) -> Any:
    """Stitch the segmentation maps of tiles, each up to the middle of its overlap with the next.

    Args:
        samples (Sequence[SegDataSample]): Predictions for the tiles.
        boxes (Sequence[tuple[int]]): Boxes of the tiles.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        SegDataSample: Prediction for the image.
    """
    columns = _cuts(sorted({(left, right) for left, _, right, _ in boxes}), size[1])
    rows = _cuts(sorted({(top, bottom) for _, top, _, bottom in boxes}), size[0])
    labels = samples[0].pred_sem_seg.data.new_zeros((1, *size))
    for sample, (left, top, right, bottom) in zip(samples, boxes):
        (x0, x1), (y0, y1) = columns[left, right], rows[top, bottom]
        labels[:, y0:y1, x0:x1] = sample.pred_sem_seg.data[:, y0 - top : y1 - top, x0 - left : x1 - left]
    result = samples[0].clone()
    result.pred_sem_seg = type(samples[0].pred_sem_seg)(data=labels)
    result.set_metainfo(dict(ori_shape=size))
    return result


def _cuts(spans: Sequence[Tuple[int, int]], length: int) -> Dict[Tuple[int, int], Tuple[int, int]]:
    """Return the part of each span along one axis up to the middle of its overlap with the next."""
    middles = [(span[1] + after[0]) // 2 for span, after in zip(spans, spans[1:])]
    return dict(zip(spans, zip([0, *middles], [*middles, length])))
