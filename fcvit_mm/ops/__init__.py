"""Operations on feature maps ``(B, C, H, W)``, one file each: a reference in PyTorch, and a table of faster ones.

``python -m fcvit_mm.ops`` prints the tables, and what would run on this machine.
"""

from typing import Any, Tuple

from ..deprecation import warn_deprecated
from .add_scaled import add_scaled
from .bottleneck import bottleneck
from .channel_mixer import channel_mixer, recomputed_channel_mixer
from .conv import conv2d
from .depthwise_conv import depthwise_conv2d
from .dispatch import Operation, use_ops
from .dwconv_gelu import dwconv_gelu
from .dynamic_depthwise import dynamic_depthwise_conv2d, inhomogeneous_depthwise_conv2d
from .gelu import gelu_
from .global_context import add_global_context, channel_means, normalized_similarity
from .group_norm import group_norm

#: Every operation. The tests and ``python -m fcvit_mm.ops`` read this.
OPERATIONS: Tuple[Operation, ...] = (
    conv2d,
    depthwise_conv2d,
    dwconv_gelu,
    gelu_,
    bottleneck,
    channel_mixer,
    add_global_context,
    group_norm,
    add_scaled,
    dynamic_depthwise_conv2d,
    inhomogeneous_depthwise_conv2d,
)

__all__ = [
    'OPERATIONS',
    'add_global_context',
    'add_scaled',
    'bottleneck',
    'channel_means',
    'channel_mixer',
    'conv2d',
    'depthwise_conv2d',
    'dwconv_gelu',
    'dynamic_depthwise_conv2d',
    'gelu_',
    'group_norm',
    'inhomogeneous_depthwise_conv2d',
    'normalized_similarity',
    'recomputed_channel_mixer',
    'use_ops',
]

_DEPRECATED_NAMES = {'position_means': channel_means, 'normalised_similarity': normalized_similarity}


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED_NAMES:
        new = _DEPRECATED_NAMES[name]
        warn_deprecated(f'fcvit_mm.ops.{name}', f'fcvit_mm.ops.{new.__name__}')
        return new
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
