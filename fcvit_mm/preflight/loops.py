"""The loops of a run: their length and unit, and data loaders whose epochs have no end or no batch."""

from itertools import islice
from typing import Any, List

from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

from ..engine.config import type_name, walk
from .contexts import quiet
from .log import log_warning

#: End of messages about validation.
NO_VALIDATION = '. To train without validation: val_dataloader=None val_cfg=None val_evaluator=None'


def is_by_epoch(cfg: Config) -> bool:
    """Check whether training counts epochs, not iterations."""
    loop = cfg.get('train_cfg') or {}
    return type_name(loop) == 'EpochBasedTrainLoop' or not type_name(loop) and bool(loop.get('by_epoch'))


def sampler_problems(cfg: Config, name: str, dataset: Any) -> List[str]:
    """Check that an epoch of a data loader ends, and has at least one batch.

    Args:
        cfg (Config): The config.
        name (str): Name of the data loader.
        dataset (Dataset): Its data set, wrappers included.
    """
    loader = cfg[name]
    trains, sampler = name == 'train_dataloader', loader.get('sampler')
    if not len(dataset):
        return ['.dataset has no samples: correct the settings of its wrappers, such as times, or indices']
    if not isinstance(sampler, dict):
        return []
    try:
        with quiet():
            built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0))
            length = len(built)
            endless = type(built) is not DefaultSampler and bool(list(islice(built, length, length + 1)))
    except Exception:
        # Broad, because the sampler is another library's; the runner reports what is wrong with it.
        return []
    if endless and (is_by_epoch(cfg) or not trains):
        what = 'the first epoch would not end' if trains else 'the evaluation would not end'
        other = ', or train by iterations: train_cfg=dict(by_epoch=False, max_iters=...)' if trains else ''
        return [
            f'.sampler is {type_name(sampler)}, which has no end, so {what}: use '
            f"sampler=dict(type='DefaultSampler', shuffle={trains}){other}"
        ]
    size = loader.get('batch_size')
    drops = loader.get('drop_last') or any(node.get('drop_last') for node in walk(loader.get('batch_sampler')))
    if drops and not endless and isinstance(size, int) and length < size:
        return [
            f' has drop_last=True and {length} samples, fewer than batch_size={size}, so no batch is left: lower '
            'batch_size, or set drop_last=False'
        ]
    if drops and not endless and not trains and isinstance(size, int) and size > 0 and length % size:
        log_warning(
            f'{name} has drop_last=True, so {length % size} of {length} samples are not evaluated: set drop_last=False'
        )
    return []


def loop_problems(cfg: Config) -> List[str]:
    """Check the training loop's settings; warn about schedules and hooks that count epochs in a loop of iterations."""
    loop = cfg.get('train_cfg') or {}
    interval = loop.get('val_interval', 1)
    if cfg.get('val_cfg') is not None and (interval is None or interval < 1):  # below 0, each epoch is followed by one
        return [f'train_cfg.val_interval is {interval}, expected 1 or more{NO_VALIDATION}']
    for key in ('max_epochs', 'max_iters'):
        if isinstance(loop.get(key), int) and loop[key] < 1:
            return [f'train_cfg.{key} is {loop[key]}, so nothing would be trained: set 1 or more']
    for key in ('max_epochs', 'max_iters'):
        begin, end = loop.get('val_begin'), loop.get(key)
        if cfg.get('val_cfg') is not None and isinstance(begin, int) and isinstance(end, int) and begin > end:
            log_warning(
                f'train_cfg.val_begin is {begin}, but {key} is {end}: there is no validation during this training'
            )
    for split in ('val', 'test'):
        parts = [f'{split}_dataloader', f'{split}_cfg', f'{split}_evaluator']
        missing = [part for part in parts if cfg.get(part) is None]
        if missing and len(missing) < len(parts) and missing != ['val_dataloader']:  # reported elsewhere
            return [
                f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} None, but not all of '
                f'{", ".join(parts)}: set all three, or all to None'
            ]
    if is_by_epoch(cfg):
        return []
    for node in walk(cfg.get('param_scheduler')):
        if type_name(node) and node.get('by_epoch', True) and not node.get('convert_to_iter_based'):
            log_warning(
                f'param_scheduler: {type_name(node)} counts epochs (by_epoch=True), but the training loop counts '
                'iterations: it changes nothing before the end. Set by_epoch=False'
            )
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    interval = checkpoint.get('interval')
    if isinstance(interval, (int, float)) and interval > 0 and checkpoint.get('by_epoch', True):
        log_warning(
            'default_hooks.checkpoint counts epochs (by_epoch=True), but the training loop counts iterations: it saves '
            'nothing before the end. Set by_epoch=False'
        )
    return []
