"""Tiles cover an image, and their predictions are merged at their positions in the image."""

import numpy as np
import pytest
import torch

from fcvit_mm.apis.predict.tiles import merge, stitch, tile_boxes


@pytest.mark.parametrize('size, overlap', [((100, 70), 0.2), ((32, 300), 0.5), ((20, 20), 0.0), ((97, 131), 0.0)])
def test_segmentation_maps_of_tiles_are_merged(size, overlap):
    pytest.importorskip('sahi')
    structures = pytest.importorskip('mmseg.structures')
    from mmengine.structures import PixelData

    whole = torch.arange(size[0] * size[1]).view(1, *size)
    boxes = tile_boxes(size, 32, overlap)
    parts = [
        structures.SegDataSample(pred_sem_seg=PixelData(data=whole[:, top:bottom, left:right]))
        for left, top, right, bottom in boxes
    ]
    assert all(right - left <= 32 and bottom - top <= 32 for left, top, right, bottom in boxes)
    result = stitch(parts, boxes, size)
    assert (result.pred_sem_seg.data == whole).all() and result.ori_shape == size


def test_object_in_two_tiles_is_detected_once():
    pytest.importorskip('sahi')
    structures = pytest.importorskip('mmdet.structures')
    from mmengine.structures import InstanceData
    from pycocotools import mask as coder

    def sample(boxes, scores):
        masks = []
        for left, top, right, bottom in boxes:
            mask = np.zeros((32, 32), np.uint8, order='F')
            mask[top:bottom, left:right] = 1
            masks.append(coder.encode(mask))
        instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float).view(-1, 4),
            scores=torch.tensor(scores),
            labels=torch.zeros(len(boxes), dtype=torch.long),
            masks=masks,
        )
        return structures.DetDataSample(pred_instances=instances)

    # One object in both tiles (the second begins at x=16), and one object in each tile only.
    samples = [
        sample([(18, 4, 30, 14), (1, 1, 9, 9)], [0.7, 0.6]),
        sample([(2, 4, 14, 14), (20, 20, 30, 30)], [0.9, 0.5]),
    ]
    found = merge(samples, [(0, 0, 32, 32), (16, 0, 48, 32)], (32, 48)).pred_instances
    assert found.bboxes.tolist() == [[18, 4, 30, 14], [1, 1, 9, 9], [36, 20, 46, 30]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    for box, mask in zip(found.bboxes.int().tolist(), found.masks):
        assert coder.toBbox(mask).tolist() == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        assert mask['size'] == [32, 48]
    nothing = merge([sample([], [])], [(0, 0, 32, 32)], (32, 32)).pred_instances
    assert not len(nothing)
