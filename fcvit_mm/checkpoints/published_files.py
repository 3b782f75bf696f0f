"""Local files of published weights: found or downloaded, and read as ``published:NAME`` like any checkpoint.

The folder of :data:`VARIABLE` is searched first, then torch.hub's checkpoint folder, where downloads are stored.
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
from .errors import CheckpointError
from .names import some
from .published import SCHEME, PublishedWeights, find_published
from .recognize import Recognized, name_arch, recognize
from .safe_load import READERS, read_checkpoint

#: The environment variable with the folder that is searched first.
VARIABLE = 'FCVIT_MM_WEIGHTS'
#: Cache: name of a variant -> its parameters without values, because building it takes seconds.
_built: Dict[str, Tuple[Variant, Dict[str, Tensor]]] = {}


class Fetched(NamedTuple):
    """A file downloaded, copied or found by :func:`fetch_published`.

    Attributes:
        path (str): Path of the file.
        size (int): Length of the file in bytes.
        sha256 (str): The hash of its content.
        how (str): ``'downloaded'``, ``'copied from PATH'`` or ``'found'``.
        remembered (bool): Whether the hash is stored in a ``.sha256`` file beside it; not in folders without write
            access.
    """

    path: str
    size: int
    sha256: str
    how: str
    remembered: bool


def download_folder() -> str:
    """Return the download folder: torch.hub's checkpoint folder (``TORCH_HOME`` moves it)."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints')


def weight_folders() -> List[str]:
    """Return the folders searched for published files, in order.

    Raises:
        CheckpointError: :data:`VARIABLE` is not a folder.
    """
    first = os.path.expanduser(os.environ.get(VARIABLE, ''))  # batch scripts and containers do not replace ~
    if first and not os.path.isdir(first):
        raise CheckpointError(
            f'{VARIABLE}={first} is not a folder: create and fill it (python tools/download.py NAME --to {first}), or '
            'unset the variable'
        )
    return [*([first] if first else []), download_folder()]


def find_file(weights: PublishedWeights) -> Optional[str]:
    """Return the local file of published weights, if it exists."""
    paths = (os.path.join(folder, weights.file) for folder in weight_folders())
    return next((path for path in paths if os.path.isfile(path)), None)


def published_path(name: str) -> str:
    """Return the local file of published weights, downloading it if necessary.

    Args:
        name (str): See :func:`~fcvit_mm.checkpoints.published.find_published`.

    Raises:
        CheckpointError: Unknown name, or the downloaded file contains something else.
        DownloadError: It cannot be downloaded, or only by hand.
        WriteError: It cannot be written.
    """
    weights = find_published(name)
    found = find_file(weights)
    if found is None:
        found = os.path.join(download_folder(), weights.file)
        _download(weights, found)
    return found


def fetch_published(name: str, folder: Optional[str] = None) -> Fetched:
    """Download or find published weights, and check their content and hash.

    Args:
        name (str): See :func:`~fcvit_mm.checkpoints.published.find_published`.
        folder (str, optional): Destination; a file found elsewhere is copied. Default: the folder where it is found,
            otherwise :func:`download_folder`.

    Raises:
        CheckpointError: See :func:`published_path`; or the file has changed since its hash was stored.
        DownloadError, WriteError: See :func:`published_path`.
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
    """Download a file; an error says how to download it by hand."""
    by_hand = f'open {weights.page} in a browser, download the checkpoint and save it as {path}'
    if weights.address is None:
        raise DownloadError(
            f'{weights.name} must be downloaded by hand: {by_hand} (or as {weights.file} in the folder that '
            f'{VARIABLE} names); rename it if the page uses another name'
        )
    wanted = _wanted(weights)  # before the download, because the network may need a package that is missing
    try:
        return download(weights.address, path, partial(_check_download, weights, wanted), weights.size)
    except DownloadError as error:
        guess = '' if weights.confirmed else ' (its name follows from the network, the publication does not give it)'
        raise DownloadError(
            f'{error}{guess}. On a machine with internet: python tools/download.py {weights.name} --to DIR; on '
            f'this machine: {VARIABLE}=DIR. By hand: {by_hand}'
        ) from error
    except WriteError as error:
        raise WriteError(
            f'{error}. Another folder: python tools/download.py {weights.name} --to DIR, then {VARIABLE}=DIR'
        ) from error


def _remember(path: str) -> Tuple[str, bool]:
    """Return a file's SHA-256, and whether it is stored beside the file, in the format of ``sha256sum``.

    Raises:
        CheckpointError: The stored hash is different.
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
            f'{path} has SHA-256 {sha256}, expected {known} (from {beside}): the file has changed. If the change is '
            'intended, delete the .sha256 file; otherwise delete both files and download again'
        )
    return sha256, True


def read_published(name: str) -> Dict[str, Any]:
    """Read published weights as a checkpoint of this package that loads into the model of their config.

    Args:
        name (str): See :func:`~fcvit_mm.checkpoints.published.find_published`. Downloaded if necessary.

    Returns:
        dict: ``state_dict`` and ``meta``, as ``tools/convert_checkpoint.py`` writes them.

    Raises:
        CheckpointError: See :func:`published_path`; or the file holds something else.
        DownloadError, WriteError: See :func:`published_path`.
    """
    weights = find_published(name)
    path = published_path(weights.name)
    content = read_checkpoint(path)
    found = _check(weights, _wanted(weights), content, path)
    if found.unknown:
        print_log(
            f'{path}: {len(found.unknown)} tensors of unknown components are not loaded: {some(found.unknown)}',
            logger='current',
            level=logging.WARNING,
        )
    return to_ours(content, found, path)


READERS[SCHEME] = read_published


def check_content(weights: PublishedWeights, path: str) -> None:
    """Check that a file contains the network, variant and task of its name.

    Raises:
        CheckpointError: It cannot be read or holds something else.
    """
    _check(weights, _wanted(weights), read_checkpoint(path), path)


def _check_download(weights: PublishedWeights, wanted: Mapping[str, Tensor], path: str) -> None:
    """Check a file under its temporary name, without that name in the error message."""
    try:
        _check(weights, wanted, read_checkpoint(path), path)
    except CheckpointError as error:
        text = str(error).replace(path, 'what came')
        raise CheckpointError(f'{weights.address} is not the file of {weights.name}: {text}') from error


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
    """Recognize the content, and check it.

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
        'The file under this name is a different one: delete it'
    )
