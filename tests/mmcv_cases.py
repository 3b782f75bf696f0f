"""Calls of mmcv's operators. dev/record_mmcv_ops.py recorded their results with the compiled build."""

import numpy as np
import torch

STATE = 7
#: Device of the inputs.
DEVICE = 'cpu'


def _tensor(values):
    return torch.as_tensor(values).to(DEVICE)


def _random(*shape, seed=0):
    return _tensor(np.random.RandomState(STATE + seed).standard_normal(shape).astype(np.float32))


def _boxes(number, seed=0):
    corners = _tensor(np.random.RandomState(STATE + seed).uniform(0, 40, (number, 2)).astype(np.float32))
    sides = _tensor(np.random.RandomState(STATE + seed + 1).uniform(5, 25, (number, 2)).astype(np.float32))
    return torch.cat((corners, corners + sides), 1)


def _scores(number):
    # All scores differ, because the order of equal scores is not defined.
    return _tensor(np.random.RandomState(STATE).permutation(number).astype(np.float32) + 1) / number


def _gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output, leaves, _random(*output.shape, seed=9))]


def _regions():
    boxes = _boxes(6, seed=3)
    return torch.cat((_tensor([0.0, 1, 0, 1, 1, 0])[:, None], boxes), 1)


def _nms(offset):
    from mmcv.ops import nms

    return list(nms(_boxes(60), _scores(60), 0.4, offset=offset, score_threshold=0.1, max_num=30))


def _batched_nms(nms_type):
    from mmcv.ops import batched_nms

    classes = _tensor(np.arange(60) % 3)
    return list(batched_nms(_boxes(60), _scores(60), classes, dict(type=nms_type, iou_threshold=0.5)))


def _soft_nms(method):
    from mmcv.ops import soft_nms

    return list(soft_nms(_boxes(40), _scores(40), 0.3, 0.5, 0.2, method))


def _nms_match():
    from mmcv.ops import nms_match

    return nms_match(torch.cat((_boxes(30), _scores(30)[:, None]), 1), 0.3)


def _overlaps(mode, aligned):
    from mmcv.ops import bbox_overlaps

    return [bbox_overlaps(_boxes(12), _boxes(12, seed=5), mode, aligned, offset=1)]


def _roi_align(aligned, ratio):
    from mmcv.ops import roi_align

    return _gradients(lambda x: roi_align(x, _regions(), (3, 2), 0.25, ratio, 'avg', aligned), _random(2, 4, 16, 15))


def _deform_conv(groups, offset_groups):
    from mmcv.ops import deform_conv2d

    x, offset = _random(2, 4, 7, 6), _random(2, 18 * offset_groups, 4, 3, seed=1)
    weight = _random(6, 4 // groups, 3, 3, seed=2)
    return _gradients(lambda *args: deform_conv2d(*args, 2, 1, 1, groups, offset_groups), x, offset, weight)


def _modulated_deform_conv(bias):
    from mmcv.ops import modulated_deform_conv2d

    inputs = [_random(2, 4, 7, 6), _random(2, 18, 7, 6, seed=1), _random(2, 9, 7, 6, seed=2).sigmoid(),
              _random(6, 4, 3, 3, seed=3)]  # fmt: skip
    if bias:
        inputs.append(_random(6, seed=4))
    return _gradients(lambda *args: modulated_deform_conv2d(*args, *([] if bias else [None]), 1, 1, 1, 1, 1), *inputs)


def _modulated_deform_conv_of_larger_offsets():
    """Use offsets of a level of twice the size, as DyHead does: the compiled build reads their first values."""
    from mmcv.ops import modulated_deform_conv2d

    inputs = [_random(2, 4, 4, 3), _random(2, 18, 7, 6, seed=1), _random(2, 9, 7, 6, seed=2).sigmoid(),
              _random(6, 4, 3, 3, seed=3)]  # fmt: skip
    return _gradients(lambda *args: modulated_deform_conv2d(*args, None, 1, 1, 1, 1, 1), *inputs)


def _psa_mask(kind):
    from mmcv.ops import PSAMask

    return _gradients(PSAMask(kind, (5, 3)), _random(2, 15, 4, 5))


def _rotated_boxes(number, seed=0):
    rows = np.random.RandomState(STATE + seed).uniform((0, 0, 4, 4, -3), (50, 50, 30, 30, 3), (number, 5))
    return _tensor(rows.astype(np.float32))


def _rotated_overlaps(mode, aligned, clockwise=True):
    from mmcv.ops import box_iou_rotated

    second = _rotated_boxes(30 if aligned else 20, seed=1)
    return [box_iou_rotated(_rotated_boxes(30), second, mode, aligned, clockwise)]


def _nms_rotated():
    from mmcv.ops import nms_rotated

    return list(nms_rotated(_rotated_boxes(60), _scores(60), 0.3))


def _roi_align_rotated(aligned, ratio, clockwise):
    from mmcv.ops import roi_align_rotated

    regions = torch.cat((_tensor([0.0, 1, 0, 1, 1, 0])[:, None], _rotated_boxes(6, seed=3)), 1)
    return _gradients(
        lambda x: roi_align_rotated(x, regions, (3, 2), 0.5, ratio, aligned, clockwise), _random(2, 3, 24, 20)
    )


#: Functions that return a list of tensors.
CASES = {
    'nms': lambda: _nms(0),
    'nms, offset': lambda: _nms(1),
    'batched_nms': lambda: _batched_nms('nms'),
    'batched_nms, soft': lambda: _batched_nms('soft_nms'),
    'soft_nms, naive': lambda: _soft_nms('naive'),
    'soft_nms, linear': lambda: _soft_nms('linear'),
    'soft_nms, gaussian': lambda: _soft_nms('gaussian'),
    'nms_match': _nms_match,
    'bbox_overlaps, iou': lambda: _overlaps('iou', False),
    'bbox_overlaps, iof, aligned': lambda: _overlaps('iof', True),
    'roi_align': lambda: _roi_align(True, 0),
    'roi_align, not aligned': lambda: _roi_align(False, 2),
    'deform_conv2d': lambda: _deform_conv(1, 1),
    'deform_conv2d, groups': lambda: _deform_conv(2, 2),
    'modulated_deform_conv2d': lambda: _modulated_deform_conv(False),
    'modulated_deform_conv2d, bias': lambda: _modulated_deform_conv(True),
    'modulated_deform_conv2d, larger offsets': _modulated_deform_conv_of_larger_offsets,
    'psa_mask, collect': lambda: _psa_mask('collect'),
    'box_iou_rotated, iou': lambda: _rotated_overlaps('iou', False),
    'box_iou_rotated, iof, aligned': lambda: _rotated_overlaps('iof', True, clockwise=False),
    'nms_rotated': _nms_rotated,
    'roi_align_rotated': lambda: _roi_align_rotated(True, 2, True),
    'roi_align_rotated, not aligned': lambda: _roi_align_rotated(False, 0, False),
    'psa_mask, distribute': lambda: _psa_mask('distribute'),
}
