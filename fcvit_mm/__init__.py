"""FCViT for OpenMMLab: a convolution-only backbone for classification, detection and segmentation."""
from .models import FCViT
from .version import __version__

__all__ = ['FCViT', '__version__']
