"""Hooks that every run gets, unless its config configures them."""

from mmengine.config import Config
from mmengine.logging import print_log

from ..config import type_name


def write_checkpoints_atomically(cfg: Config) -> None:
    """Replace ``CheckpointHook`` by ``AtomicCheckpointHook``; beside another hook, add it for SIGTERM."""
    # Not by setdefault, because MMEngine's version returns its argument, not the copy that the config contains.
    if not cfg.get('default_hooks'):
        cfg.default_hooks = {}
    if 'checkpoint' not in cfg.default_hooks:
        cfg.default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)
    checkpoint = cfg.default_hooks['checkpoint']
    if checkpoint and type_name(checkpoint) == 'CheckpointHook':
        checkpoint['type'] = 'AtomicCheckpointHook'
    elif not checkpoint:
        print_log(
            'default_hooks.checkpoint is disabled: no checkpoints are saved, not even at SIGTERM.', logger='current'
        )
    elif type_name(checkpoint) != 'AtomicCheckpointHook':
        print_log(
            f'{type_name(checkpoint)} saves the checkpoints; its files are written atomically, in its own order. '
            'AtomicCheckpointHook only saves at SIGTERM.',
            logger='current',
        )
        hooks = list(cfg.get('custom_hooks') or [])
        if 'AtomicCheckpointHook' not in map(type_name, hooks):
            cfg.custom_hooks = [*hooks, dict(type='AtomicCheckpointHook', interval=-1, save_last=False)]


def skip_corrupt_samples(cfg: Config) -> None:
    """Add ``SkipCorruptSamplesHook`` unless the config configures it."""
    _add_hooks(cfg, 'SkipCorruptSamplesHook')


def add_training_hooks(cfg: Config) -> None:
    """Add the hooks that resume inside an epoch and that stop at NaN, unless the config configures them."""
    _add_hooks(cfg, 'ResumableHook', 'NonFiniteHook')


def _add_hooks(cfg: Config, *names: str) -> None:
    hooks = list(cfg.get('custom_hooks') or [])
    configured = {type_name(hook) for hook in hooks}
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in names if name not in configured)]
