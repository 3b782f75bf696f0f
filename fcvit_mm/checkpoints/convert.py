"""Converting checkpoints of any published format to the format of this package: tensors only, our names.

The published names are data in ``fcvit_mm/models/*_names.py``; :mod:`.recognize` finds the network by them and renames.
"""

import os
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Optional, Set

import numpy as np
import torch

from ..files import atomic_path
from ..models.variants import variants_of
from ..version import __version__
from .errors import CheckpointError, CheckpointExistsError
from .names import some
from .recognize import BLOCK, Recognized, recognize, reference_names
from .safe_load import read_checkpoint

#: Entries of a source's ``meta`` that are kept if they are plain data: class names and colors, for drawing.
KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE', 'classes')


def convert_checkpoint(source: str, destination: str, ema: bool = False, force: bool = False) -> Dict[str, str]:
    """Convert a published checkpoint, or reduce a checkpoint of OpenMMLab's tools to its weights.

    The result, ``dict(state_dict=..., meta=...)``, loads with ``torch.load(weights_only=True)`` and strictly into the
    model that it belongs to: a classifier, a detector or a segmentor with the backbone under ``backbone.``, or a bare
    backbone.

    Args:
        source (str): The file to read; see :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
        destination (str): The file to write, atomically.
        ema (bool): Take the averaged weights of a file that has both.
        force (bool): Overwrite ``destination``.

    Returns:
        dict[str, str]: Network, arch, task, source, weights, number of tensors and, if the source contains it, epoch.

    Raises:
        CheckpointError: The source cannot be read or is not recognized completely.
        CheckpointExistsError: ``destination`` exists and ``force`` is not set; also a ``FileExistsError``.
        WriteError: ``destination`` cannot be written.
    """
    _check_destination(destination, force)
    checkpoint = read_checkpoint(source)
    found = recognize(checkpoint, source, ema)
    _check_complete(found, source)
    content = to_ours(checkpoint, found, source)
    # Copies, because torch would write the complete storage behind a view.
    content['state_dict'] = OrderedDict((name, value.clone()) for name, value in content['state_dict'].items())
    with atomic_path(destination) as temporary:
        torch.save(content, temporary)
    return _summary(checkpoint, found)


def to_ours(checkpoint: Dict[str, Any], found: Recognized, source: str) -> Dict[str, Any]:
    """Return a checkpoint of any published format in the format of this package.

    Args:
        checkpoint (dict): Result of :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
        found (Recognized): Recognized content of the checkpoint; unknown tensors are dropped.
        source (str): File of the checkpoint.

    Returns:
        dict: ``state_dict``, with the backbone under ``backbone.`` unless it is all there is, and ``meta``: what was
        recognized, and the classes and colors that the file names, as ``dataset_meta`` too.
    """
    prefix = '' if found.task == 'backbone' else 'backbone.'
    tensors = {**{f'{prefix}{name}': value for name, value in found.backbone.items()}, **found.others}
    state_dict = OrderedDict((name, value.detach().contiguous()) for name, value in tensors.items())
    meta = {**_summary(checkpoint, found), 'source_file': os.path.basename(source), 'fcvit_mm_version': __version__}
    return {'state_dict': state_dict, 'meta': {**meta, **_kept_meta(checkpoint)}}


def _summary(checkpoint: Dict[str, Any], found: Recognized) -> Dict[str, str]:
    """Return the recognized content as text."""
    summary = {
        'network': found.network.__name__,
        'arch': found.arch,
        'task': found.task,
        'source': found.source,
        'weights': found.weights,
        'tensors': str(len(found.backbone) + len(found.others)),
    }
    epoch = _epoch(checkpoint)
    if epoch is not None:
        summary['epoch'] = str(epoch)
    return summary


def _check_destination(destination: str, force: bool) -> None:
    if os.path.exists(destination) and not force:
        raise CheckpointExistsError(f'{destination} already exists: give another name, or --force to overwrite it')
    folder = os.path.dirname(os.path.abspath(destination))
    if not os.path.isdir(folder) or os.path.isdir(destination):
        wrong = destination if os.path.isdir(destination) else folder
        raise CheckpointError(
            f'{destination} cannot be written: {wrong} is {"a" if wrong == destination else "not a"} directory: give '
            'a file name in an existing directory'
        )


