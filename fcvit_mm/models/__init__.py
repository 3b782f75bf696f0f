"""The networks: PyTorch modules that need nothing of mmdet, mmseg, mmpretrain or timm."""
from .backbone import Backbone
from .fcvit import FCViT
from .inference import optimize_for_inference

__all__ = ['Backbone', 'FCViT', 'optimize_for_inference']
