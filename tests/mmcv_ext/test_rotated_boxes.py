"""Rotated boxes: overlaps where rounding decides, suppression by label, gradients of overlaps."""

import math

import pytest
import torch

mmcv = pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def random_boxes(number, seed=0):
    scale = torch.tensor([40.0, 40, 30, 30, 6])
    return torch.rand(number, 5, generator=torch.Generator().manual_seed(seed)) * scale + torch.tensor([0, 0, 1, 1, -3])


def polygon(box):
    affinity, geometry = pytest.importorskip('shapely.affinity'), pytest.importorskip('shapely.geometry')
    x, y, width, height, angle = box.double().tolist()
    upright = geometry.box(-width / 2, -height / 2, width / 2, height / 2)
    return affinity.translate(affinity.rotate(upright, angle, origin=(0, 0), use_radians=True), x, y)


def changed(boxes, **columns):
    boxes = boxes.clone()
    for name, change in columns.items():
        column = 'xywha'.index(name)
        boxes[:, column] = change(boxes[:, column])
    return boxes


#: Pairs with common edges, corners or centers, of which mmcv's compiled build finds no overlap of some.
CHANGES = {
    'other boxes': lambda boxes: boxes.flip(0),
    'the same': lambda boxes: boxes,
    'half the width': lambda boxes: changed(boxes, w=lambda w: w / 2),
    'a quarter turn': lambda boxes: changed(boxes, a=lambda a: a + math.pi / 2),
    'half a turn': lambda boxes: changed(boxes, a=lambda a: a + math.pi),
    'a little turn': lambda boxes: changed(boxes, a=lambda a: a + 1e-5),
    'far away': lambda boxes: changed(boxes, x=lambda x: x + 1000),
    'inside': lambda boxes: changed(boxes, w=lambda w: w / 3, h=lambda h: h / 3),
    'a square as tall': lambda boxes: changed(boxes, w=lambda w: boxes[:, 3]),
}


@pytest.mark.parametrize('upright', [False, True])
@pytest.mark.parametrize('change', CHANGES)
def test_overlaps_agree_with_shapely(change, upright):
    from mmcv.ops import box_iou_rotated

    first = random_boxes(30)
    if upright:
        first = changed(first, a=lambda a: 0 * a)
    second = CHANGES[change](first)
    found = box_iou_rotated(first, second, aligned=True)
    pairs = [(polygon(a), polygon(b)) for a, b in zip(first, second)]
    expected = torch.tensor([a.intersection(b).area / a.union(b).area for a, b in pairs])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    table = box_iou_rotated(first, second)
    torch.testing.assert_close(table.diag(), found)
    torch.testing.assert_close(table, box_iou_rotated(second, first).T)


def test_overlaps_of_upright_boxes_agree_with_bbox_overlaps():
    from mmcv.ops import bbox_overlaps, box_iou_rotated

    boxes = changed(random_boxes(20), a=lambda a: 0 * a)
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2), 1)
    for mode in ('iou', 'iof'):
        torch.testing.assert_close(box_iou_rotated(boxes, boxes, mode), bbox_overlaps(corners, corners, mode))


def test_empty_boxes_and_no_boxes():
    from mmcv.ops import box_iou_rotated, nms_rotated

    boxes = changed(random_boxes(3), w=lambda w: 0 * w)
    assert not box_iou_rotated(boxes, boxes).any()
    assert box_iou_rotated(boxes[:0], boxes).shape == (0, 3) and box_iou_rotated(boxes, boxes[:0]).shape == (3, 0)
    assert box_iou_rotated(boxes[:0], boxes[:0], aligned=True).shape == (0,)
    assert len(nms_rotated(boxes[:0], torch.zeros(0), 0.5)[0]) == 0


def test_boxes_are_suppressed_only_by_the_same_label():
    from mmcv.ops import nms_rotated

    boxes, scores = torch.tensor([[10.0, 10, 8, 4, 0.3]] * 4), torch.tensor([0.5, 0.9, 0.7, 0.8])
    assert nms_rotated(boxes, scores, 0.5)[1].tolist() == [1]
    kept, indices = nms_rotated(boxes, scores, 0.5, labels=torch.tensor([0.0, 1, 0, 1]))
    assert indices.tolist() == [1, 2] and kept[:, 5].tolist() == pytest.approx([0.9, 0.7])
    # A box that is suppressed suppresses nothing.
    row = torch.tensor([[0.0, 0, 4, 4, 0], [2.0, 0, 4, 4, 0], [4.0, 0, 4, 4, 0]])
    assert nms_rotated(row, torch.tensor([0.9, 0.8, 0.7]), 0.2)[1].tolist() == [0, 2]


# Not with edges on one line, where mmcv's own code, in PyTorch, divides by rounding errors.
@pytest.mark.parametrize('change', sorted(set(CHANGES) - {'half the width', 'a square as tall'}))
def test_differentiable_overlaps(change):
    from mmcv.ops import box_iou_rotated, diff_iou_rotated_2d

    first = random_boxes(12).double()
    second = CHANGES[change](first)
    leaf = second.clone().requires_grad_()
    found = diff_iou_rotated_2d(first[None], leaf[None])[0]
    expected = box_iou_rotated(first.float(), second.float(), aligned=True)
    torch.testing.assert_close(found.detach().float(), expected, rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.isfinite().all() and (gradient.any() or change == 'far away')


def test_gradients_of_overlaps_agree_with_finite_differences():
    from mmcv.ops import diff_iou_rotated_2d

    first, second = random_boxes(6).double()[None], random_boxes(6, seed=1).double()[None]
    first[..., :2] = second[..., :2] + 2
    assert torch.autograd.gradcheck(lambda x: diff_iou_rotated_2d(first, x), [second.requires_grad_()], eps=1e-6)
