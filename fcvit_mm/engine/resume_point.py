"""The checkpoint from which a run resumes: the last complete one of a work directory, or a given one."""

import os
import os.path as osp
import zipfile
from typing import Optional

from mmengine.config import Config
from mmengine.logging import print_log

from .config import type_name
from .wrapped import backbone_config, find_inner_model


def request_resume(cfg: Config, point: str) -> None:
    """Set ``resume`` and ``load_from`` for ``--resume``. Without a checkpoint the run starts from scratch.

    Args:
        cfg (Config): Changed in place.
        point (str): A checkpoint, or ``'auto'`` for the last one in the work directory.
    """
    found = find_resume_point(cfg.work_dir) if point == 'auto' else point
    if found is not None:
        cfg.resume, cfg.load_from = True, found
    elif not cfg.get('resume'):
        source = f' with the weights of load_from={cfg.load_from}' if cfg.get('load_from') else ''
        print_log(f'No checkpoint in {cfg.work_dir}: starting from scratch{source}.', logger='current')


def select_resume_point(cfg: Config) -> None:
    """Choose the checkpoint that ``resume`` continues from: ``load_from``, or else the work directory's last.

    Afterwards ``cfg.load_from`` names it and the backbone's pretrained file is not needed; without any checkpoint
    ``cfg.resume`` is ``False``. A config whose resume point was already chosen is not changed.
    """
    if not cfg.get('resume'):
        return
    cfg.load_from = cfg.get('load_from') or find_resume_point(cfg.work_dir)
    if not cfg.load_from:
        cfg.resume = False
        print_log(f'No checkpoint in {cfg.work_dir}: starting from scratch.', logger='current')
        return
    backbone = backbone_config(find_inner_model(cfg.get('model') or {})[1])
    if type_name(backbone.get('init_cfg') or {}) == 'Pretrained':
        backbone['init_cfg'] = None


def find_resume_point(work_dir: str) -> Optional[str]:
    """Find the latest complete checkpoint of a work directory.

    ``last_checkpoint`` names it. If that file is corrupt, or the named checkpoint is missing (after moving the work
    directory) or truncated (not written by this package's hook), the newest complete one is used.

    Returns:
        str | None: Path of the checkpoint; ``None`` if training did not reach the first.
    """
    named = None
    try:
        with open(osp.join(work_dir, 'last_checkpoint'), encoding='utf-8') as file:
            named = file.read().strip()
    except (OSError, ValueError):
        pass
    if named and '://' in named:
        return named
    if named:
        for path in (named, osp.join(work_dir, osp.basename(named))):
            if is_complete(path):
                return path
    # Best checkpoints contain no optimizer state, so training cannot resume from them.
    names = os.listdir(work_dir) if osp.isdir(work_dir) else []
    paths = [
        osp.join(work_dir, name) for name in names if name.endswith('.pth') and not name.startswith(('best_', '.'))
    ]
    found = [path for path in sorted(paths, key=osp.getmtime) if is_complete(path)]
    if not found:
        return None
    print_log(
        f'{osp.join(work_dir, "last_checkpoint")} does not name a complete checkpoint ({named!r}): resuming from '
        f'{found[-1]}, the newest complete one',
        logger='current',
        level=30,
    )
    return found[-1]


def is_sharded(cfg: Config) -> bool:
    """Check whether ``load_from`` is a folder, as FSDP and DeepSpeed write, which only their strategy reads."""
    path = cfg.get('load_from')
    return bool(cfg.get('strategy')) and isinstance(path, str) and osp.isdir(path)


def is_complete(path: str) -> bool:
    """Check whether a file is a complete zip archive, as torch writes checkpoints. Its contents are not read.

    Of a folder (see :func:`is_sharded`), all files must be complete.
    """
    if osp.isdir(path):
        names = [name for name in os.listdir(path) if name.endswith(('.pth', '.pt')) and not name.startswith('.')]
        return bool(names) and all(is_complete(osp.join(path, name)) for name in names)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
