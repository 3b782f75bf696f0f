"""Extensions of the training loop: runs, configs, processes, hooks, optimizers."""

from ..deprecation import renamed_in
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

__getattr__ = renamed_in(__name__)
