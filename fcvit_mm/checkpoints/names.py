"""Containers, wrapper prefixes, heads and Paddle names around a backbone's weights in a file.

The names of the backbone's weights themselves are data beside each network: see ``fcvit_mm.models.published_names``.
"""

import re
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from ..models.published_names import Row
from .errors import CheckpointError

#: Containers of a state dict in a checkpoint, in order of preference: weights as trained, and averaged (EMA) ones.
#: ``ema_state_dict`` is missing here because MMEngine's EMAHook swaps the two, see :func:`find_state_dict`.
TRAINED_KEYS = ('state_dict', 'model')
#: Container of the weights in the files of DeepSpeed (``mp_rank_00_model_states.pt``).
DEEPSPEED_KEY = 'module'
EMA_KEYS = ('state_dict_ema', 'model_ema')
#: Containers inside each other that are opened in search of weights; a hostile file may contain itself.
MOST_LEVELS = 4

#: Prefix of every name, by DistributedDataParallel and averaged models.
PARALLEL = 'module.'
#: Parts of names by torch.compile, FSDP and activation checkpointing, which can wrap any module of the model.
WRAPPER = re.compile(r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')

#: Paddle's names of BatchNorm statistics (last part), and its key whose value is not a tensor.
PADDLE_LEAVES = {'_mean': 'running_mean', '_variance': 'running_var'}
PADDLE_NAMES_KEY = 'StructuredToParameterName@@'

#: The head of a classifier: ``head`` in published files, ``head.fc`` in mmpretrain's.
HEAD = (Row('head.weight', 'head.fc.weight'), Row('head.bias', 'head.fc.bias'))

#: First parts of the names of heads, by which a task is recognized. Heads and necks keep their names.
TASKS: Mapping[str, Tuple[str, ...]] = OrderedDict(
    [
        ('detector', ('rpn_head', 'roi_head', 'bbox_head', 'mask_head')),
        ('segmentor', ('decode_head', 'auxiliary_head')),
        ('classifier', ('head',)),
    ]
)
NECKS = ('neck',)


def is_head(name: str) -> bool:
    """Return whether a name belongs to a head or a neck."""
    return name.split('.')[0] in (*NECKS, *(part for parts in TASKS.values() for part in parts))


def find_state_dict(
    checkpoint: Dict[str, Any], path: str = 'the checkpoint', ema: bool = False, level: int = 0
) -> Tuple[Dict[str, Any], str]:
    """Return the dict of weights in a checkpoint, and a description of them.

    The raw weights are used unless ``ema`` is set; if there is only one kind, that one is used. MMEngine's EMAHook
    stores the averaged weights in ``state_dict`` and the raw ones in ``ema_state_dict``, despite these names; from such
    a file the averaged weights are used, as in MMEngine.

    Args:
        checkpoint (dict): The content of the file.
        path (str): Name of the file in messages.
        ema (bool): Whether averaged weights are requested.
        level (int): Number of containers around this one; at :data:`MOST_LEVELS` no further one is opened.

    Raises:
        CheckpointError: Averaged weights are requested but missing.
    """
    if isinstance(checkpoint.get('ema_state_dict'), dict) and isinstance(checkpoint.get('state_dict'), dict):
        return checkpoint['state_dict'], 'averaged (EMA) weights, which MMEngine keeps under state_dict'
    trained = next((key for key in TRAINED_KEYS if isinstance(checkpoint.get(key), dict)), None)
    averaged = next((key for key in EMA_KEYS if isinstance(checkpoint.get(key), dict)), None)
    if averaged is not None and (ema or trained is None):
        return checkpoint[averaged], f'averaged (EMA) weights, {averaged}'
    if trained is None and isinstance(checkpoint.get(DEEPSPEED_KEY), dict):
        trained = DEEPSPEED_KEY
    for key, container in _inner_containers(checkpoint, trained, level) if level < MOST_LEVELS else ():
        weights, description = find_state_dict(container, path, ema, level + 1)
        return weights, f'{description} ({key})' if ',' in description else f'{description}, {key}'
    if ema:
        raise CheckpointError(
            f'{path} has no averaged (EMA) weights, expected one of {list(EMA_KEYS)} among its keys '
            f'{some(checkpoint)}: use the raw weights (without ema=True or --ema)'
        )
    if trained is not None:
        beside = f' (averaged ones are there too, {averaged}: ema=True or --ema takes them)' if averaged else ''
        return checkpoint[trained], f'trained weights, {trained}{beside}'
    return checkpoint, 'trained weights'


def _inner_containers(
    checkpoint: Dict[str, Any], trained: Optional[str], level: int
) -> List[Tuple[str, Dict[str, Any]]]:
    """Return the entry of a file that contains a nested container of weights, as a list of at most one entry.

    Args:
        checkpoint (dict): The content of the file.
        trained (str, optional): The entry whose name says that it contains the weights, such as ``model``. It is
            considered if it contains dicts but no weights itself.
        level (int): Number of containers around this one.
    """
    if trained is None:
        return _other_containers(checkpoint, level)
    entry = checkpoint[trained]
    has_weights = tensors_of(entry) or not any(isinstance(value, dict) for value in entry.values())
    return [] if has_weights else [(trained, entry)]


def _other_containers(checkpoint: Dict[str, Any], level: int) -> List[Tuple[str, Dict[str, Any]]]:
    """Return the only entry of a file with weights, such as ``model_state_dict``, as a list; else an empty list.

    An entry must have more weights than the top level of the file. Averaged weights count only if there are no others.
    Of several entries, as of a generator and a discriminator, none is chosen.
    """
    own = len(tensors_of(checkpoint))  # tensors at the top level, such as the loss
    entries = [(key, value) for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, dict)]
    found = [
        (key, value) for key, value in entries if len(tensors_of(find_state_dict(value, level=level + 1)[0])) > own
    ]
    raw = [(key, value) for key, value in found if 'ema' not in key.lower()]
    found = raw or found
    return found if len(found) == 1 else []


def tensors_of(state_dict: Mapping[Any, Any]) -> Dict[str, Tensor]:
    """Return the tensors of a state dict, NumPy arrays among them, without the names of wrappers."""
    result: Dict[str, Tensor] = OrderedDict()
    for key, value in state_dict.items():
        # Newer Paddle saves a tensor as (its name, array).
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]
        if isinstance(value, np.ndarray) and value.dtype.kind in 'biufc':
            value = torch.from_numpy(value)
        if not isinstance(key, str) or not isinstance(value, Tensor) or key == PADDLE_NAMES_KEY:
            continue
        result[without_wrappers(key)] = value
    return result


def without_wrappers(name: str) -> str:
    """Return a name without the parts that wrappers of modules add."""
    name = WRAPPER.sub('', name)
    while name.startswith(PARALLEL):
        name = name[len(PARALLEL) :]
    return name


def weights_of(checkpoint: Dict[str, Any], path: str = 'the checkpoint', ema: bool = False) -> Dict[str, Tensor]:
    """Return the weights in a checkpoint, without container and the names of wrappers.

    Args:
        checkpoint (dict): Result of :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
        path (str): Path of the file, for errors.
        ema (bool): Take the averaged weights of a file that has both.

    Raises:
        CheckpointError: See :func:`find_state_dict`.
    """
    return tensors_of(find_state_dict(checkpoint, path, ema)[0])


def some(names: Iterable[Any], count: int = 3) -> str:
    """Return the first few names, and how many more there are, as text."""
    texts: List[str] = [str(name) for name in names]
    more = f' and {len(texts) - count} more' if len(texts) > count else ''
    return ', '.join(texts[:count]) + more if texts else 'nothing'
