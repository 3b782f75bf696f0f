"""Deformable convolutions, versions 1 and 2 (modulated)."""

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .support import for_torchvision, torchvision_kernels


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the deformable convolution (arXiv 1703.06211) of ``(B, C, H, W)`` into ``output`` ``(B, D, h, w)``.

    The offsets are ``(B, deformable_group * 2 * kH * kW, h, w)``, y before x, in pixels.
    """
    input = for_torchvision(input)
    output.copy_(
        torchvision_kernels().deform_conv2d(
            input,
            for_torchvision(weight),
            for_torchvision(offset),
            input.new_zeros(input.shape[0], 1),
            input.new_zeros(weight.shape[0]),
            dH,
            dW,
            padH,
            padW,
            dilationH,
            dilationW,
            group,
            deformable_group,
            False,
        )
    )


def _deform_conv_backward(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    dH: int,
    dW: int,
    padH: int,
    padW: int,
    dilationH: int,
    dilationW: int,
    group: int,
    deformable_group: int,
) -> Tuple[Tensor, ...]:
    input = for_torchvision(input)
    return torchvision_kernels()._deform_conv2d_backward(
        for_torchvision(grad_output),
        input,
        for_torchvision(weight),
        for_torchvision(offset),
        input.new_zeros(input.shape[0], 1),
        input.new_zeros(weight.shape[0]),
        dH,
        dW,
        padH,
        padW,
        dilationH,
        dilationW,
        group,
        deformable_group,
        False,
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` for its input and offsets."""
    grad_input, _, grad_offset, *_ = _deform_conv_backward(
        input, offset, gradOutput, weight, dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    )
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of :func:`deform_conv_forward` for its weight to ``gradWeight``."""
    # The gradient of the weight does not depend on the weight.
    _, grad_weight, *_ = _deform_conv_backward(
        input,
        offset,
        gradOutput,
        torch.zeros_like(gradWeight),
        dH,
        dW,
        padH,
        padW,
        dilationH,
        dilationW,
        group,
        deformable_group,
    )
    gradWeight.add_(grad_weight, alpha=scale)


def _of_output(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return offsets or masks for an output of ``size``, readable for torchvision.

    The compiled build accepts offsets of a larger map, as DyHead has them, and reads an image's first values as if
    their map had the size of the output. Smaller maps are passed on to torchvision, which rejects them.
    """
    count = x.shape[1] * size[0] * size[1]
    if tuple(x.shape[2:]) == tuple(size) or x.shape[1] * x.shape[2] * x.shape[3] < count:
        return for_torchvision(x)
    return for_torchvision(x.flatten(1)[:, :count].reshape(len(x), x.shape[1], *size))


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the modulated deformable convolution (arXiv 1811.11168) into ``output``.

    Shapes are those of :func:`deform_conv_forward`; the mask is ``(B, deformable_group * kernel_h * kernel_w, h, w)``.
    """
    input = for_torchvision(input)
    output.copy_(
        torchvision_kernels().deform_conv2d(
            input,
            for_torchvision(weight),
            _of_output(offset, output.shape[2:]),
            _of_output(mask, output.shape[2:]),
            for_torchvision(bias) if with_bias else input.new_zeros(weight.shape[0]),
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            group,
            deformable_group,
            True,
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    input = for_torchvision(input)
    found = torchvision_kernels()._deform_conv2d_backward(
        for_torchvision(grad_output),
        input,
        for_torchvision(weight),
        _of_output(offset, grad_output.shape[2:]),
        _of_output(mask, grad_output.shape[2:]),
        for_torchvision(bias) if with_bias else input.new_zeros(weight.shape[0]),
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
        True,
    )
    for into, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), found):
        if into.shape != gradient.shape:  # see _of_output: values that were not read have a gradient of 0
            unread = into[0].numel() - gradient[0].numel()
            gradient = F.pad(gradient.flatten(1), (0, unread)).view(into.shape)
        into.copy_(gradient)
    if with_bias:
        grad_bias.copy_(found[4])
