"""The networks: PyTorch modules that need nothing of mmdet, mmseg or mmpretrain, and timm only for ViT, CaiT, Swin."""

from .backbone import Backbone
from .cait import CaiT, ScaledCaiT
from .dwnet import DWNet
from .fcvit import FCViT
from .swin import ScaledSwin, Swin
from .vit import ScaledViT, ViT

__all__ = [
    'Backbone',
    'CaiT',
    'DWNet',
    'FCViT',
    'ScaledCaiT',
    'ScaledSwin',
    'ScaledViT',
    'Swin',
    'ViT',
]
