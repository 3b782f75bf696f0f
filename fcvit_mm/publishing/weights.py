"""Publishing a trained model: weights and the metadata for inference, in files with hashes in their names.

What MMEngine's runner writes to resume training (optimizer, schedulers, logs, the second set of weights of its
``EMAHook``, the config with the paths in it) is dropped.
"""

import hashlib
import io
import json
import os
import re
from collections import OrderedDict
from typing import Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from ..checkpoints.convert import KEPT_META, plain_data
from ..checkpoints.errors import CheckpointError
from ..checkpoints.names import some, tensors_of
from ..checkpoints.recognize import check_finite
from ..checkpoints.safe_load import META_KEY, read_checkpoint
from ..engine.hooks.resume import RUN
from ..files import write_all_atomic
from ..version import __version__

#: Further entries of ``meta`` that are kept if they are plain data: the origin of the weights.
KEPT_TRAINING = ('epoch', 'iter', 'seed', 'time', 'experiment_name', 'mmengine_version', 'fcvit_mm_version')
#: Digits of the SHA-256 in a file's name, as OpenMMLab and torch.hub have it: ``fcvit_b12-1a2b3c4d.pth``.
HASH_DIGITS = 8
AVERAGED = 'averaged (EMA)'
AS_TRAINED = 'as trained'
NOT_AVERAGED = 'as trained, not averaged (EMA)'


class Stripped(NamedTuple):
    """The published part of a checkpoint.

    Attributes:
        state_dict (dict[str, Tensor]): The weights, each with a storage of its own.
        meta (dict): Plain data: strings, numbers, lists, tuples and dicts of them.
        weights (str): Kind of the weights: :data:`AVERAGED`, :data:`AS_TRAINED`, or :data:`NOT_AVERAGED` for the raw
            weights of a run with ``EMAHook``.
        validated (bool): Whether the run was validated with these weights; with ``EMAHook``, only the averaged ones
        are.
        dropped (tuple[str]): Keys of the file that are not published.
    """

    state_dict: Dict[str, Tensor]
    meta: dict
    weights: str
    validated: bool
    dropped: Tuple[str, ...]


def strip_checkpoint(source: str, ema: bool = True) -> Stripped:
    """Read a checkpoint without running code in it, and keep only what is published.

    For a run with MMEngine's ``EMAHook`` these are the averaged weights, which validation used: the hook saves them in
    ``state_dict`` and the raw ones in ``ema_state_dict``, despite the names.

    Args:
        source (str): A checkpoint of ``tools/train.py``, or of any MMEngine runner, or of
            ``tools/convert_checkpoint.py``, or a published file, which states the kind of its weights.
        ema (bool): False: publish the raw weights of a run with ``EMAHook``.

    Raises:
        CheckpointError: It cannot be read, is none of these, contains NaN or infinite weights, or ``ema`` is False and
            there is only one set of weights.
    """
    content = read_checkpoint(source)
    found, second = content.get('state_dict'), content.get('ema_state_dict')
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    if not isinstance(found, dict):
        raise CheckpointError(
            f'{source} has no state_dict among its keys {some(content)}, expected a checkpoint of '
            'tools/train.py. A published file, or bare weights, is first converted by '
            'tools/convert_checkpoint.py'
        )
    if isinstance(second, dict):
        weights = AVERAGED if ema else NOT_AVERAGED
    else:
        weights = _stated(meta)
    if isinstance(second, dict) and not ema:
        found = _in_training(found, second, source)
    elif not ema:
        raise CheckpointError(
            f'{source} has only one set of weights, as written by a run without EMAHook: omit --no-ema'
        )
    tensors = tensors_of(found)
    if not tensors:
        raise CheckpointError(
            f'{source} has no tensors in its state_dict, only {some(found)}: give a checkpoint of tools/train.py'
        )
    check_finite(tensors, source)
    # Copies, because torch would write the whole storage behind a view, and safetensors refuses a shared one.
    state_dict = OrderedDict((name, value.detach().clone().contiguous()) for name, value in tensors.items())
    dropped = tuple(str(key) for key in content if key not in ('state_dict', 'meta'))
    return Stripped(
        state_dict,
        dict(_kept_meta(meta), weights=weights, published_with=f'fcvit_mm {__version__}'),
        weights,
        validated=weights != NOT_AVERAGED and not _within_epoch(meta),
        dropped=dropped,
    )


