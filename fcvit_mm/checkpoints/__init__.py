"""Checkpoints: reading safely, recognizing, renaming, writing; published weights by name.

Importing this makes ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the backbones read published files.
"""

from ..models import Backbone
from .convert import convert_checkpoint
from .download import DownloadError
from .errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from .load import check_fits, fetch_checkpoint, load_complete, load_pretrained, surplus_blocks
from .names import weights_of
from .published import (
    PUBLISHED,
    PublishedWeights,
    find_published,
    is_published,
    published_classifier,
    register_published,
    with_scheme,
)
from .published_files import fetch_published, published_path, read_published
from .recognize import Recognized, check_finite, recognize
from .safe_load import read_checkpoint

Backbone.pretrained_loader = staticmethod(load_pretrained)

__all__ = [
    'PUBLISHED',
    'CheckpointError',
    'CheckpointExistsError',
    'CheckpointNotFoundError',
    'DownloadError',
    'PublishedWeights',
    'Recognized',
    'check_finite',
    'check_fits',
    'convert_checkpoint',
    'fetch_checkpoint',
    'fetch_published',
    'find_published',
    'is_published',
    'load_complete',
    'load_pretrained',
    'published_classifier',
    'published_path',
    'read_checkpoint',
    'read_published',
    'recognize',
    'register_published',
    'surplus_blocks',
    'weights_of',
    'with_scheme',
]
