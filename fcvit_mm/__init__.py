"""FCViT for OpenMMLab: a convolution-only backbone for classification, detection and segmentation."""
from .requirements import check_core

check_core()

# Importing registers: checkpoints makes init_cfg=dict(type='Pretrained') read published files, engine brings the
# optimizer-wrapper constructor and hooks.
from . import checkpoints, engine  # noqa: E402, F401
from .models import DWNet, FCViT, ScaledCaiT, ScaledSwin, ScaledViT, optimize_for_inference  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['DWNet', 'FCViT', 'ScaledCaiT', 'ScaledSwin', 'ScaledViT', '__version__', 'optimize_for_inference']
