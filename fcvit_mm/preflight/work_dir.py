"""Checking that the work directory of a run can be written and has room for the checkpoints."""

import os
import os.path as osp
import shutil
from typing import List

from mmengine.config import Config

from ..engine.config import type_name
from .log import log_warning
from .model import built_model

#: Free bytes that are enough for any checkpoint, so that the model need not be built, which takes seconds.
PLENTY = 10 * 2**30
#: Number of values that an optimizer stores for each parameter value.
STATES = {'Adam': 2, 'AdamW': 2, 'NAdam': 2, 'RAdam': 2, 'Lamb': 2, 'Lion': 1}


def work_dir_problems(cfg: Config) -> List[str]:
    """Check that the work directory can be written, with room for one more checkpoint."""
    problems = folder_to_write_problems(cfg)
    if problems:
        return problems
    folder = existing_part(cfg.work_dir)
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith('.pth')]
    if sizes and folder == osp.abspath(cfg.work_dir) and not cfg.get('resume'):
        log_warning(
            f'{cfg.work_dir} has checkpoints of an earlier run, and those of the same name will be overwritten. To '
            'continue that run: --resume; to keep it: another --work-dir'
        )
    largest = max(sizes, default=0)
    if not largest and shutil.disk_usage(folder).free < PLENTY:
        largest = checkpoint_size(cfg)
    return disk_problems(folder, largest)


def checkpoint_size(cfg: Config) -> int:
    """Return the minimum size of a checkpoint in bytes; 0 if it is unknown, or is written to another folder."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not isinstance(hook, dict) or hook.get('out_dir'):
        return 0
    model = built_model(cfg, 'meta')
    if model is None:
        return 0
    size = sum(each.nbytes for each in model.state_dict().values())
    if hook.get('save_optimizer', True):
        optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
        trained = sum(each.nbytes for each in model.parameters() if each.requires_grad)
        size += STATES.get(type_name(optimizer), 0) * trained
    return size


def existing_part(path: str) -> str:
    """Return the longest part of a path that exists: a folder or a file."""
    path = osp.abspath(path)
    while not osp.lexists(path):
        path = osp.dirname(path)
    return path


def folder_to_write_problems(cfg: Config) -> List[str]:
    """Check that the work directory is a folder or can become one."""
    there = existing_part(cfg.work_dir)
    if not osp.isdir(there):
        below = ' ' if there == osp.abspath(cfg.work_dir) else f': {there}, above it, '
        return [f'work_dir {cfg.work_dir}{below}is a file, expected a folder: give another --work-dir']
    if not os.access(there, os.W_OK):
        return [
            f'work_dir {cfg.work_dir} cannot be written ({there} is read-only, or belongs to another user): give '
            'another --work-dir'
        ]
    return []


def disk_problems(folder: str, needed: int) -> List[str]:
    """Check that the disk of a folder has enough free space."""
    free = shutil.disk_usage(folder).free
    if needed < free:
        return []
    return [
        f'{folder} has {free / 2**20:.0f} MiB free, the checkpoints of this run need {needed / 2**20:.0f} MiB: free '
        'disk space, give another --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts'
    ]
