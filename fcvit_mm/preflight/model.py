"""Checking a model's config before a run: components that do not fit each other, and heads that cannot learn."""

from typing import List

from mmengine.config import Config

from ..apis.step import StepError, try_step
from ..apis.stock import StockConfigError, describe_backbone, misfits
from ..engine.config import type_name


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
