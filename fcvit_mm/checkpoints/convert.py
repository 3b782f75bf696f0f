"""Write a checkpoint of any published format as one of this package: tensors only, our names."""

import os
from collections import OrderedDict
from typing import List, Optional

import torch

from ..version import __version__
from .recognize import Recognized, recognize, some
from .safe_load import CheckpointError, read_checkpoint

#: What of a source's ``meta`` is kept, if it is plain data: class names and colours, which inference draws with.
KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE', 'classes')


def convert_checkpoint(source: str, destination: str, ema: bool = False, force: bool = False) -> dict:
    """Convert a published checkpoint, or strip one that OpenMMLab's tools wrote to its weights.

    The result, ``dict(state_dict=..., meta=...)``, loads with ``torch.load(weights_only=True)`` and strictly into the
    model that it belongs to: a classifier, a detector or a segmentor with the backbone under ``backbone.``, or a bare
    backbone.

    Args:
        source (str): The file to read; see :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
        destination (str): The file to write. It appears whole or not at all.
        ema (bool): Take the averaged weights of a file that has both.
        force (bool): Overwrite ``destination``.

    Returns:
        dict: What was recognised, in words: network, arch, task, source, weights, number of tensors and, where the
        source says so, epoch.

    Raises:
        CheckpointError: The source cannot be read, or not all of it is recognised.
        FileExistsError: ``destination`` is there and ``force`` is not given.
    """
    if os.path.exists(destination) and not force:
        raise FileExistsError(f'{destination} is there already: give another name, or --force to overwrite it')
    folder = os.path.dirname(os.path.abspath(destination))
    if not os.path.isdir(folder) or os.path.isdir(destination):
        wrong = destination if os.path.isdir(destination) else folder
        raise CheckpointError(
            f'{destination} cannot be written: {wrong} is {"a" if wrong == destination else "not a"} '
            'directory; give the name of a file in one that exists'
        )
    checkpoint = read_checkpoint(source)
    found = recognize(checkpoint, source, ema)
    _check_whole(found, source)
    prefix = '' if found.task == 'backbone' else 'backbone.'
    state_dict = OrderedDict((f'{prefix}{name}', value) for name, value in found.backbone.items())
    state_dict.update(found.others)
    # Copies, because torch would write the whole storage behind a view.
    state_dict = OrderedDict((name, value.detach().clone().contiguous()) for name, value in state_dict.items())

    summary = {
        'network': found.table.network.__name__,
        'arch': found.arch,
        'task': found.task,
        'source': found.source,
        'weights': found.weights,
        'tensors': str(len(state_dict)),
    }
    epoch = _epoch(checkpoint)
    if epoch is not None:
        summary['epoch'] = str(epoch)
    meta = {**summary, 'source_file': os.path.basename(source), 'fcvit_mm_version': __version__}
    meta.update(_kept_meta(checkpoint))
    temporary = f'{destination}.{os.getpid()}.tmp'
    try:
        torch.save({'state_dict': state_dict, 'meta': meta}, temporary)
        os.replace(temporary, destination)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return summary


def _check_whole(found: Recognized, source: str) -> None:
    """Refuse what would not load strictly."""
    if found.unknown:
        raise CheckpointError(
            f'{source} has {len(found.unknown)} tensors that are neither of '
            f'{found.table.network.__name__} nor of a known head or neck: {some(found.unknown)}'
        )
    if found.source == 'Paddle' and found.task not in ('classifier', 'backbone'):
        raise CheckpointError(
            f'{source} is a Paddle {found.task}, expected a classifier or a backbone: how Paddle '
            'stores the other heads is not known here'
        )
    if found.task == 'backbone' and found.others:
        raise CheckpointError(f'{source} has a neck but no head that would tell its task: {some(found.others)}')
    missing = _missing(found)
    if missing:
        raise CheckpointError(f'{source} is not a whole {found.task}, it lacks {some(missing)}: download it again')


def _missing(found: Recognized) -> List[str]:
    """Names that the others of the file call for; heads of detectors and segmentors come in too many forms to tell."""
    names = set(found.backbone)
    stages = range(1 + max(int(name.split('.')[1]) for name in names if name.startswith('stages.')))
    needed = [f'stem.{part}' for part in found.table.stem]
    needed += [f'stages.{stage}.downsample.{part}' for stage in stages[1:] for part in found.table.downsample]
    # Every block has the same parts: one that lacks what another has was damaged.
    for alike in ([stage] for stage in stages) if found.table.mixed else [stages]:
        roots = tuple(f'stages.{stage}.blocks.' for stage in alike)
        split = [name.split('.', 4) for name in names if name.startswith(roots)]
        parts = {part for *_, part in split}
        blocks = {'.'.join(block) for *block, _ in split} | {f'{root}0' for root in roots}
        needed += [f'{block}.{part}' for block in sorted(blocks) for part in sorted(parts)]
    if found.task == 'classifier':
        needed += [f'{found.table.norm}.weight', f'{found.table.norm}.bias']
    missing = [name for name in needed if name not in names]
    if found.task == 'classifier':
        missing += [name for name in ('head.fc.weight', 'head.fc.bias') if name not in found.others]
    return missing


def _epoch(checkpoint: dict) -> Optional[int]:
    meta = checkpoint.get('meta')
    for where in (checkpoint, meta if isinstance(meta, dict) else {}):
        epoch = where.get('epoch')
        if isinstance(epoch, int) and not isinstance(epoch, bool):
            return epoch
    return None


def _kept_meta(checkpoint: dict) -> dict:
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return {}
    return {key: meta[key] for key in KEPT_META if key in meta and _is_plain(meta[key])}


def _is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))
