"""Suppression of boxes and of lanes."""

import pytest
import torch

mmcv = pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def test_nms_of_no_boxes():
    from mmcv.ops import nms, soft_nms

    empty = torch.zeros(0, 4), torch.zeros(0)
    assert [len(x) for x in (*nms(*empty, 0.5), *soft_nms(*empty))] == [0, 0, 0, 0]


def lane(start, length, xs, rows=9):
    """Return a lane: its first row (0 to 1), its number of rows, and x at each of ``rows`` rows."""
    return [9.0, 9.0, start, 9.0, length, *([xs] * rows if isinstance(xs, float) else xs)]


def line_nms(*args):
    if not hasattr(mmcv.ops, 'line_nms'):
        pytest.skip('this mmcv has no line_nms')
    return mmcv.ops.line_nms(*args)


def lanes_kept(lanes, scores, thresh=5.0, top_k=10):
    keep, number, parents = line_nms(torch.tensor(lanes), torch.tensor(scores), thresh, top_k)
    assert len(keep) == len(parents) == len(lanes) and not keep[number:].any()
    return keep[:number].tolist(), parents.tolist()


def test_best_of_close_lanes_is_kept():
    lanes = [lane(0.0, 9.0, 10.0), lane(0.0, 9.0, 14.0), lane(0.0, 9.0, 18.0), lane(0.0, 9.0, 15.0)]
    # 3 is the best, 1 and 2 are within 5 of it; 0 is 5 from it, which is not below 5.
    assert lanes_kept(lanes, [0.5, 0.6, 0.7, 0.9]) == ([3, 0], [2, 1, 1, 1])
    assert lanes_kept(lanes, [0.5, 0.6, 0.7, 0.9], top_k=1) == ([3], [0, 1, 1, 1])
    assert lanes_kept(lanes, [0.9, 0.6, 0.7, 0.5]) == ([0, 2], [1, 2, 2, 2])


def test_lanes_are_compared_at_common_rows():
    far = [10.0] * 4 + [500.0] * 5
    lower, upper = lane(0.0, 4.0, 10.0), lane(0.5, 5.0, 10.0)
    assert lanes_kept([lower, upper], [0.9, 0.8])[0] == [0, 1]  # rows 0 to 3 and 4 to 8: none in common
    assert lanes_kept([lower, lane(0.375, 5.0, 10.0)], [0.9, 0.8])[0] == [0]  # row 3 is
    assert lanes_kept([lower, lane(0.0, 9.0, far)], [0.9, 0.8])[0] == [0]
    assert lanes_kept([lane(0.0, 5.0, 10.0), lane(0.0, 9.0, far)], [0.9, 0.8])[0] == [0, 1]
    assert lanes_kept([lane(0.0, 0.0, 10.0)] * 2, [0.9, 0.8])[0] == [0, 1]  # without rows


def test_empty_list_of_lanes():
    keep, number, parents = line_nms(torch.zeros(0, 77), torch.zeros(0), 5.0, 4)
    assert len(keep) == number == len(parents) == 0
