"""GPU kernels in Triton, registered as torch custom operators ``fcvit_mm::...``; importing this imports no Triton.

Speed has not been measured on a GPU yet; what to expect stands in the modules' docstrings.
"""

from .depthwise import depthwise_conv2d
from .dwconv_gelu import dwconv_gelu
from .global_context import channel_means, global_context_add
from .support import applies, available

__all__ = ['applies', 'available', 'channel_means', 'depthwise_conv2d', 'dwconv_gelu', 'global_context_add']
