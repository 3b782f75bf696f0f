"""Hooks of the training loop: atomic checkpoints, resuming, corrupt samples, non-finite values."""

from ...deprecation import deprecated_class
from ...registry import HOOKS
from .checkpoint import AtomicCheckpointHook
from .corrupt_samples import SkipCorruptSamplesHook
from .non_finite import NonFiniteHook
from .resumable_sampler import ResumableBatchSampler
from .resume import ResumableHook

WholeCheckpointHook = deprecated_class('WholeCheckpointHook', AtomicCheckpointHook, __name__)
BrokenPictureHook = deprecated_class('BrokenPictureHook', SkipCorruptSamplesHook, __name__)
for _old in (WholeCheckpointHook, BrokenPictureHook):
    HOOKS.register_module(module=_old)

__all__ = ['AtomicCheckpointHook', 'NonFiniteHook', 'ResumableBatchSampler', 'ResumableHook', 'SkipCorruptSamplesHook']
