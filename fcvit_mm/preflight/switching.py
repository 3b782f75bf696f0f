"""Trying the pipeline that a hook switches to late in training, when a mistake in it would end the run."""

from types import SimpleNamespace
from typing import Any, List, Sequence

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS

from ..engine.config import type_name
from ..errors import advice_for
from .batches import batch_problems
from .contexts import quiet
from .data.dataset import Leaf
from .data.pipeline import try_pipeline
from .limits import TimeLimit
from .log import log_warning
from .messages import short_message

#: mmdet's hooks, which the configs of RTMDet and YOLOX use.
SWITCHING = ('PipelineSwitchHook', 'YOLOXModeSwitchHook')


def switch_problems(cfg: Config, outer: Any, leaves: Sequence[Leaf], limit: TimeLimit) -> List[str]:
    """Let the hooks that switch the training pipeline do so, and load a few samples after each switch.

    A switch after the end of the training, or one without effect, is reported.

    Args:
        cfg (Config): The config; hooks are built in the current scope.
        outer (Dataset): The outermost training data set; it is not changed.
        leaves (sequence of Leaf): The data sets inside it.
        limit (TimeLimit): Time limit of all checks.
    """
    problems: List[str] = []
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    for number, node in enumerate(cfg.get('custom_hooks') or ()):
        kind = type_name(node)
        if kind not in SWITCHING or not isinstance(node, dict) or not isinstance(epochs, int):
            continue
        where, switch = f'custom_hooks.{number} ({kind})', node.get('switch_epoch')
        if isinstance(switch, int) and switch >= epochs:
            log_warning(
                f'{where}: switch_epoch is {switch}, but the training has {epochs} epochs, so the pipeline is never '
                'switched: set an earlier epoch, unless this is intended'
            )
        elif kind == 'PipelineSwitchHook' and not hasattr(outer, 'pipeline'):
            log_warning(
                f'{where} replaces the pipeline of the outermost data set, but {type(outer).__name__} has none: the '
                'pipeline is never switched'
            )
        else:
            found = problems_after_switch(cfg, node, outer, leaves, limit)
            problems += [f'train_dataloader: after the switch by {where}: {each}' for each in found]
    return problems


def problems_after_switch(cfg: Config, node: dict, outer: Any, leaves: Sequence[Leaf], limit: TimeLimit) -> List[str]:
    """Return the problems of samples and batches after a hook has switched the pipeline."""
    before, epochs = dict(vars(outer)), cfg.train_cfg.max_epochs
    try:
        try:
            with quiet():
                # The runner reads the priority.
                hook = HOOKS.build({key: value for key, value in node.items() if key != 'priority'})
                hook.before_train_epoch(
                    SimpleNamespace(
                        epoch=epochs,
                        max_epochs=epochs,
                        train_dataloader=SimpleNamespace(dataset=outer),
                        model=SimpleNamespace(bbox_head=SimpleNamespace()),  # YOLOX's gets another loss
                        logger=MMLogger.get_current_instance(),
                    )
                )
        except Exception as error:
            # Broad, because the steps of a pipeline may be from any library.
            message = short_message(error)
            end = '' if message.endswith('?') else '.'
            return [f'{message}{end} {advice_for(error, "Correct the hook, or the type of the data set")}']
        found, packed = try_pipeline(outer, [leaf.dataset for leaf in leaves], limit, 'samples after the switch')
        return found or batch_problems(cfg, 'train_dataloader', len(outer), packed, leaves)
    finally:
        vars(outer).clear()
        vars(outer).update(before)
