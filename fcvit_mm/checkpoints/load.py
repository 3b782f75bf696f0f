"""Loading a checkpoint into a backbone, which is what ``init_cfg=dict(type='Pretrained', checkpoint=...)`` does."""

import hashlib
import logging
import os
import re
import time
from functools import partial
from typing import Any, Dict, Iterable, List, Mapping, Optional
from urllib.parse import quote, urlparse

import numpy as np
import torch
import torch.nn as nn
from mmengine.dist import barrier, get_dist_info, is_distributed
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..files import WriteError
from ..images import log_once
from ..models import Backbone
from ..models.published_names import is_like
from .download import download
from .errors import CheckpointError, CheckpointNotFoundError
from .names import find_state_dict, some, weights_of
from .published import SCHEME, is_published
from .published_files import download_folder, published_path
from .recognize import Recognized, arch_of, kind_of, name_arch, names_of, recognize
from .safe_load import READERS, is_shard, read_checkpoint

OTHER_FILE = (
    'Give the config that it was trained with; a published file is first converted by tools/convert_checkpoint.py'
)
#: Beginnings of the addresses that are downloaded.
URLS = ('http://', 'https://')
#: Names with a hash of the content, as those of OpenMMLab: ``fcvit_b12-1a2b3c4d.pth``. A date has no letter.
_HASHED = re.compile(r'.{,100}-(?=\d*[a-f])[0-9a-f]{8,64}\.[a-z.]{,20}', re.ASCII)
#: Beginning of the names of parameters in blocks, in a complete model.
_BLOCK = re.compile(r'(?:.*\.)?stages\.\d+\.blocks\.\d+(?=\.)')
FROM_SCRATCH = 'to train from scratch, pretrained=None (init_cfg=None in the backbone)'


def load_pretrained(
    backbone: Backbone, checkpoint: str, prefix: Optional[str] = None, map_location: str = 'cpu', ema: bool = False
) -> None:
    """Load the backbone's weights from a published file or from one that mmpretrain, mmdet or mmseg wrote.

    The file's kind, prefixes and names are recognized, see :func:`~fcvit_mm.checkpoints.recognize.recognize`; no code
    in it is run. Tensors that do not fit are reported through MMEngine's logger. Missing output norms are not an error:
    a classifier only has that of the last stage.

    Args:
        backbone (Backbone): The backbone that gets the weights.
        checkpoint (str): A path, ``published:NAME`` (:mod:`fcvit_mm.checkpoints.published_files`), or an http(s) URL,
            which is downloaded to torch.hub's directory once.
        prefix (str, optional): Prefix of the backbone's names in the file, if not ``backbone.`` or nothing.
        map_location (str): Device on which the weights are read before they are copied, as in MMEngine.
        ema (bool): Take the averaged weights of a file that has both.

    Raises:
        CheckpointError: The file cannot be read, or contains no weights of this network or those of another variant.
    """
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise CheckpointError(f'checkpoint is {checkpoint!r}, expected a path, published:NAME or a URL; {FROM_SCRATCH}')
    path = local_path(os.fspath(checkpoint))
    try:
        content = read_checkpoint(path)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f'{error}; {FROM_SCRATCH}') from None
    found = recognize(content, path, ema, prefix, backbone)
    if not isinstance(backbone, found.network):
        raise CheckpointError(
            f'{path} is a {found.network.__name__}, the backbone is a '
            f'{type(backbone).__name__}: give a checkpoint of that network'
        )
    own = backbone.state_dict()
    try:
        found = found._replace(backbone=backbone.fit_state_dict(found.backbone))
    except ValueError as error:
        raise CheckpointError(f'{path} does not fit: {error}') from error
    _check_fit(found, own, path)
    matched = {name: value.to(map_location) for name, value in found.backbone.items() if name in own}
    backbone.load_state_dict(matched, strict=False)
    _report(found, own, path)
    if hasattr(backbone, '_params_init_info'):  # there while MMEngine initializes a complete model, for its log
        update_init_info(backbone, init_info=f'Pretrained: load from {checkpoint}')


