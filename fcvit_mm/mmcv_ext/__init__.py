"""mmcv's compiled operators from torchvision's prebuilt kernels: an mmcv without a compiler.

``pip install onedl-mmcv`` with build isolation installs, in seconds, an mmcv without the module ``mmcv._ext``, which
contains the compiled operators. ``operators.py`` replaces it: the operators that detectors and segmentors use come from
torchvision's kernels (CPU and CUDA, forward and backward) or from a few lines of PyTorch; the others raise an
:class:`MMCVOperatorError` when they are called. An mmcv with compiled operators is never changed.

``import fcvit_mm`` makes the replacement importable in the running process. ``python -m fcvit_mm.mmcv_ext install``
writes a one-line ``mmcv/_ext.py`` into the environment's mmcv, so that it is found in any order of imports.
"""

from .errors import MMCVOperatorError
from .finder import install, is_compiled, register_finder

__all__ = ['MMCVOperatorError', 'install', 'is_compiled', 'register_finder']
