"""Load a checkpoint into a backbone: what stands behind ``init_cfg=dict(type='Pretrained', checkpoint=...)``."""

import logging
import os
from typing import Dict, List, Optional
from urllib.parse import urlparse

import torch
import torch.nn as nn
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..models import Backbone
from .key_tables import is_like
from .recognize import Recognized, arch_of, name_arch, recognize, some
from .safe_load import CheckpointError, read_checkpoint


def load_pretrained(
    backbone: Backbone, checkpoint: str, prefix: Optional[str] = None, map_location: str = 'cpu', ema: bool = False
) -> None:
    """Load the backbone's weights from a published file or from one that mmpretrain, mmdet or mmseg wrote.

    The file's kind, prefixes and names are recognised, see :func:`~fcvit_mm.checkpoints.recognize.recognize`; nothing
    in it is run. What does not fit is reported through MMEngine's logger. Missing output norms are no fault: a
    classifier has but the last stage's.

    Args:
        backbone (Backbone): Where the weights go.
        checkpoint (str): A path, or an http(s) URL, which is downloaded to torch.hub's directory once.
        prefix (str, optional): What precedes the backbone's names in the file, if not ``backbone.`` or nothing.
        map_location (str): Where the weights are put on their way to the backbone, as in MMEngine's.
        ema (bool): Take the averaged weights of a file that has both.

    Raises:
        CheckpointError: The file cannot be read, holds nothing of this network or another variant of it.
    """
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise CheckpointError(
            f'checkpoint={checkpoint!r}, expected a path or a URL; to train from scratch, '
            'pretrained=None (init_cfg=None in the backbone)'
        )
    path = local_path(os.fspath(checkpoint))
    found = recognize(read_checkpoint(path), path, ema, prefix)
    if not isinstance(backbone, found.table.network):
        raise CheckpointError(
            f'{path} is a {found.table.network.__name__}, the backbone is a '
            f'{type(backbone).__name__}: give a checkpoint of that network'
        )
    own = backbone.state_dict()
    found = found._replace(backbone=backbone.fit_state_dict(found.backbone))
    _check_fit(found, own, path)
    matched = {name: value.to(map_location) for name, value in found.backbone.items() if name in own}
    backbone.load_state_dict(matched, strict=False)
    _report(found, own, path)
    if hasattr(backbone, '_params_init_info'):  # there while MMEngine initialises a whole model, for its log
        update_init_info(backbone, init_info=f'Pretrained: load from {checkpoint}')


def local_path(checkpoint: str) -> str:
    """The file for a path or URL; downloads once, by the first process of each machine."""
    scheme = urlparse(checkpoint).scheme
    if '://' not in checkpoint:
        return checkpoint
    if scheme not in ('http', 'https'):
        raise CheckpointError(
            f'checkpoint {checkpoint}: expected a path, http:// or https:// (names such as '
            'torchvision:// and open-mmlab:// stand for weights of other networks)'
        )
    name = os.path.basename(urlparse(checkpoint).path)
    if not name:
        raise CheckpointError(f'checkpoint {checkpoint} does not end in the name of a file')
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    rank = int(os.environ.get('LOCAL_RANK', get_dist_info()[0]))
    error = None
    if rank == 0 and not os.path.exists(path):
        print_log(f'Downloading {checkpoint} to {path}', logger='current')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(checkpoint, path, progress=False)
        except OSError as failure:  # urllib's errors are OSErrors
            error = failure
    barrier()  # the others must not wait for ever where the first fails
    if error is not None or not os.path.exists(path):
        raise CheckpointError(
            f'{checkpoint} could not be downloaded ({error or "see the first process"}): check the '
            'address, or download it yourself and give the path'
        ) from error
    return path


