"""Schedules that are longer or shorter than the training of a config."""

import math
import os
from typing import Any, Iterator, NamedTuple, Optional

from mmengine.config import Config

from ..engine.config import type_name, walk
from .log import log_warning, shorten

#: Fraction of the training by which a schedule may end earlier without a warning.
SPARE = 0.05


def report_long_schedules(cfg: Config, by_epoch: bool, samples: Optional[int]) -> None:
    """Log a warning if schedules begin or end after the training.

    Args:
        cfg (Config): The config.
        by_epoch (bool): Whether the training loop counts epochs.
        samples (int, optional): Number of training samples, if it is known.
    """
    found = []
    for node, total, unit in timed_schedules(cfg, by_epoch, samples):
        # The end of a MultiStepLR has no effect; only its milestones count.
        keys = ('begin',) if node.get('milestones') else ('begin', 'end', 'T_max')
        times = [node[key] for key in keys if isinstance(node.get(key), int)]
        times += [min(node['milestones'])] if node.get('milestones') else []
        if times and max(times) > total:
            given = ', '.join(
                f'{key}={node[key]}' for key in ('begin', 'end', 'T_max', 'milestones') if node.get(key) is not None
            )
            found.append(f'{type_name(node)} ({given}; training has {total} {unit})')
    if found:
        log_warning(
            f'param_scheduler: {shorten(found)}: made for a longer training, so that a warm-up or a decay is not '
            'complete or does not happen. Adapt begin, end, T_max and milestones'
        )


def report_short_schedules(cfg: Config, by_epoch: bool, samples: Optional[int]) -> None:
    """Log a warning if the learning rate is 0 or rises again before the training ends, or is low for most of it.

    Args:
        cfg (Config): The config.
        by_epoch (bool): Whether the training loop counts epochs.
        samples (int, optional): Number of training samples, if it is known.
    """
    schedules = [each for each in timed_schedules(cfg, by_epoch, samples) if type_name(each.node).endswith('LR')]
    for node, total, unit in schedules:
        begin, end, kind = node.get('begin') or 0, node.get('end') or math.inf, type_name(node)
        last = begin + node['T_max'] if kind == 'CosineAnnealingLR' and node.get('T_max') else end
        spare = max(1, SPARE * total)
        if min(end, total) - begin > (node.get('total_steps') or math.inf):
            log_warning(
                f'param_scheduler: {kind} has total_steps={node["total_steps"]}, but the training has {total} {unit}, '
                'and the first one beyond ends it with an error. Set total_steps to all of them, or omit it'
            )
        if node.get('milestones') and max(node['milestones']) < total / 2:
            log_warning(
                f'param_scheduler: {kind} is made for a shorter training: its last milestone is '
                f'{max(node["milestones"])}, so the learning rate is at its lowest for most of the {total} '
                f'{unit}. Adapt milestones'
            )
        if min(end, total) - last > spare:
            change = f'the learning rate rises again after {unit[:-1]} {last}'
        elif (
            total - last > spare
            and ends_at_zero(node)
            and not any(changes_after(each.node, last) for each in schedules)
        ):
            change = f'the learning rate is 0 from {unit[:-1]} {last} on, and nothing is learned'
        else:
            continue
        log_warning(
            f'param_scheduler: {kind} is made for a shorter training ({unit} {begin} to {last} of {total}): {change}. '
            'Adapt begin, end and T_max'
        )


def ends_at_zero(node: dict) -> bool:
    """Check whether a schedule lowers the learning rate to 0."""
    if type_name(node) == 'LinearLR':
        return node.get('end_factor', 1.0) == 0
    return type_name(node) in ('CosineAnnealingLR', 'PolyLR') and not (node.get('eta_min') or node.get('eta_min_ratio'))


def changes_after(node: dict, time: float) -> bool:
    """Check whether a schedule changes the learning rate after a time."""
    return any(milestone > time for milestone in node.get('milestones') or [node.get('end', math.inf)])


class Schedule(NamedTuple):
    """A schedule's config, and the length of the training in its unit, ``'epochs'`` or ``'iterations'``."""

    node: dict
    total: int
    unit: str


def timed_schedules(cfg: Config, by_epoch: bool, samples: Optional[int]) -> Iterator[Schedule]:
    """Yield the schedules with the length of the training in their unit, if that is known; arguments as above."""
    loop: Any = cfg.get('train_cfg') or {}
    for node in walk(cfg.get('param_scheduler')):
        counts_epochs = node.get('by_epoch', True)
        if not type_name(node) or (counts_epochs and not by_epoch) or not has_times(node):
            continue
        total = loop.get(f'max_{"epochs" if by_epoch else "iters"}')
        if by_epoch and not counts_epochs:
            length = epoch_length(cfg, samples)
            total = total * length if total and length else None
        if isinstance(total, int):
            yield Schedule(node, total, 'epochs' if counts_epochs else 'iterations')


def has_times(node: dict) -> bool:
    """Check that the times of a schedule are numbers; the runner reports others."""
    times = [node.get(key) for key in ('begin', 'end', 'T_max', 'total_steps')]
    return all(isinstance(each, (int, float)) for each in times if each is not None)


def epoch_length(cfg: Config, samples: Optional[int]) -> Optional[int]:
    """Return the iterations of an epoch; ``None`` if unknown."""
    loader = cfg.get('train_dataloader') or {}
    size = loader.get('batch_size')
    if not samples or not isinstance(size, int) or size < 1:
        return None
    return math.ceil(samples / (size * max(1, int(os.environ.get('WORLD_SIZE') or 1))))
