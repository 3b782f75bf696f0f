"""Parameters that get no gradient: ``DistributedDataParallel`` stops at them in its second step."""

import copy
import logging
from typing import Any, List, NamedTuple, Optional

from mmengine.config import Config
from mmengine.logging import print_log

from ..apis.config_changes import differences
from ..apis.rewiring import StockConfigError, rewire
from ..apis.step import Step, StepError, try_step
from ..engine.config import library_of

#: Maximum number of names in a message.
SHOWN = 5


class Missing(NamedTuple):
    """Parameters without a gradient.

    Attributes:
        text (str): The parameters, the cause and the solution.
        ends_run (bool): Whether these parameters would stop the run.
    """

    text: str
    ends_run: bool


def is_distributed(cfg: Config) -> bool:
    """Check whether a launcher starts the run: then the model is wrapped, even in a single process."""
    return cfg.get('launcher', 'none') != 'none'


def finds_unused(cfg: Config) -> bool:
    """Check whether the config tells the model's wrapper that some parameters get no gradient."""
    strategy = cfg.get('strategy') or {}
    places = [cfg, cfg.get('model_wrapper_cfg'), strategy.get('model_wrapper') if isinstance(strategy, dict) else None]
    return any(place.get('find_unused_parameters') or place.get('static_graph') for place in places if place)


def gradient_problems(cfg: Config) -> List[str]:
    """Check for backbone parameters without a gradient, which stop DistributedDataParallel, by a step on random images.

    Nothing is checked for one process, if :func:`finds_unused`, or for a model of another library. The gradients of
    other components may depend on the images: ``tools/check.py`` uses the run's own images.
    """
    if not is_distributed(cfg) or finds_unused(cfg) or library_of(cfg) is None:
        return []
    try:
        step = try_step(cfg)
    except StepError as error:
        print_log(
            f'Not checked before the start: whether all parameters get a gradient: {error}',
            logger='current',
            level=logging.WARNING,
        )
        return []
    step = step._replace(without_gradient=[name for name in step.without_gradient if name.startswith('backbone.')])
    found = missing_gradients(cfg, step)
    return [] if found is None else [found.text]


def missing_gradients(cfg: Config, step: Step) -> Optional[Missing]:
    """Describe the parameters without a gradient in a training step, and what to change.

    Args:
        cfg (Config): Config of the run.
        step (Step): Results of a training step.

    Returns:
        Missing: ``None`` if there are none, or if :func:`finds_unused`.
    """
    if not step.without_gradient or finds_unused(cfg):
        return None
    names = ', '.join(
        step.without_gradient if len(step.without_gradient) <= SHOWN else [*step.without_gradient[:SHOWN], '...']
    )
    text = f'{len(step.without_gradient)} parameters get no gradient ({names})'
    if step.used_indices and step.out_indices != step.used_indices:
        unread = ', '.join(str(index) for index in step.out_indices or () if index not in step.used_indices)
        text += (
            f': nothing uses the backbone outputs of stage {unread}. Set '
            f'model.backbone.out_indices={step.used_indices}: {options_for(cfg, step)}'
        )
    else:
        text += ': freeze or remove them'
    ends = is_distributed(cfg)
    if ends:
        text += (
            '. DistributedDataParallel would stop in the second step; find_unused_parameters=True lets it search for '
            'such parameters in every step'
        )
    else:
        text += '. A single process trains anyway; DistributedDataParallel would stop'
    return Missing(text, ends)


def options_for(cfg: Config, step: Step) -> str:
    """Return the command-line options that remove unused outputs, also in neck or heads."""
    model: Any = copy.deepcopy(cfg.model)
    advice = ''
    try:
        rewire(model, step.channels, step.used_channels)
    except StockConfigError:
        model = copy.deepcopy(cfg.model)
        advice = ', and adapt the inputs of the neck or the heads'
    model.backbone.out_indices = list(step.used_indices or ())
    changed = [
        f'model.{name}="{list(value)}"'.replace(', ', ',')
        if isinstance(value, (list, tuple))
        else f'model.{name}={value}'
        for name, value in differences(cfg.model, model)
    ]
    return f'--cfg-options {" ".join(changed)}{advice}'
