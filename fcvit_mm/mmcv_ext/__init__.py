"""mmcv's compiled operators from torchvision's prebuilt kernels: an mmcv without a compiler.

``pip install onedl-mmcv`` with build isolation makes an mmcv in seconds that lacks one module, ``mmcv._ext``, in which
its compiled operators are. ``operators.py`` takes its place: the operators that detectors and segmentors use come from
torchvision's kernels (CPU and CUDA, forward and backward) or from a few lines of PyTorch; the others raise an
:class:`MMCVOperatorError` when they are called. An mmcv that has its compiled operators is never touched.

``import fcvit_mm`` makes it known to the running process. ``python -m fcvit_mm.mmcv_ext install`` writes a one-line
``mmcv/_ext.py`` into the environment's mmcv, so that it is found whatever is imported first.
"""

from .errors import MMCVOperatorError
from .finder import install, is_compiled, make_known

__all__ = ['MMCVOperatorError', 'install', 'is_compiled', 'make_known']
