"""Replacing settings of a config that this machine does not support: SyncBN, mixed precision, data loader options."""

from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from .config import LOADERS, library_of, type_name, walk


def replace_sync_bn(model: Any, kind: str) -> int:
    """Replace each SyncBN and MMSyncBN in a model's config by another norm, without the settings specific to them.

    Args:
        model (dict): It is changed.
        kind (str): Type of the norm that replaces them.

    Returns:
        int: Number of replaced norms.
    """
    found = [node for node in walk(model) if type_name(node) == 'SyncBN']
    for node in found:
        node['type'] = kind
        for key in ('group', 'process_group', 'stats_mode'):
            node.pop(key, None)
    return len(found)


def train_in_float32_on_cpus(cfg: Config) -> None:
    """Disable mixed precision in training on a CPU, with a message: MMEngine's wrapper refuses it on CPUs."""
    wrapper = cfg.get('optim_wrapper')
    if get_device() == 'cpu' and wrapper and type_name(wrapper) == 'AmpOptimWrapper':
        wrapper['type'] = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        print_log('No accelerator: AmpOptimWrapper becomes OptimWrapper, training runs in float32.', logger='current')


def adapt_to_machine(cfg: Config) -> None:
    """Replace settings that the machine does not support, with a message; add the defaults of the libraries' tools.

    On a CPU SyncBN becomes BatchNorm (SyncBN trains on GPUs only; the statistics are then each process's own).
    """
    if get_device() == 'cpu':
        found = replace_sync_bn(cfg.get('model', {}), 'BN')
        if found or cfg.get('sync_bn'):
            cfg.sync_bn = None
            print_log('No accelerator: SyncBN in the model becomes BN.', logger='current')
    if cfg.get('env_cfg') is None:
        cfg.env_cfg = dict(
            dist_cfg=dict(backend='nccl')
        )  # the default of MMEngine's runners; FlexibleRunner ends without
    for name in LOADERS:
        loader = cfg.get(name)
        if not loader:
            continue
        if loader.get('num_workers', 0) == 0:
            # torch refuses these without workers.
            loader.pop('prefetch_factor', None)
            loader['persistent_workers'] = False
        if library_of(cfg) == 'mmpretrain':
            # As mmpretrain's own tools do; its configs rely on it.
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', get_device() != 'cpu')
