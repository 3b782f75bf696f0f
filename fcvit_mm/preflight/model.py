"""Checking a model's config before a run: components that do not fit each other, and heads that cannot learn."""

import inspect
from typing import Any, Iterator, List

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..apis.step import StepError, try_step
from ..apis.stock import StockConfigError, describe_backbone, misfits
from ..engine.config import type_name, walk
from .batches import segmentation_heads

#: Argument with the losses of a head, and what they take for one class: the shapes of scores and labels; by library.
LOSSES = {'mmseg': ('loss_decode', (2, 1, 4, 4), (2, 4, 4)), 'mmpretrain': ('loss', (2, 1), (2,))}


def channel_problems(cfg: Config) -> List[str]:
    """Check that neck or heads expect the channels that the backbone returns.

    The numbers alone raise no more than suspicion, because heads may mean others by them. A training step on random
    images, which is taken only then, decides.
    """
    model = cfg.get('model') or {}
    if not model.get('backbone'):
        return []
    try:
        channels = [output.channels for output in describe_backbone(cfg, ('meta',)).outputs]
    except StockConfigError:  # it cannot be run without memory, or returns no maps
        return []
    suspected = list(misfits(model, channels))
    if not suspected:
        return []
    try:
        try_step(cfg)
        return []
    except StepError as error:
        failing = error.part
    if not any(f'{failing}.'.startswith(f'{each.part}.') for each in suspected):
        return []
    backbone = f'model.backbone ({type_name(model["backbone"])}) returns {channels} channels'
    return [
        f'{each.part}.{each.key} is {each.value}, but {backbone}: set '
        f'{each.part}.{each.key}={"..." if each.expected is None else each.expected}. tools/replace_backbone.py adapts '
        'stock configs of mmdet and mmseg to a backbone'
        for each in suspected
    ]


def one_class_problems(cfg: Config) -> List[str]:
    """Check that heads with a single class can learn: a softmax of one score is always 1.

    The losses decide: they are built and applied to random scores of the only class there is.
    """
    model, library = cfg.get('model') or {}, cfg.get('default_scope')
    steps = {type_name(step) for step in walk((cfg.get('train_dataloader') or {}).get('dataset'))}
    if library not in LOSSES or 'LoadDepthAnnotation' in steps:  # depths are no classes
        return []
    heads = segmentation_heads(model) if library == 'mmseg' else [('model.head', model.get('head') or {})]
    with DefaultScope.overwrite_default_scope(library):
        found = [name for name, head in heads if head.get('num_classes') == 1 and not can_learn(head, library)]
    ways_out = 'use num_classes=2, with a class for the background'
    if library == 'mmseg':
        ways_out += ', and optionally out_channels=1 with CrossEntropyLoss(use_sigmoid=True)'
    return [
        f'{name}.num_classes is 1, whose softmax is always 1, so that the loss is always 0: nothing '
        f'can be learned. For one class and background, {ways_out}'
        for name in found
    ]


def can_learn(head: dict, library: str) -> bool:
    """Check whether a loss of a head with one class has a gradient; ``True`` if that cannot be found out."""
    key, scores_shape, labels_shape = LOSSES[library]
    try:
        given = head.get(key) or default_of(head, key)
        losses = [MODELS.build(each) for each in (given if isinstance(given, (list, tuple)) else [given])]
        for loss in losses:
            scores = torch.linspace(-2, 2, torch.Size(scores_shape).numel()).reshape(scores_shape).requires_grad_()
            loss(scores, torch.zeros(labels_shape, dtype=torch.long)).sum().backward()
            if scores.grad is None or scores.grad.abs().max() != 0:
                return True
    except Exception:
        # Broad, because losses are anybody's.
        return True
    return bool(not losses)


def default_of(head: dict, key: str) -> Any:
    """Return the default of an argument of a head's class."""
    head_type = head['type']
    if isinstance(head_type, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            head_type = registry.get(head_type)
    return next(value.default for value in parameters_of(head_type) if value.name == key)


def parameters_of(kind: Any) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a class, its own before those of its bases."""
    for base in kind.__mro__:
        if '__init__' in vars(base):
            yield from inspect.signature(base.__init__).parameters.values()
