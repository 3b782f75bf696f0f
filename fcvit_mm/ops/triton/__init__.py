"""GPU kernels in Triton, registered as torch custom operators ``fcvit_mm::...``; importing this imports no Triton.

docs/gpu.md has the measurements on a GPU; the limits of each kernel are in its module.
"""

from .add_scaled import add_scaled
from .depthwise_conv import depthwise_conv2d, pack_taps
from .devices import APPLIES, DTYPES, applies, available, usable
from .dwconv_gelu import dwconv_gelu
from .global_context import add_global_context
from .group_norm import group_norm

__all__ = [
    'APPLIES',
    'DTYPES',
    'add_global_context',
    'add_scaled',
    'applies',
    'available',
    'depthwise_conv2d',
    'dwconv_gelu',
    'group_norm',
    'pack_taps',
    'usable',
]