def local_path(checkpoint: str) -> str:
    """Return the local file of a path, ``published:NAME`` or URL; one process per machine downloads it.

    Processes that have not joined yet wait for the one that downloads.

    Raises:
        CheckpointError: Another kind of URL, or the download fails.
    """
    if is_published(checkpoint):
        return published_path(checkpoint)
    if '://' not in checkpoint:
        return checkpoint
    if not _is_downloaded(checkpoint):
        raise CheckpointError(
            f'checkpoint is {checkpoint}, expected a path, http:// or https:// (torchvision://, open-mmlab:// and '
            'similar names are weights of other networks)'
        )
    url = quote(checkpoint.partition('#')[0], safe="%/:=&?~+!$,;'@()*[]")  # like a browser: spaces, other alphabets
    path = _downloaded_path(url)
    rank = int(os.environ.get('LOCAL_RANK', get_dist_info()[0]))
    error: Optional[Exception] = None
    if os.path.exists(path):
        date = time.strftime('%Y-%m-%d', time.localtime(os.path.getmtime(path)))
        log_once(f'{checkpoint} was downloaded on {date}, to {path}. If it has changed since, delete this file.')
    elif rank == 0 or not is_distributed():
        try:
            download(url, path, partial(_check_download, checkpoint))
        except (CheckpointError, WriteError) as failure:
            error = failure
    barrier()  # reached by the first process too if its download fails, or the others would wait for ever
    if error is not None or not os.path.exists(path):
        reason = error or f'{checkpoint} could not be downloaded (see the first process)'
        raise CheckpointError(f'{reason}. Check the URL, or download the file yourself and give the path') from error
    return path


def _is_downloaded(checkpoint: str) -> bool:
    return checkpoint.lower().startswith(URLS)


def _downloaded_path(url: str) -> str:
    """Return the local path of the file of a URL.

    A name that contains a hash of the content identifies it, also if torch.hub or MMEngine downloaded it. Others, such
    as ``epoch_12.pth``, get the hash of the URL, because different files have them.

    Raises:
        CheckpointError: The URL has no file name.
    """
    try:
        name = os.path.basename(urlparse(url).path)
    except ValueError as error:
        raise CheckpointError(f'checkpoint {url} is not a URL ({error}): give the URL of a file') from error
    if not name:
        raise CheckpointError(f'checkpoint {url} does not end in a file name: give the URL of a file')
    if not _HASHED.fullmatch(name):
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-100:]}'  # with the suffix
    return os.path.join(download_folder(), name)


def fetch_checkpoint(checkpoint: str) -> str:
    """Download a checkpoint that is an ``http://`` or ``https://`` URL, and return its path; return others unchanged.

    Raises:
        CheckpointError: See :func:`local_path`.
    """
    return local_path(checkpoint) if _is_downloaded(checkpoint) else checkpoint


def _read_url(url: str) -> Dict[str, Any]:
    return read_checkpoint(local_path(url))


READERS.update(dict.fromkeys(URLS, _read_url))


def _check_download(url: str, path: str) -> None:
    """Read a downloaded checkpoint before it is kept.

    Raises:
        CheckpointError: It is not a checkpoint; names the URL.
    """
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(path, url)) from error


