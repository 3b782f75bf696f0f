"""Published weights on this machine: found, or downloaded, and read as ``published:NAME`` wherever a checkpoint is.

The folder of :data:`VARIABLE` is searched first, then torch.hub's folder of checkpoints, where downloads go.
"""

import hashlib
import logging
import os
import shutil
from functools import partial
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..files import WriteError, atomic_path, reported_writes, write_atomic
from ..models.variants import Variant, find_variant
from .convert import to_ours
from .download import DownloadError, download
from .names import some
from .published import SCHEME, PublishedWeights, find_published
from .recognize import Recognized, name_arch, recognize
from .safe_load import READERS, CheckpointError, read_checkpoint

#: The environment variable with the folder that is searched first.
VARIABLE = 'FCVIT_MM_WEIGHTS'
#: Variants by name that were built, which takes seconds, and their parameters without values.
_built: Dict[str, Tuple[Variant, Dict[str, Tensor]]] = {}


class Fetched(NamedTuple):
    """A file that :func:`fetch_published` brought or found.

    Attributes:
        path (str): Where it is.
        size (int): Its bytes.
        sha256 (str): The hash of its content.
        how (str): ``'downloaded'``, ``'copied from PATH'`` or ``'found'``.
        remembered (bool): Whether the hash stands in a file ``.sha256`` beside it; not in a folder of somebody else.
    """

    path: str
    size: int
    sha256: str
    how: str
    remembered: bool