def _check_complete(found: Recognized, source: str) -> None:
    """Reject a checkpoint that would not load strictly."""
    if found.unknown:
        raise CheckpointError(
            f'{source} has {len(found.unknown)} tensors that belong neither to {found.network.__name__} nor to a '
            f'known head or neck: {some(found.unknown)}. Remove them from the file, or give it as pretrained=FILE of '
            'the backbone, which skips them'
        )
    if found.source == 'Paddle' and found.task not in ('classifier', 'backbone'):
        raise CheckpointError(
            f'{source} is a Paddle {found.task}, expected a classifier or a backbone, because the names of other '
            'Paddle heads are not known: give it as pretrained=FILE of the backbone, which skips the heads'
        )
    if found.task == 'backbone' and found.others:
        raise CheckpointError(
            f'{source} has a neck ({some(found.others)}) but no head, from which the task is recognized: give the file '
            'of the complete model, or give this one as pretrained=FILE of the backbone'
        )
    missing = _missing(found)
    if missing:
        raise CheckpointError(f'{source} is an incomplete {found.task}: {some(missing)} missing. Download it again')


def _missing(found: Recognized) -> List[str]:
    """Return missing names that the other names of the file imply.

    Heads of detectors and segmentors are not checked: there are too many kinds.
    """
    names = set(found.backbone)
    count = 1 + max((int(name.split('.')[1]) for name in names if name.startswith('stages.')), default=-1)
    stages = [f'stages.{stage}.' for stage in range(count)]
    # Outside of blocks, all variants of a network have the same names.
    reference = reference_names(found.network)
    outside = ('stem.', *stages)
    if found.task == 'classifier' and variants_of(found.network):  # variants describe classifiers
        outside += ('norm',)
    needed = [name for name in reference if name.startswith(outside) and not BLOCK.match(name)]
    # All blocks of a network, or of a stage if the stages differ, have the same parameters: one without them is
    # incomplete.
    parts = {stage: _parts(reference, stage) for stage in stages}
    groups = [stages] if reference and len(set(map(frozenset, parts.values()))) == 1 else [[stage] for stage in stages]
    for group in groups:
        present = sorted(set().union(*(_parts(names, stage) for stage in group)))
        blocks = {
            match.group() for match in map(BLOCK.match, names) if match and match.group().startswith(tuple(group))
        }
        blocks |= {f'{stage}blocks.0.' for stage in group}
        needed += [f'{block}{part}' for block in sorted(blocks) for part in present]
    missing = [name for name in needed if name not in names and not name.endswith('.num_batches_tracked')]
    if found.task == 'classifier':
        missing += [name for name in ('head.fc.weight', 'head.fc.bias') if name not in found.others]
    return missing


def _parts(names: Iterable[str], stage: str) -> Set[str]:
    """Return the rest of each name after the block, for the blocks of a stage."""
    found = (BLOCK.match(name) for name in names if name.startswith(stage))
    return {match.string[match.end() :] for match in found if match}


def _epoch(checkpoint: Dict[str, Any]) -> Optional[int]:
    meta = checkpoint.get('meta')
    for where in (checkpoint, meta if isinstance(meta, dict) else {}):
        epoch = where.get('epoch')
        if isinstance(epoch, int) and not isinstance(epoch, bool):
            return epoch
    return None


def _kept_meta(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return {}
    kept = {key: plain_data(meta[key]) for key in KEPT_META if key in meta}
    kept = {key: value for key, value in kept.items() if value not in (None, {})}
    # Keys of mmdet 2 and mmseg 0.x, stored as dataset_meta, where newer code looks for them.
    old = {key.lower(): kept[key] for key in ('CLASSES', 'PALETTE') if kept.get(key)}
    if 'classes' in old:
        kept.setdefault('dataset_meta', old)
    return kept


def plain_data(value: Any) -> Any:
    """Convert a value to plain data: NumPy scalars to Python's, a dict to its plain items; ``None`` for other types."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.dtype.kind in 'biufUS'):
        value = value.tolist()
    if isinstance(value, dict):
        items = {key: plain_data(item) for key, item in value.items() if isinstance(key, str)}
        items = {key: item for key, item in items.items() if item is not None}
        return items if items or not value else None
    if isinstance(value, (list, tuple)):
        each = [plain_data(item) for item in value]
        if any(item is None for item in each):
            return None
        return tuple(each) if isinstance(value, tuple) else each
    return value if isinstance(value, (str, int, float)) else None
