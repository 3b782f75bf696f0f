"""Checkpoints: read them without running their code, recognise them, give their weights our names, write them.

Importing this makes ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the backbones read published files.
"""

from ..models import Backbone
from .convert import convert_checkpoint
from .load import check_fits, load_pretrained
from .names import weights_of
from .recognize import Recognized, check_finite, recognize
from .safe_load import CheckpointError, CheckpointExistsError, CheckpointNotFoundError, read_checkpoint

Backbone.pretrained_loader = staticmethod(load_pretrained)

__all__ = [
    'CheckpointError',
    'CheckpointExistsError',
    'CheckpointNotFoundError',
    'Recognized',
    'check_finite',
    'check_fits',
    'convert_checkpoint',
    'load_pretrained',
    'read_checkpoint',
    'recognize',
    'weights_of',
]
