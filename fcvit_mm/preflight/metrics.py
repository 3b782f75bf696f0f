"""The metrics of an evaluator: what the model must predict for them, and the hooks that monitor one by its name."""

import re
from itertools import zip_longest
from typing import Any, List, Sequence, Tuple

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from ..engine.config import type_name, walk
from .log import log_warning
from .model import built_model

#: Type of a validation loop -> what it puts before the names of the metrics; of others it is unknown.
PREFIXES = {'': ('',), 'ValLoop': ('',), 'TeacherStudentValLoop': ('teacher/', 'student/')}


def mask_metric_problems(cfg: Config, name: str) -> List[str]:
    """Check that a detector of mmdet predicts masks if an evaluator's metric is for masks.

    Args:
        cfg (Config): The config.
        name (str): Name of the evaluator.
    """
    wanted = [node.get('metric') for node in walk(cfg[name]) if type_name(node) == 'CocoMetric']
    if not any(metric == 'segm' or isinstance(metric, (list, tuple)) and 'segm' in metric for metric in wanted):
        return []
    model = built_model(cfg)
    if model is None:
        return []
    # RTMDetInsHead, MaskFormerHead and others predict masks without a mask head; those of other packages may.
    heads = [type(part) for key, part in model.named_modules() if key.endswith('head')]
    known = all(kind.__module__.startswith('mmdet.') for kind in [type(model), *heads])
    names = ', '.join(kind.__name__ for kind in heads)
    if not known or getattr(model, 'with_mask', True) or re.search('(?i)mask|ins|panoptic|seg', names):
        return []
    return [
        f"{name}: CocoMetric has metric='segm', but {type(model).__name__} ({names}) predicts boxes only: set "
        "metric='bbox', or add a mask head"
    ]


def monitor_problems(cfg: Config, metrics: Sequence[str]) -> List[str]:
    """Check that hooks and schedules that monitor a validation metric name one that the evaluator computes.

    Args:
        cfg (Config): The config.
        metrics (sequence of str): Names of the metrics. If it is empty, as for an untrained detector without
            detections, nothing is checked.
    """
    metrics = [
        f'{prefix}{each}' for prefix in PREFIXES.get(type_name(cfg.get('val_cfg') or {}), ()) for each in metrics
    ]
    if not metrics:
        return []
    default_hooks = cfg.get('default_hooks') or {}
    hooks = [(f'default_hooks.{key}', hook) for key, hook in default_hooks.items()]
    hooks += [(f'custom_hooks[{index}]', hook) for index, hook in enumerate(cfg.get('custom_hooks') or [])]
    followed: List[Tuple[str, Any, Any]] = []
    for name, hook in hooks:
        if not isinstance(hook, dict):
            continue
        if type_name(hook) in ('CheckpointHook', 'AtomicCheckpointHook'):
            best = hook.get('save_best')
            several = best if isinstance(best, (list, tuple)) else [] if best is None else [best]
            rules = hook.get('rule')
            rules = list(rules) if isinstance(rules, (list, tuple)) else [rules]
            rules = rules if len(rules) == len(several) else rules[:1] * len(several)  # MMEngine refuses others
            followed += [(f'{name}.save_best', each, rule) for each, rule in zip_longest(several, rules)]
        elif type_name(hook) == 'EarlyStoppingHook':
            followed.append((f'{name}.monitor', hook.get('monitor'), hook.get('rule')))
    for node in walk(cfg.get('param_scheduler')):
        if type_name(node).startswith('ReduceOnPlateau'):
            followed.append((f'{type_name(node)}.monitor', node.get('monitor', 'loss'), node.get('rule', 'less')))
    for name, given, rule in followed:
        report_reversed_rule(name, given, rule)
    return [
        f'{name}={given!r} is not one of the metrics ({", ".join(metrics)}): the first validation would end the run or '
        'the setting have no effect; choose one of them'
        for name, given, _ in followed
        if given not in metrics and given != 'auto'
    ]


def report_reversed_rule(name: str, metric: Any, rule: Any) -> None:
    """Log a warning if a hook or schedule takes lower values of a metric for better ones, or the reverse.

    Args:
        name (str): Name of the setting, for the message.
        metric (str): Name of the metric; MMEngine knows for some whether higher or lower values are better.
        rule (str, optional): ``'greater'`` or ``'less'``.
    """
    if not isinstance(metric, str) or metric == 'auto':  # the first metric of the evaluator
        return
    try:
        better = CheckpointHook(save_best=metric).rules[0]
    except ValueError:
        return
    if rule is not None and rule != better:
        part = name.rpartition('.')[0]
        log_warning(
            f'{name}={metric!r}: {part}.rule is {rule!r}, but {"higher" if better == "greater" else "lower"} values '
            f'of this metric are better: set '
            f'{part}.rule={better!r}'
        )
