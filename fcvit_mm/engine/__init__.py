"""What plugs into the training loop, and nothing else: the run, its config, its processes, hooks, optimizers."""

from ..files import AtomicFileBackend
from .hooks import (
    AtomicCheckpointHook,
    NonFiniteHook,
    ResumableBatchSampler,
    ResumableHook,
    SkipCorruptSamplesHook,
)
from .optim import BackboneLayerDecayConstructor

__all__ = [
    'AtomicCheckpointHook',
    'AtomicFileBackend',
    'BackboneLayerDecayConstructor',
    'NonFiniteHook',
    'ResumableBatchSampler',
    'ResumableHook',
    'SkipCorruptSamplesHook',
]
