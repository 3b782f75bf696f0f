"""Faster inference of trained models: backbones of this package, and necks and heads of mmdet, mmseg and mmpretrain."""

from .optimize import optimize_for_inference

__all__ = ['optimize_for_inference']
