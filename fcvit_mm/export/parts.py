"""The parts of a classifier, detector or segmentor that make one graph: tensors in, tensors out, at any size."""

from typing import Any, Optional, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

PARTS = ('model', 'neck', 'backbone')
#: What a detector's graph does not contain.
LEFT_TO_MMDEPLOY = (
    'RPN or dense head, RoI heads, the decoding of boxes and NMS are left to mmdeploy '
    '(https://github.com/open-mmlab/mmdeploy), which exports complete detectors: the graph ends in the '
    'feature maps that they take'
)


class Part(nn.Module):
    """A part of a model that is exported.

    Attributes:
        output (str): What its graph gives: ``'features'``, ``'scores'`` or ``'logits'``.
    """

    output: str


class Features(Part):
    """Images to feature maps: a backbone and, if it is given, the neck behind it.

    Shape:
        ``(B, C, H, W)`` to a tuple of maps in the order of the backbone's ``out_indices`` or the neck's outputs; a
        class token's is ``(B, C)``.
    """

    output = 'features'

    def __init__(self, backbone: nn.Module, neck: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        features = self.backbone(images)
        return tuple(features if self.neck is None else self.neck(features))


class Scores(Part):
    """Images to the classes' scores, which add up to 1. ``(B, C, H, W)`` to ``(B, classes)``."""

    output = 'scores'

    def __init__(self, features: Features, head: Any) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)).softmax(1)


class Logits(Part):
    """Images to each pixel's logits, before softmax. ``(B, C, H, W)`` to ``(B, classes, H, W)``."""

    output = 'logits'

    def __init__(self, features: Features, head: Any) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.features(images))
        return F.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=self.head.align_corners)


def take_part(model: nn.Module, task: str, part: str = 'model') -> Part:
    """Take a part of a model that can be exported.

    Args:
        model (nn.Module): A classifier, detector or segmentor.
        task (str): Which of them.
        part (str): ``'backbone'``: the feature maps of its stages; ``'neck'``: those behind the neck; ``'model'``: a
            classifier's scores, a segmentor's logits at the size of the images.

    Returns:
        Part: :class:`Features`, :class:`Scores` or :class:`Logits` around the model's own modules.

    Raises:
        UserError: An unknown part, one that the model lacks, a complete detector, a head of another kind.
    """
    name = type(model).__name__
    if part not in PARTS:
        raise UserError(f'part {part!r}, expected one of {", ".join(PARTS)}')
    if part == 'model' and task == 'detection':
        raise UserError(
            f'{name} is a detector, which is not exported as one graph: {LEFT_TO_MMDEPLOY}. Take --part neck, or '
            '--part backbone'
        )
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, nn.Module):
        raise UserError(
            f'{name} has no backbone in model.backbone: only models of backbone, neck and head are exported'
        )
    if part == 'backbone':
        return Features(backbone)
    if part == 'neck':
        if neck is None:
            raise UserError(
                f'{name} has no neck: take --part backbone' + ('' if task == 'detection' else ' or --part model')
            )
        return Features(backbone, neck)
    features = Features(backbone, neck)
    if task == 'classification':
        from mmpretrain.models.heads import ClsHead

        head = getattr(model, 'head', None)
        if not isinstance(head, ClsHead):
            raise UserError(
                f'{name} has a head of {type(head).__name__}, expected a ClsHead, whose scores are a '
                'softmax: take --part backbone'
            )
        return Scores(features, head)
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = getattr(model, 'decode_head', None)
    if not isinstance(head, BaseDecodeHead):
        raise UserError(
            f'{name} has a decode_head of {type(head).__name__}, expected a single one of mmseg: take --part backbone'
        )
    return Logits(features, head)


class AdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products. ONNX has no operator for it; their sizes may stay open.

    Args:
        output_size (int | tuple[int]): Height and width of the output.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, *output_size)``.
    """

    def __init__(self, output_size: Union[int, Tuple[int, int]]) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weights(x.shape[2], self.output_size[0], x)
        columns = self.weights(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def weights(length: int, bins: int, like: Tensor) -> Tensor:
        """Return the weight of each position in each bin, ``(bins, length)``; bins overlap as PyTorch's do."""
        position = torch.arange(length, device=like.device)
        index = torch.arange(bins, device=like.device)[:, None]
        start = (index * length).div(bins, rounding_mode='floor')
        end = ((index + 1) * length + bins - 1).div(bins, rounding_mode='floor')
        inside = ((position >= start) & (position < end)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def free_of_sizes_(module: nn.Module) -> nn.Module:
    """Replace modules that exporters record at one size by modules that compute the same at any size.

    Args:
        module (nn.Module): Changed in place.

    Returns:
        nn.Module: The same.
    """
    child: Any
    for name, child in module.named_children():
        if type(child) is nn.AdaptiveAvgPool2d and _is_fixed(child.output_size):
            setattr(module, name, AdaptiveAvgPool2d(child.output_size))  # type: ignore[arg-type]
        elif type(child).__module__ == 'mmseg.models.utils.wrappers' and child.scale_factor:
            # Its int() of a size makes a constant of it.
            setattr(
                module,
                name,
                nn.Upsample(scale_factor=child.scale_factor, mode=child.mode, align_corners=child.align_corners),
            )
        else:
            free_of_sizes_(child)
    return module


def _is_fixed(size: Any) -> bool:
    """Check whether both sides are given (``None`` keeps the input's); a mean, ``(1, 1)``, is known to exporters."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return None not in sides and sides != (1, 1)
