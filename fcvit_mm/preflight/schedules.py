"""Schedules that are made for a longer training than that of a config."""

import math
import os
from typing import Optional

from mmengine.config import Config

from ..engine.config import type_name, walk
from .limits import remark, shorten


def report_long_schedules(cfg: Config, by_epoch: bool, samples: Optional[int]) -> None:
    """Log a warning if schedules begin or end after the training.

    Args:
        cfg (Config): The config.
        by_epoch (bool): Whether the training loop counts epochs.
        samples (int, optional): Number of training samples, if it is known.
    """
    loop, found = cfg.get('train_cfg') or {}, []
    for node in walk(cfg.get('param_scheduler')):
        counts_epochs = node.get('by_epoch', True)
        if not type_name(node) or (counts_epochs and not by_epoch):
            continue
        unit = 'epochs' if counts_epochs else 'iterations'
        total = loop.get(f'max_{"epochs" if by_epoch else "iters"}')
        if by_epoch and not counts_epochs:
            length = epoch_length(cfg, samples)
            total = total * length if total and length else None
        if not isinstance(total, int):
            continue
        # Beyond its milestones, the end of a MultiStepLR does not matter.
        keys = ('begin',) if node.get('milestones') else ('begin', 'end', 'T_max')
        times = [node[key] for key in keys if isinstance(node.get(key), int)]
        times += [min(node['milestones'])] if node.get('milestones') else []
        if times and max(times) > total:
            given = ', '.join(
                f'{key}={node[key]}' for key in ('begin', 'end', 'T_max', 'milestones') if node.get(key) is not None
            )
            found.append(f'{type_name(node)} ({given}; training has {total} {unit})')
    if found:
        remark(
            f'param_scheduler: {shorten(found)}: made for a longer training, so that a warm-up or a decay is not '
            'complete or does not happen. Adapt begin, end, T_max and milestones'
        )


def epoch_length(cfg: Config, samples: Optional[int]) -> Optional[int]:
    """Return the iterations of an epoch; ``None`` if unknown."""
    loader = cfg.get('train_dataloader') or {}
    size = loader.get('batch_size')
    if not samples or not isinstance(size, int) or size < 1:
        return None
    return math.ceil(samples / (size * max(1, int(os.environ.get('WORLD_SIZE') or 1))))
