"""Optimizer-wrapper constructors."""

from .layer_decay import BackboneLayerDecayConstructor

__all__ = ['BackboneLayerDecayConstructor']
