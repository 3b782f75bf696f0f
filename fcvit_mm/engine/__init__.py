"""What plugs into the training loop: layer-wise decay, distributed set-up, safety, checks before the start."""
from .checkpoint import WholeCheckpointHook
from .layer_decay import BackboneLayerDecayConstructor
from .numbers import NonFiniteHook
from .pictures import BrokenPictureHook
from .resume import ResumableBatchSampler, ResumableHook
from .storage import WholeFileBackend

__all__ = ['BackboneLayerDecayConstructor', 'BrokenPictureHook', 'NonFiniteHook', 'ResumableBatchSampler',
           'ResumableHook', 'WholeCheckpointHook', 'WholeFileBackend']