@CheckpointLoader.register_scheme(prefixes=r'.+\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location=None) -> dict:
    """Let MMEngine read safetensors files wherever it reads a checkpoint, as the libraries' inferencers do.

    MMEngine matches its prefixes as regular expressions; addresses (``http://``, ...) come before this one.

    Raises:
        CheckpointError: As :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.
    """
    content = read_checkpoint(filename)
    weights = content.get('state_dict', content)
    # One device for all of them; torch.load's other forms of map_location are for pickles with several.
    if isinstance(map_location, (str, torch.device)):
        weights.update({name: value.to(map_location) for name, value in weights.items()})
    return content


def _check_fit(found: Recognized, own: Dict[str, Tensor], path: str) -> None:
    """Refuse another variant: other depths, other shapes, or nothing for this backbone."""
    network = found.table.network.__name__
    table = found.table
    theirs, ours = arch_of(found.backbone, table), arch_of(own, table)
    stages = len(ours['depths'])
    wrong = [
        f'{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here'
        for name, value in found.backbone.items()
        if name in own and own[name].shape != value.shape
    ]
    # More stages there than here are no fault: a backbone is built as far as its out_indices need.
    if theirs['depths'][:stages] != ours['depths'] or table.kind(found.backbone) != table.kind(own) or wrong:
        raise CheckpointError(
            f'{path} is {network} {found.arch}, the backbone is {network} {name_arch(own, table)}'
            + (f'; {len(wrong)} shapes differ: {", ".join(wrong[:3])}' if wrong else '')
            + '. Build the backbone with the arch and options of the file, or give another file'
        )


def _report(found: Recognized, own: Dict[str, Tensor], path: str) -> None:
    matched = [name for name in found.backbone if name in own]
    missing = [name for name in own if name not in found.backbone and not name.endswith('num_batches_tracked')]
    norms = [name for name in missing if _is_output_norm(name)]
    missing = [name for name in missing if not _is_output_norm(name)]
    added = [name for name in missing if is_like(name, found.table.added)]
    missing = [name for name in missing if name not in added]
    stages = len(arch_of(own, found.table)['depths'])
    unused = [
        name for name in found.backbone if name not in own and not _is_output_norm(name) and not _is_past(name, stages)
    ]
    # Where the backbone has a prefix, whatever has another one is no business of its.
    elsewhere = [*found.others, *(name for name in found.unknown if not name.startswith(found.prefix))]
    unexpected = [*unused, *(name for name in found.unknown if name.startswith(found.prefix))]

    log = [
        f'Loaded {len(matched)} tensors of {found.table.network.__name__} {found.arch} from {path} '
        f'({found.source} {found.task}; {found.weights}).'
    ]
    if elsewhere:
        log.append(f'Not for the backbone, left out: {len(elsewhere)} tensors ({some(elsewhere)}).')
    if norms:
        log.append(f'Not in the file, as usual for a {found.task}, kept as initialised: {some(norms)}.')
    print_log(' '.join(log), logger='current')
    for names, what in (
        (added, 'missing in the file, new here: they start at zero, which changes nothing'),
        (missing, 'missing in the file, kept as initialised'),
        (unexpected, 'unexpected in the file, left out'),
    ):
        if names:
            print_log(f'{len(names)} keys {what}: {some(names, 8)} ({path})', logger='current', level=logging.WARNING)


def _is_output_norm(name: str) -> bool:
    return name.startswith('norm')


def _is_past(name: str, stages: int) -> bool:
    """Whether a parameter belongs to a stage that the backbone does not build."""
    parts: List[str] = name.split('.')
    return parts[0] == 'stages' and int(parts[1]) >= stages


def weights_of(content: dict) -> dict:
    """The state dict of a checkpoint as MMEngine, timm's or DeiT's training wrote it, without ``module.``."""
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return {name[len('module.') :] if name.startswith('module.') else name: value for name, value in content.items()}


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Refuse to evaluate weights of another model: MMEngine only warns, and random layers give random predictions.

    Raises:
        CheckpointError: Parameters are missing in the checkpoint or have other shapes; names the first of each.
    """
    content = read_checkpoint(checkpoint)
    weights = content.get('state_dict', content)
    weights = {key[len('module.') :] if key.startswith('module.') else key: value for key, value in weights.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in weights]
    other = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if key in weights and tuple(weights[key].shape) != tuple(value.shape)
    ]
    if missing or other:
        parts = []
        if missing:
            parts.append(f'{len(missing)} of {len(wanted)} values are missing ({", ".join(missing[:3])}, ...)')
        if other:
            parts.append(f'{len(other)} have another shape ({"; ".join(other[:3])})')
        raise CheckpointError(
            f'{checkpoint} does not fit the config: {"; ".join(parts)}. Give the config that it was '
            'trained with; a published file is first converted by tools/convert_checkpoint.py'
        )
