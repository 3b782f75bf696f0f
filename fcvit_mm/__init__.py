"""FCViT for OpenMMLab: a convolution-only backbone for classification, detection and segmentation."""

from .dependencies import check_core, guard_multimodal

check_core()
guard_multimodal()

# Commands import errors and options before this package (tools/command_line.py); here they become attributes of it.
from . import deprecation, errors, mmcv_ext, options  # noqa: E402, F401

deprecation.install()
mmcv_ext.register_finder()

# Importing registers: checkpoints makes init_cfg=dict(type='Pretrained') read published files, engine brings the
# optimizer-wrapper constructor and hooks, datasets transforms.
from . import checkpoints, datasets, engine  # noqa: E402, F401
from .inference import optimize_for_inference  # noqa: E402
from .models import (  # noqa: E402
    CaiT,
    DWNet,
    FCViT,
    ScaledCaiT,
    ScaledSwin,
    ScaledViT,
    Swin,
    ViT,
)
from .version import __version__  # noqa: E402

__all__ = [
    'CaiT',
    'DWNet',
    'FCViT',
    'ScaledCaiT',
    'ScaledSwin',
    'ScaledViT',
    'Swin',
    'ViT',
    '__version__',
    'optimize_for_inference',
]