@CheckpointLoader.register_scheme(prefixes=r'.+\.(safetensors|index\.json)$', force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Let MMEngine read safetensors files wherever it reads a checkpoint, as the libraries' inferencers do.

    MMEngine matches its prefixes as regular expressions; URLs (``http://``, ...) come before this one.

    Raises:
        CheckpointError: See :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
    """
    content = read_checkpoint(filename)
    weights, _ = find_state_dict(content, filename)
    # One device for all tensors; the other kinds of map_location that torch.load takes are for several devices.
    if isinstance(map_location, (str, torch.device)):
        weights.update({name: value.to(map_location) for name, value in weights.items()})
    return content


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_published(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Let MMEngine read ``published:NAME`` wherever it reads a checkpoint: ``load_from``, the libraries' inferencers.

    Raises:
        CheckpointError: See :func:`~fcvit_mm.checkpoints.published_files.read_published`.
    """
    return load_from_safetensors(filename, map_location)


def _check_fit(found: Recognized, own: Mapping[str, Tensor], path: str) -> None:
    """Reject another variant: other depths, other shapes, or no weights for this backbone."""
    network = found.network
    theirs, ours = arch_of(found.backbone)['depths'], arch_of(own)['depths']
    wrong = [
        f'{name} is {tuple(value.shape)} in the file and {tuple(own[name].shape)} in the backbone'
        for name, value in found.backbone.items()
        if name in own and own[name].shape != value.shape
    ]
    # A file may have more stages than the backbone, which is only built as far as its out_indices need.
    other_depths = theirs[: len(ours)] != ours
    if other_depths or kind_of(found.backbone, network) != kind_of(own, network) or wrong:
        raise CheckpointError(
            f'{path} is {network.__name__} {found.arch}, the backbone is {network.__name__} {name_arch(own, network)}'
            + (f'; {len(wrong)} shapes differ: {", ".join(wrong[:3])}' if wrong else '')
            + '. Build the backbone with the arch and options of the file, or give another file'
        )


def _report(found: Recognized, own: Mapping[str, Tensor], path: str) -> None:
    matched = [name for name in found.backbone if name in own]
    missing = [name for name in own if name not in found.backbone and not name.endswith('num_batches_tracked')]
    norms = [name for name in missing if _is_output_norm(name)]
    missing = [name for name in missing if not _is_output_norm(name)]
    added = [name for name in missing if is_like(name, names_of(found.network).added)]
    missing = [name for name in missing if name not in added]
    stages = len(arch_of(own)['depths'])
    unused = [
        name for name in found.backbone if name not in own and not _is_output_norm(name) and not _is_past(name, stages)
    ]
    # If the backbone's names have a prefix, names with another prefix belong to other parts of the model.
    elsewhere = [*found.others, *(name for name in found.unknown if not name.startswith(found.prefix))]
    unexpected = [*unused, *(name for name in found.unknown if name.startswith(found.prefix))]

    log = [
        f'Loaded {len(matched)} tensors of {found.network.__name__} {found.arch} from {path} '
        f'({found.source} {found.task}; {found.weights}).'
    ]
    if elsewhere:
        log.append(f'Not for the backbone, not loaded: {len(elsewhere)} tensors ({some(elsewhere)}).')
    if norms:
        log.append(f'Not in the file, as usual for a {found.task}, initial values kept: {some(norms)}.')
    print_log(' '.join(log), logger='current')
    for names, description in (
        (added, 'missing in the file, new in the backbone: they start at zero, which changes nothing'),
        (missing, 'missing in the file, initial values kept'),
        (unexpected, 'unexpected in the file, not loaded'),
    ):
        if names:
            print_log(
                f'{len(names)} keys {description}: {some(names, 8)} ({path})', logger='current', level=logging.WARNING
            )


def _is_output_norm(name: str) -> bool:
    return name.startswith('norm')


def _is_past(name: str, stages: int) -> bool:
    """Return whether a parameter belongs to a stage that the backbone does not build."""
    parts = name.split('.')
    return parts[0] == 'stages' and int(parts[1]) >= stages


def allow_values_of_runs() -> None:
    """Let ``torch.load(weights_only=True)`` read NumPy scalars of any type (metrics) and the state of ``OneCycleLR``.

    MMEngine allows three types of scalars. For other values, such as the float32 of an mIoU, it logs a warning and
    loads the file in a way that could run code.
    """
    codes = np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'
    if hasattr(torch.serialization, 'add_safe_globals'):  # from torch 2.4 on
        kinds: List[Any] = list({type(np.dtype(code)) for code in codes})
        torch.serialization.add_safe_globals([*kinds, OneCycleParamScheduler])


allow_values_of_runs()


def load_complete(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint of the complete model, from any container and with the prefixes of any wrapper.

    MMEngine only supports ``state_dict`` and ``module.``; from other files it loads nothing, with a warning.

    Raises:
        CheckpointError: See :func:`check_fits`.
    """
    check_fits(model, checkpoint)
    model.load_state_dict(weights_of(read_checkpoint(checkpoint), checkpoint), strict=False)


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Reject weights of another model, for which MMEngine only logs a warning and keeps random weights.

    Args:
        model (nn.Module): The complete model.
        checkpoint (str): A file with its weights, under the model's own names.

    Raises:
        CheckpointError: Parameters are missing in the checkpoint or have other shapes, or its stages have more blocks;
            names the first of each.
    """
    content = read_checkpoint(checkpoint)
    weights, wanted = weights_of(content, checkpoint), model.state_dict()
    if not weights:
        raise CheckpointError(f'{checkpoint} contains no weights, only {some(content)}: give the file with the weights')
    missing = [key for key in wanted if key not in weights]
    other = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    surplus = surplus_blocks(wanted, weights)
    problems = []
    if surplus:
        problems.append(f'it has {len(surplus)} more blocks ({some(surplus)}), as another variant has')
    if missing:
        found = f'; it has {some(weights)}' if len(missing) == len(wanted) else ''
        problems.append(f'{len(missing)} of {len(wanted)} values are missing ({some(missing)}{found})')
    if other:
        problems.append(f'{len(other)} have another shape ({"; ".join(other[:3])})')
    if problems:
        raise CheckpointError(
            f'{checkpoint} does not fit the config: {"; ".join(problems)}. '
            + (
                'It is a part of a checkpoint: give the file ending in .index.json'
                if is_shard(checkpoint)
                else OTHER_FILE
            )
        )


def surplus_blocks(model: Iterable[str], weights: Iterable[str]) -> List[str]:
    """Return the blocks of a checkpoint that a model's stages do not have, as a deeper variant has.

    Args:
        model (iterable of str): Names of the values of the model.
        weights (iterable of str): Those of the checkpoint.
    """
    present = {match[0] for match in map(_BLOCK.match, model) if match}
    lists = {name.rpartition('.')[0] for name in present}
    blocks = dict.fromkeys(match[0] for match in map(_BLOCK.match, weights) if match)
    return [name for name in blocks if name not in present and name.rpartition('.')[0] in lists]
