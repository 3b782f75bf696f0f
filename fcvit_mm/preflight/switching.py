"""Trying the pipeline that a hook switches to late in the training, where its mistakes would end the run."""

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
from .messages import short_message
from .remarks import remark

#: mmdet's hook, which RTMDet's configs use.
HOOK = 'PipelineSwitchHook'


def switch_problems(cfg: Config, outer: Any, leaves: Sequence[Leaf], limit: TimeLimit) -> List[str]:
    """Let the hooks that switch the training pipeline do so, and load a few samples after each switch.

    A switch after the end of the training, or one without effect, is reported.

    Args:
        cfg (Config): The config; hooks are built in the current scope.
        outer (Dataset): The outermost training data set. It keeps its pipeline.
        leaves (sequence of Leaf): The data sets inside it.
        limit (TimeLimit): Time limit of all checks.
    """
    problems: List[str] = []
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    for number, node in enumerate(cfg.get('custom_hooks') or ()):
        where = f'custom_hooks.{number} ({HOOK})'
        if type_name(node) != HOOK or not isinstance(node, dict):
            continue
        switch = node.get('switch_epoch')
        if isinstance(epochs, int) and isinstance(switch, int) and switch >= epochs:
            remark(
                f'{where}: switch_epoch is {switch}, but the training has {epochs} epochs, so the pipeline is never '
                'switched: set an earlier epoch, unless this is intended'
            )
        elif not hasattr(outer, 'pipeline'):
            remark(
                f'{where} replaces the pipeline of the outermost data set, but {type(outer).__name__} has none: the '
                'pipeline is never switched'
            )
        else:
            problems += [
                f'train_dataloader: after the switch by {where}: {each}'
                for each in tried(cfg, node, outer, leaves, limit)
            ]
    return problems


def tried(cfg: Config, node: dict, outer: Any, leaves: Sequence[Leaf], limit: TimeLimit) -> List[str]:
    """Return the problems of samples and batches after a hook has switched the pipeline."""
    before = outer.pipeline
    try:
        with quiet():
            hook = HOOKS.build(node)
            loader = SimpleNamespace(dataset=outer)
            logger = MMLogger.get_current_instance()
            hook.before_train_epoch(SimpleNamespace(epoch=hook.switch_epoch, train_dataloader=loader, logger=logger))
    except Exception as error:
        # Broad, because the steps of a pipeline may be from any library.
        message = short_message(error)
        return [f'{message}{"" if message.endswith("?") else "."} {advice_for(error, "Correct switch_pipeline")}']
    try:
        found, packed = try_pipeline(outer, [leaf.dataset for leaf in leaves], limit, 'switch_pipeline')
        return found or batch_problems(cfg, 'train_dataloader', len(outer), packed, leaves)
    finally:
        outer.pipeline = before
