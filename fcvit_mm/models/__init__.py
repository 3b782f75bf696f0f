"""The networks: PyTorch modules that need nothing of mmdet, mmseg or mmpretrain, and timm only for ViT, CaiT, Swin."""

from .backbone import Backbone
from .dwnet import DWNet
from .fcvit import FCViT
from .inference import optimize_for_inference
from .scaled import CaiT, ScaledCaiT, ScaledSwin, ScaledViT, Swin, ViT

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
    'optimize_for_inference',
]