def download_folder() -> str:
    """Return where downloads go: torch.hub's folder of checkpoints (``TORCH_HOME`` moves it)."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints')


def weight_folders() -> List[str]:
    """Return the folders in which published files are looked for, in order.

    Raises:
        CheckpointError: :data:`VARIABLE` names no folder.
    """
    first = os.environ.get(VARIABLE)
    if first and not os.path.isdir(first):
        raise CheckpointError(
            f'{VARIABLE}={first} is no folder: make it and fill it (python tools/download.py NAME --to {first}), or '
            'unset the variable'
        )
    return [*([first] if first else []), download_folder()]


def find_file(weights: PublishedWeights) -> Optional[str]:
    """Return the file of published weights on this machine, if it is here."""
    paths = (os.path.join(folder, weights.file) for folder in weight_folders())
    return next((path for path in paths if os.path.isfile(path)), None)


def published_path(name: str) -> str:
    """Return the file of published weights, which is downloaded if it is not here.

    Args:
        name (str): As of :func:`~fcvit_mm.checkpoints.published.find_published`.

    Raises:
        CheckpointError: No such name, or what came is something else.
        DownloadError: It cannot be downloaded, or only by a person.
        WriteError: It cannot be written.
    """
    weights = find_published(name)
    found = find_file(weights)
    if found is None:
        found = os.path.join(download_folder(), weights.file)
        _download(weights, found)
    return found


def fetch_published(name: str, folder: Optional[str] = None) -> Fetched:
    """Bring published weights onto this machine, and check what the file holds and that it is still the same.

    Args:
        name (str): As of :func:`~fcvit_mm.checkpoints.published.find_published`.
        folder (str, optional): Where the file is to be; it is copied if it is elsewhere here. Default: where it is
            found, else :func:`download_folder`.

    Raises:
        CheckpointError: As of :func:`published_path`, or the file has changed since its hash was remembered.
        DownloadError, WriteError: As of :func:`published_path`.
    """
    weights = find_published(name)
    if folder is not None:  # which the variable may name already
        with reported_writes(folder):
            os.makedirs(folder, exist_ok=True)
    found = find_file(weights)
    path = os.path.join(folder or (os.path.dirname(found) if found else download_folder()), weights.file)
    how = 'found'
    if os.path.isfile(path):
        check_content(weights, path)
    elif found is not None:
        check_content(weights, found)
        how = f'copied from {found}'
        with atomic_path(path, os.path.getsize(found)) as temporary:
            shutil.copyfile(found, temporary)
    elif _download(weights, path):
        how = 'downloaded'
    sha256, remembered = _remember(path)
    return Fetched(path, os.path.getsize(path), sha256, how, remembered)


def _download(weights: PublishedWeights, path: str) -> bool:
    """Download a file, and tell a person what to do where that fails."""
    by_hand = f'open {weights.page} in a browser, download the checkpoint and save it as {path}'
    if weights.address is None:
        raise DownloadError(
            f'{weights.name} lies where only a person can download it: {by_hand} (or as {weights.file} in the folder '
            f'that {VARIABLE} names), whatever it is called there'
        )
    wanted = _wanted(weights)  # not after the download: the network may need a package that is missing
    try:
        return download(weights.address, path, partial(_check_download, weights, wanted), weights.size)
    except DownloadError as error:
        guess = '' if weights.confirmed else ' (its name follows from the network, the publication does not give it)'
        raise DownloadError(
            f'{error}{guess}. On a machine with internet: python tools/download.py {weights.name} --to DIR; here: '
            f'{VARIABLE}=DIR. By hand: {by_hand}'
        ) from error
    except WriteError as error:
        raise WriteError(
            f'{error}. Another folder: python tools/download.py {weights.name} --to DIR, then {VARIABLE}=DIR'
        ) from error


def _remember(path: str) -> Tuple[str, bool]:
    """Return a file's SHA-256, and whether it stands beside it, as ``sha256sum`` writes it.

    Raises:
        CheckpointError: Another one does.
    """
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while data := file.read(1 << 20):
            found.update(data)
    sha256, beside = found.hexdigest(), f'{path}.sha256'
    if not os.path.isfile(beside):
        try:
            write_atomic(beside, f'{sha256}  {os.path.basename(path)}\n'.encode())
        except WriteError:
            return sha256, False
        return sha256, True
    with open(beside, encoding='utf-8', errors='replace') as text:
        known = text.read().partition(' ')[0]
    if known != sha256:
        raise CheckpointError(
            f'{path} has the SHA-256 {sha256}, but {beside} remembers {known}: the file has changed. If that is meant, '
            'remove the .sha256 file; else remove both and download it again'
        )
    return sha256, True


def read_published(name: str) -> Dict[str, Any]:
    """Read published weights as a checkpoint of this package, which loads into the model of their config.

    Args:
        name (str): As of :func:`~fcvit_mm.checkpoints.published.find_published`. It is downloaded if it is not here.

    Returns:
        dict: ``state_dict`` and ``meta``, as ``tools/convert_checkpoint.py`` writes them.

    Raises:
        CheckpointError: As of :func:`published_path`, or the file holds something else.
        DownloadError, WriteError: As of :func:`published_path`.
    """
    weights = find_published(name)
    path = published_path(weights.name)
    content = read_checkpoint(path)
    found = _check(weights, _wanted(weights), content, path)
    if found.unknown:
        print_log(
            f'{path}: {len(found.unknown)} tensors of no known part, not loaded: {some(found.unknown)}',
            logger='current',
            level=logging.WARNING,
        )
    return to_ours(content, found, path)


READERS[SCHEME] = read_published


def check_content(weights: PublishedWeights, path: str) -> None:
    """Check that a file holds what its name says: the network, its variant, the task.

    Raises:
        CheckpointError: It cannot be read or holds something else.
    """
    _check(weights, _wanted(weights), read_checkpoint(path), path)


def _check_download(weights: PublishedWeights, wanted: Mapping[str, Tensor], path: str) -> None:
    """Check a file under its temporary name, which the message is not to have."""
    try:
        _check(weights, wanted, read_checkpoint(path), path)
    except CheckpointError as error:
        text = str(error).replace(path, 'what came')
        raise CheckpointError(f'{weights.address} does not give {weights.name}: {text}') from error


def _wanted(weights: PublishedWeights) -> Dict[str, Tensor]:
    """Return the network's parameters, without values. Detectors and segmentors have output norms of their own."""
    variant = find_variant(weights.variant)
    if _built.get(weights.variant, (None,))[0] is not variant:
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            _built[weights.variant] = variant, variant.build().state_dict()
    state_dict = _built[weights.variant][1]
    return {name: value for name, value in state_dict.items() if _is_compared(name, weights.task)}


def _is_compared(name: str, task: str) -> bool:
    return not name.endswith('num_batches_tracked') and (task == 'classifier' or not name.startswith('norm'))


def _check(weights: PublishedWeights, wanted: Mapping[str, Tensor], content: Dict[str, Any], path: str) -> Recognized:
    """Recognise what was read, and check it.

    Raises:
        CheckpointError: It is something else.
    """
    network = find_variant(weights.variant).network
    found = recognize(content, path)
    present = {name: value for name, value in found.backbone.items() if _is_compared(name, weights.task)}
    differing: List[str] = []
    if issubclass(found.network, network) and found.task == weights.task:
        differing += sorted(set(present) ^ set(wanted))
        differing += [name for name in wanted if name in present and present[name].shape != wanted[name].shape]
        if not differing:
            return found
    what = f'; {len(differing)} of its parameters differ ({some(differing)})' if differing else ''
    raise CheckpointError(
        f'{path} is a {found.task} with {found.network.__name__} {found.arch}, expected {weights.name}: a '
        f'{weights.task} with {network.__name__} {name_arch(wanted, network)} and keys such as {weights.keys}{what}. '
        'Another file has its name: remove it'
    )
