"""What a checkpoint holds: which network, of which form, trained for what, and its weights under our names."""

from collections import OrderedDict
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from .key_tables import (
    EMA_KEYS,
    HEAD,
    NECKS,
    PADDLE_LEAVES,
    PADDLE_NAMES_KEY,
    PLAIN_KEYS,
    TABLES,
    TASKS,
    WRAPPERS,
    Table,
    is_like,
    to_ours,
)
from .safe_load import CheckpointError


class Recognized(NamedTuple):
    """A checkpoint's weights, under the names of this package.

    Attributes:
        table (Table): The network's names.
        source (str): Where the names come from: ``'published'``, ``'Paddle'`` or ``'OpenMMLab'``.
        task (str): ``'classifier'``, ``'detector'``, ``'segmentor'`` or ``'backbone'``.
        weights (str): Which weights of the file these are, in words.
        backbone (dict[str, Tensor]): The backbone's.
        others (dict[str, Tensor]): Heads and necks, under the names they have in the whole model.
        unknown (tuple[str]): Names of the file that belong to neither.
        prefix (str): What preceded the backbone's names; ``unknown`` has it still.
    """

    table: Table
    source: str
    task: str
    weights: str
    backbone: Dict[str, Tensor]
    others: Dict[str, Tensor]
    unknown: Tuple[str, ...]
    prefix: str

    @property
    def arch(self) -> str:
        """The variant's name, or its depths and channels."""
        return name_arch(self.backbone, self.table)


def find_state_dict(checkpoint: dict, path: str, ema: bool = False) -> Tuple[dict, str]:
    """The dict of weights in a checkpoint, and which it is in words.

    Plain weights are taken unless ``ema`` asks for the averaged ones; where there is but one kind, that one. MMEngine's
    EMAHook puts the averaged weights under ``state_dict`` and the plain ones under ``ema_state_dict``, whatever these
    names say; from such a file the averaged ones are taken, as MMEngine does itself.

    Raises:
        CheckpointError: Averaged weights asked for and not there.
    """
    if isinstance(checkpoint.get('ema_state_dict'), dict) and isinstance(checkpoint.get('state_dict'), dict):
        return checkpoint['state_dict'], 'averaged (EMA) weights, which MMEngine keeps under state_dict'
    plain = next((key for key in PLAIN_KEYS if isinstance(checkpoint.get(key), dict)), None)
    averaged = next((key for key in EMA_KEYS if isinstance(checkpoint.get(key), dict)), None)
    if ema and averaged is None:
        raise CheckpointError(
            f'{path} has no averaged (EMA) weights, expected one of {list(EMA_KEYS)} among its keys '
            f'{some(checkpoint)}: take the plain ones (leave ema out)'
        )
    if averaged is not None and (ema or plain is None):
        return checkpoint[averaged], f'averaged (EMA) weights, {averaged}'
    if plain is not None:
        beside = f' (averaged ones are there too, {averaged}: ema=True or --ema takes them)' if averaged else ''
        return checkpoint[plain], f'plain weights, {plain}{beside}'
    return checkpoint, 'plain weights'


def recognize(checkpoint: dict, path: str, ema: bool = False, prefix: Optional[str] = None) -> Recognized:
    """Tell what a checkpoint holds by its keys, and give its weights our names.

    Args:
        checkpoint (dict): As :func:`read_checkpoint` returns it.
        path (str): Its name, for errors.
        ema (bool): Take the averaged weights.
        prefix (str, optional): What precedes the backbone's names, if it is not ``backbone.`` or nothing.

    Raises:
        CheckpointError: No tensors inside, none of a network that this package has, or NaN among them.
    """
    state_dict, weights = find_state_dict(checkpoint, path, ema)
    tensors = tensors_of(state_dict)
    if not tensors:
        raise CheckpointError(f'{path} has no tensors in it, only {some(state_dict)}: expected a state_dict')
    prefix = _find_prefix(tensors, path, prefix)
    backbone = OrderedDict((key[len(prefix) :], value) for key, value in tensors.items() if key.startswith(prefix))
    rest = OrderedDict((key, value) for key, value in tensors.items() if not key.startswith(prefix))
    paddle = any(key.rsplit('.', 1)[-1] in PADDLE_LEAVES for key in backbone)
    if paddle:
        backbone = {_torch_leaf(key): value for key, value in backbone.items()}

    table, published = _find_table(backbone, path)
    named, unknown = OrderedDict(), []
    for key, value in backbone.items():
        if is_like(key, table.derived):
            continue
        if published:
            name = to_ours(key, table.rows)
        else:
            name = key if is_like(key, tuple(row.ours for row in table.rows)) else None
        if name is None:
            rest[prefix + key] = value
        elif name in named:
            raise CheckpointError(f'{path} has two tensors for {name}, one of them called {key}')
        else:
            named[name] = value

    others = OrderedDict()
    for key, value in rest.items():
        name = to_ours(key, HEAD) or key
        if name.split('.')[0] in (*NECKS, *(part for parts in TASKS.values() for part in parts)):
            others[name] = value
        else:
            unknown.append(key)
    linear = _linear_weights(named, others, table)
    if _are_transposed(linear, path, default=paddle):
        for weights_of, name in linear:
            weights_of[name] = weights_of[name].t().contiguous()
    if paddle:  # which keeps no count of batches; torch's BatchNorm has one
        for name in [name for name in named if name.endswith('.running_var')]:
            named.setdefault(f'{name[: -len("running_var")]}num_batches_tracked', torch.tensor(0))
    wrong = [
        name
        for name, value in named.items()
        if not value.is_floating_point() and not name.endswith('.num_batches_tracked')
    ]
    if wrong:
        raise CheckpointError(
            f'{path} holds {named[wrong[0]].dtype} values where weights stand ({some(wrong)}): '
            'expected floating point, as quantised or complex weights are not understood'
        )
    check_finite({**named, **others}, path)
    parts = {name.split('.')[0] for name in others}
    task = next((task for task, heads in TASKS.items() if parts.intersection(heads)), 'backbone')
    source = 'Paddle' if paddle else 'published' if published else 'OpenMMLab'
    return Recognized(table, source, task, weights, named, others, tuple(unknown), prefix)


