"""The fast arithmetic: one file per operation, each with a plain definition in PyTorch and its faster forms."""

from .channel_mixer import channel_mixer, recomputed_channel_mixer
from .conv import conv2d
from .depthwise_conv import depthwise_conv2d
from .dispatch import use_ops
from .dwconv_gelu import dwconv_gelu
from .gelu import gelu_
from .global_context import add_global_context, normalised_similarity, position_means

__all__ = [
    'add_global_context',
    'channel_mixer',
    'conv2d',
    'depthwise_conv2d',
    'dwconv_gelu',
    'gelu_',
    'normalised_similarity',
    'position_means',
    'recomputed_channel_mixer',
    'use_ops',
]
