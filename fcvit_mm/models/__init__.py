"""The networks: PyTorch modules that do not need mmdet, mmseg or mmpretrain, and need timm only for ViT, CaiT, Swin."""

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