def check_finite(state_dict: dict, path: str) -> None:
    """Refuse weights with NaN or infinity among them: a training that diverged wrote them.

    Raises:
        CheckpointError: Names the first such tensors.
    """
    wrong = [
        key
        for key, value in state_dict.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if wrong:
        raise CheckpointError(
            f'{path} holds NaN or infinite values in {len(wrong)} of {len(state_dict)} tensors '
            f'({some(wrong)}): the training that wrote it had diverged, take an earlier checkpoint'
        )


def arch_of(backbone: Dict[str, Tensor], table: Table) -> dict:
    """Depths and channels of a backbone's state dict (our names), for the stages that it has."""
    depths: List[int] = []
    channels: List[int] = []
    for stage in range(4):
        blocks = {key.split('.')[3] for key in backbone if key.startswith(f'stages.{stage}.blocks.')}
        if not blocks:
            break
        depths.append(len(blocks))
        width = backbone.get(f'stages.{stage}.blocks.0.{table.width}')
        channels.append(0 if width is None else width.shape[0])
    return {'depths': tuple(depths), 'channels': tuple(channels)}


def name_arch(backbone: Dict[str, Tensor], table: Table) -> str:
    """The variant's name (``'b12'``, ``'tiny (static)'``), or its depths and channels in words."""
    found, kind = arch_of(backbone, table), table.kind(backbone)
    kind = f' ({kind})' if kind else ''
    for name, row in table.network.arch_settings.items():
        if all(tuple(row[key]) == value for key, value in found.items()):
            return f'{name}{kind}'
    return f'with depths {found["depths"]} and channels {found["channels"]}{kind}'


def tensors_of(state_dict: dict) -> Dict[str, Tensor]:
    """The tensors of a state dict, NumPy arrays among them, without the wrappers' prefixes."""
    result = OrderedDict()
    for key, value in state_dict.items():
        # Newer Paddle saves a tensor as (its name, array).
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]
        if isinstance(value, np.ndarray) and value.dtype.kind in 'biufc':
            value = torch.from_numpy(value)
        if not isinstance(key, str) or not isinstance(value, Tensor) or key == PADDLE_NAMES_KEY:
            continue
        while key.startswith(WRAPPERS):
            key = key.split('.', 1)[1]
        result[key] = value
    return result


def _find_prefix(tensors: Dict[str, Tensor], path: str, prefix: Optional[str]) -> str:
    """What precedes the backbone's names: what the caller said, else ``backbone.`` if anything does, else nothing."""
    if prefix is None:
        prefix = 'backbone.' if any(key.startswith('backbone.') for key in tensors) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    if not any(key.startswith(prefix) for key in tensors):
        raise CheckpointError(
            f'{path} has no tensor whose name begins with {prefix!r}, they begin with '
            f'{sorted({key.split(".")[0] for key in tensors})}: give one of these as prefix, or none'
        )
    return prefix


def _find_table(backbone: Dict[str, Tensor], path: str) -> Tuple[Table, bool]:
    """The network's table, and whether the names are the published ones."""
    for table in TABLES:
        for key in backbone:
            if is_like(key, table.markers):
                return table, False
            name = to_ours(key, table.rows)
            if name is not None and is_like(name, table.markers):
                return table, True
    networks = ', '.join(table.network.__name__ for table in TABLES)
    raise CheckpointError(
        f'{path} has nothing in common with {networks}: its {len(backbone)} tensors are called {some(backbone)}'
    )


def _torch_leaf(key: str) -> str:
    stem, _, leaf = key.rpartition('.')
    return f'{stem}.{PADDLE_LEAVES[leaf]}' if leaf in PADDLE_LEAVES else key


def _linear_weights(backbone: dict, others: dict, table: Table) -> List[Tuple[dict, str]]:
    """Where the 2-D linear weights stand: the dict and the name."""
    result = [(backbone, name) for name in backbone if is_like(name, table.linear)]
    if 'head.fc.weight' in others:
        result.append((others, 'head.fc.weight'))
    return [(where, name) for where, name in result if where[name].ndim == 2]


def _are_transposed(linear: List[Tuple[dict, str]], path: str, default: bool) -> bool:
    """Whether linear weights are (in, out). Their biases tell, except for square ones; ``default`` where none tells."""
    votes = {}
    for where, name in linear:
        rows, columns = where[name].shape
        bias = where.get(name[: -len('weight')] + 'bias')
        if bias is not None and rows != columns and bias.numel() in (rows, columns):
            votes[name] = bias.numel() == columns
    if len(set(votes.values())) > 1:
        ordinary, transposed = ([name for name in votes if votes[name] is kind] for kind in (False, True))
        raise CheckpointError(
            f'{path} has linear weights stored (out, in), such as {ordinary[0]}, and others stored '
            f'(in, out), such as {transposed[0]}: expected all of one kind'
        )
    return next(iter(votes.values()), default)


def some(names, count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(names[:count]) + more if names else 'nothing'
