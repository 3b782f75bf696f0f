"""The networks: PyTorch modules that need nothing of mmdet, mmseg, mmpretrain or timm."""
from .backbone import Backbone
from .fcvit import FCViT

__all__ = ['Backbone', 'FCViT']
