"""What plugs into the training loop: layer-wise decay, distributed set-up, checks before the start."""
from .layer_decay import BackboneLayerDecayConstructor
from .pictures import NamePictureHook

__all__ = ['BackboneLayerDecayConstructor', 'NamePictureHook']
