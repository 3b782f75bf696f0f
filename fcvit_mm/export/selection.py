"""The part of a model that is exported, selected by name."""

import torch.nn as nn

from ..engine.config import TASKS
from ..errors import UserError
from ..options import EXPORT_PARTS as PARTS
from .detectors.detections import Detections
from .detectors.supported import defining_class
from .parts import Features, Logits, Part, Scores

#: Classes of mmseg whose prediction is the first output of the head; the others are for training.
DECODING = ('BaseDecodeHead', 'EncHead', 'DAHead')


def take_part(model: nn.Module, task: str, part: str = 'model') -> Part:
    """Return an exportable part of a model.

    Args:
        model (nn.Module): A classifier, detector or segmentor.
        task (str): Task of the model, or the scope of another library.
        part (str): ``'backbone'``: the feature maps of its stages; ``'neck'``: those after the neck; ``'model'``: a
            classifier's scores, a segmentor's logits at the size of the images, a detector's detections.

    Returns:
        Part: :class:`~.parts.Features`, :class:`~.parts.Scores`, :class:`~.parts.Logits` or
        :class:`~.detectors.detections.Detections` around the model's own modules.

    Raises:
        UserError: An unknown or missing part, or an unsupported head.
    """
    name = type(model).__name__
    if part not in PARTS:
        raise UserError(f'part is {part!r}, expected one of {", ".join(PARTS)}')
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, nn.Module):
        raise UserError(
            f'{name} has no backbone in model.backbone: give the config of a model with backbone, neck and head'
        )
    if part == 'backbone':
        return Features(backbone)
    if part == 'neck':
        if neck is None:
            raise UserError(
                f'{name} has no neck: use --part backbone'
                + ' or --part model' * (task in ('classification', 'segmentation'))
            )
        return Features(backbone, neck)
    if task == 'detection':
        return Detections(model)
    if task not in TASKS.values():
        raise UserError(
            f'{name} is a model of {task}, but --part model needs a classifier, detector or segmentor of '
            f'{", ".join(TASKS)}: use --part backbone' + ' or --part neck' * (neck is not None)
        )
    features = Features(backbone, neck)
    if task == 'classification':
        from mmpretrain.models.heads import ClsHead

        head = getattr(model, 'head', None)
        kinds = {defining_class(head, method) for method in ('predict', '_get_predictions')}
        if not isinstance(head, ClsHead) or kinds != {'ClsHead'}:
            raise UserError(
                f'{name} has a head of {type(head).__name__}, expected a ClsHead, whose scores are a softmax: use '
                '--part backbone'
            )
        return Scores(features, head)
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = getattr(model, 'decode_head', None)
    own = defining_class(head, 'predict') not in DECODING or defining_class(head, 'predict_by_feat') != DECODING[0]
    if not isinstance(head, BaseDecodeHead) or own:
        raise UserError(
            f'{name} has a decode_head of {type(head).__name__}, expected a single decode head of mmseg that predicts '
            'the logits of its first output: use --part backbone'
        )
    return Logits(features, head)
