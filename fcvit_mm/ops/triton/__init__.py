"""GPU kernels in Triton, registered as torch custom operators ``fcvit_mm::...``; importing this imports no Triton.

Speed has not been measured on a GPU yet; what to expect stands in the modules' docstrings.
"""

from .depthwise_conv import depthwise_conv2d
from .dwconv_gelu import dwconv_gelu
from .global_context import add_global_context
from .support import APPLIES, applies, available

__all__ = ['APPLIES', 'add_global_context', 'applies', 'available', 'depthwise_conv2d', 'dwconv_gelu']
