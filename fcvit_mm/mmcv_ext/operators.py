"""The operators of ``mmcv._ext``: a table with the function for each.

The functions have the names and arguments of mmcv's C++ (``mmcv/ops/csrc/pytorch/pybind.cpp``): they write into
tensors that they are given. Shapes: ``B`` images, ``C`` channels, ``R`` regions, ``N`` boxes, ``K`` classes.
"""

from typing import Any, Callable, Dict, Tuple

from . import (
    attention,
    boxes,
    carafe,
    deform_conv,
    focal_loss,
    masked_conv,
    region_pooling,
    rotated_boxes,
    sync_batch_norm,
)
from .errors import MMCVOperatorError


def get_compiler_version() -> str:
    """Return the compiler entry in reports of the environment."""
    return 'none (operators from torchvision, by fcvit_mm.mmcv_ext)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version entry in reports of the environment."""
    return 'not compiled'


#: What computes an operator: one of torchvision's prebuilt kernels, a few lines of PyTorch, or mmcv's own PyTorch code.
TORCHVISION, PYTORCH, MMCV = 'torchvision', 'PyTorch', 'mmcv'
#: Operator -> its function and what computes it. All others raise :class:`MMCVOperatorError` when they are called.
OPERATORS: Dict[str, Tuple[Callable[..., Any], str]] = {
    'nms': (boxes.nms, TORCHVISION),
    'softnms': (boxes.softnms, PYTORCH),
    'nms_match': (boxes.nms_match, PYTORCH),
    'line_nms_forward': (boxes.line_nms_forward, PYTORCH),
    'bbox_overlaps': (boxes.bbox_overlaps, PYTORCH),
    'box_iou_rotated': (rotated_boxes.box_iou_rotated, PYTORCH),
    'nms_rotated': (rotated_boxes.nms_rotated, PYTORCH),
    'diff_iou_rotated_sort_vertices_forward': (rotated_boxes.diff_iou_rotated_sort_vertices_forward, PYTORCH),
    'roi_align_rotated_forward': (region_pooling.roi_align_rotated_forward, PYTORCH),
    'roi_align_rotated_backward': (region_pooling.roi_align_rotated_backward, PYTORCH),
    'roi_align_forward': (region_pooling.roi_align_forward, TORCHVISION),
    'roi_align_backward': (region_pooling.roi_align_backward, TORCHVISION),
    'roi_pool_forward': (region_pooling.roi_pool_forward, PYTORCH),
    'roi_pool_backward': (region_pooling.roi_pool_backward, PYTORCH),
    'deform_roi_pool_forward': (region_pooling.deform_roi_pool_forward, PYTORCH),
    'deform_roi_pool_backward': (region_pooling.deform_roi_pool_backward, PYTORCH),
    'sigmoid_focal_loss_forward': (focal_loss.sigmoid_focal_loss_forward, PYTORCH),
    'sigmoid_focal_loss_backward': (focal_loss.sigmoid_focal_loss_backward, PYTORCH),
    'softmax_focal_loss_forward': (focal_loss.softmax_focal_loss_forward, PYTORCH),
    'softmax_focal_loss_backward': (focal_loss.softmax_focal_loss_backward, PYTORCH),
    'deform_conv_forward': (deform_conv.deform_conv_forward, TORCHVISION),
    'deform_conv_backward_input': (deform_conv.deform_conv_backward_input, TORCHVISION),
    'deform_conv_backward_parameters': (deform_conv.deform_conv_backward_parameters, TORCHVISION),
    'modulated_deform_conv_forward': (deform_conv.modulated_deform_conv_forward, TORCHVISION),
    'modulated_deform_conv_backward': (deform_conv.modulated_deform_conv_backward, TORCHVISION),
    'masked_im2col_forward': (masked_conv.masked_im2col_forward, PYTORCH),
    'masked_col2im_forward': (masked_conv.masked_col2im_forward, PYTORCH),
    'carafe_naive_forward': (carafe.carafe_naive_forward, PYTORCH),
    'carafe_naive_backward': (carafe.carafe_naive_backward, PYTORCH),
    'carafe_forward': (carafe.carafe_forward, PYTORCH),
    'carafe_backward': (carafe.carafe_backward, PYTORCH),
    'ms_deform_attn_forward': (attention.ms_deform_attn_forward, MMCV),
    'ms_deform_attn_backward': (attention.ms_deform_attn_backward, MMCV),
    'psamask_forward': (attention.psamask_forward, PYTORCH),
    'psamask_backward': (attention.psamask_backward, PYTORCH),
    'sync_bn_forward_mean': (sync_batch_norm.sync_bn_forward_mean, PYTORCH),
    'sync_bn_forward_var': (sync_batch_norm.sync_bn_forward_var, PYTORCH),
    'sync_bn_forward_output': (sync_batch_norm.sync_bn_forward_output, PYTORCH),
    'sync_bn_backward_param': (sync_batch_norm.sync_bn_backward_param, PYTORCH),
    'sync_bn_backward_data': (sync_batch_norm.sync_bn_backward_data, PYTORCH),
}


def __getattr__(name: str) -> Callable[..., Any]:
    """Return an operator; a missing one raises only when it is called, because importing mmcv asks for all of them."""
    if name.startswith('__'):
        raise AttributeError(name)
    if name in OPERATORS:
        return OPERATORS[name][0]

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise MMCVOperatorError(name)

    missing.__name__ = name
    return missing
