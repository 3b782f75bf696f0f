"""The networks: PyTorch modules that need nothing of mmdet, mmseg or mmpretrain, and timm only for ViT, CaiT, Swin."""
from .backbone import Backbone
from .dwnet import DWNet
from .fcvit import FCViT
from .inference import optimize_for_inference
from .scaled import ScaledCaiT, ScaledSwin, ScaledViT

__all__ = ['Backbone', 'DWNet', 'FCViT', 'ScaledCaiT', 'ScaledSwin', 'ScaledViT', 'optimize_for_inference']