def _in_training(averaged: dict, second: dict, source: str) -> dict:
    """Return the raw weights that ``EMAHook`` stored, and those that it does not average (BatchNorm counts)."""
    weights = {key[len('module.') :]: value for key, value in second.items() if str(key).startswith('module.')}
    unknown = [key for key in weights if key not in averaged]
    if not weights or unknown:
        raise CheckpointError(
            f'{source} has an ema_state_dict that does not belong to its state_dict '
            f"({some(unknown or second)}), so it was not written by MMEngine's EMAHook: omit --no-ema to publish the "
            'weights in state_dict'
        )
    return {**averaged, **weights}


def _stated(meta: dict) -> str:
    """Return the kind of the weights that a published or converted file states; by default they are as trained."""
    text = str(meta.get('weights'))
    return next((kind for kind in (AVERAGED, NOT_AVERAGED) if text.startswith(kind)), AS_TRAINED)


def _within_epoch(meta: dict) -> bool:
    """Check whether a run that counts epochs saved a checkpoint within one, such as ``interrupted.pth``."""
    run = meta.get(RUN)
    return isinstance(run, dict) and run.get('loop') == 'epochs' and bool(run.get('parts'))


def _kept_meta(meta: dict) -> dict:
    """Return the published part of ``meta``."""
    kept = {key: plain_data(meta[key]) for key in (*KEPT_META, *KEPT_TRAINING) if key in meta}
    return {key: value for key, value in kept.items() if value not in (None, {})}


def pack(stripped: Stripped, name: str, safetensors: bool = False) -> Dict[str, bytes]:
    """Build the files to publish. The same weights and meta give the same bytes, and therefore the same names.

    Args:
        stripped (Stripped): Content of the files.
        name (str): Name of the files, without suffix.
        safetensors (bool): Also build a ``.safetensors`` file, with meta as JSON text in its header.

    Returns:
        dict[str, bytes]: Contents by file name. Both kinds are read by ``init_cfg``, the libraries' inferencers and the
        tools, and the first with ``torch.load(weights_only=True)``.

    Raises:
        CheckpointError: safetensors is not installed.
    """
    buffer = io.BytesIO()
    torch.save({'state_dict': stripped.state_dict, 'meta': stripped.meta}, buffer)
    contents = [('.pth', buffer.getvalue())]
    if safetensors:
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise CheckpointError('--safetensors needs the package safetensors: pip install safetensors') from error
        # A single entry, because the order of several entries is not always the same.
        contents.append(('.safetensors', save(stripped.state_dict, {META_KEY: json.dumps(stripped.meta)})))
    return {f'{name}-{digest(data)[:HASH_DIGITS]}{suffix}': data for suffix, data in contents}


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def split_destination(path: str) -> Tuple[str, str]:
    """Split the argument ``out``, with or without ``.pth``, into folder and bare name.

    Raises:
        CheckpointError: The folder is missing, or the name is invalid.
    """
    folder, name = os.path.split(os.path.abspath(path))
    name = name[: -len('.pth')] if name.endswith('.pth') else name
    if os.path.isdir(path) or not re.fullmatch(r'[\w.+-]+', name) or name.endswith('.safetensors'):
        raise CheckpointError(
            f'the output is {path}, expected a file name of letters, digits and _.+-, such as '
            'published/fcvit_b12_in1k.pth; the hash is inserted automatically (--safetensors adds a .safetensors file)'
        )
    if not os.path.isdir(folder):
        raise CheckpointError(f'{path} cannot be written: {folder} is not a directory: create it first')
    return folder, name


def write_files(folder: str, files: Dict[str, bytes], force: bool = False) -> List[str]:
    """Write files atomically: if the last one exists, all of them do.

    Returns:
        list[str]: Paths of the written files.

    Raises:
        CheckpointError: A file exists and ``force`` is not set.
        WriteError: The disk is full, ...; then none is written.
    """
    contents = {os.path.join(folder, name): data for name, data in files.items()}
    existing = [path for path in contents if os.path.exists(path)]
    if existing and not force:
        exist, them = ('exists', 'it') if len(existing) == 1 else ('exist', 'them')
        raise CheckpointError(f'{some(existing)} already {exist}: give another name, or --force to overwrite {them}')
    return write_all_atomic(contents)
