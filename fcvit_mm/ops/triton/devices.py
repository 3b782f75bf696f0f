"""Devices on which the GPU kernels run; each device is tested once.

Needs a CUDA device of compute capability 8.0, Triton 3.3 (tuples in kernels) and PyTorch's registration of operators
with derivatives (torch 2.5). The kernels read and write channels_last only; other layouts are converted. Elsewhere
:func:`applies` is false, and nothing in this module fails.
"""

import threading
import warnings
from functools import lru_cache
from importlib import metadata
from typing import Any, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor, library

from ..tracing import assume_constant
from .add_scaled import add_scaled
from .depthwise_conv import depthwise_conv2d
from .dwconv_gelu import dwconv_gelu
from .global_context import add_global_context
from .group_norm import group_norm
from .support import INTERPRETED, LAST

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 3)
#: The condition of :func:`applies` as text.
APPLIES = (
    'float32, float16 or bfloat16 on a GPU of compute capability 8.0 or more; torch 2.5 and Triton 3.3 or later, '
    'on which the kernels build'
)
_usable: Dict[str, bool] = {}
_lock = threading.Lock()


@lru_cache(maxsize=None)
def available() -> bool:
    """Return whether this torch and Triton support the kernels, on any device."""
    if not hasattr(library, 'infer_schema') or torch.version.hip is not None:
        return False
    try:
        version = metadata.version('triton')
        return tuple(int(part) for part in version.split('.')[:2]) >= MIN_TRITON
    except (metadata.PackageNotFoundError, ValueError):
        return False


def applies(x: Tensor, *_: Any) -> bool:
    """Return whether the kernels can process a map; see :data:`APPLIES`."""
    return x.dtype in DTYPES and (x.is_cuda or INTERPRETED) and usable(str(x.device))


@assume_constant
def usable(device: str) -> bool:
    """Return whether the kernels compile and give correct results on a device.

    They are tested once per device, with a warning if they fail. During the capture of a CUDA graph, which a test would
    break, the result of an earlier test is returned, or ``False`` if there is none.

    Args:
        device (str): Device as ``str(tensor.device)``.
    """
    found = _usable.get(device)
    if found is not None:
        return found
    if not INTERPRETED and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    with _lock:
        if device not in _usable:
            _usable[device] = available() and _capable(device) and _builds(device)
    return _usable[device]


def _capable(device: str) -> bool:
    return INTERPRETED or torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def _builds(device: str) -> bool:
    failures: List[Exception] = []

    def attempt() -> None:
        try:
            _smoke(device)
        except Exception as error:  # of any kind: the references still work
            failures.append(error)

    # In a separate thread, which autocast, no_grad, fake tensors and tracing of the caller do not affect.
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    for error in failures:
        name = torch.cuda.get_device_name(device) if device.startswith('cuda') else device
        warnings.warn(
            f'fcvit_mm: the Triton kernels cannot be built on {device} ({name}): {type(error).__name__}: {error}. The '
            'reference implementations in PyTorch are used instead: same results, slower',
            RuntimeWarning,
            stacklevel=4,
        )
    return not failures


def _smoke(device: str) -> None:
    """Run each kernel once, forward and backward, on a small map in bfloat16; compare one with PyTorch in float32."""

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, device=device).to(torch.bfloat16).requires_grad_()

    x = torch.rand(1, 16, 2, 3, device=device).to(torch.bfloat16, memory_format=LAST).requires_grad_()
    weight, vector, rescale = leaf(16, 1, 3, 3), leaf(16), leaf(2)
    # Forward alone: each large kernel takes seconds to compile.
    large = [value.detach() for value in (x, leaf(16, 1, 11, 11), vector)]
    image, kernel, bias = (value.float() for value in large)
    expected = F.conv2d(image, kernel, bias, padding=5, groups=16)
    if not torch.allclose(depthwise_conv2d(*large).float(), expected, rtol=2e-2, atol=2e-2):
        raise RuntimeError('an 11x11 convolution in bfloat16 is off')
    y = group_norm(depthwise_conv2d(x, weight, vector), vector, vector, 1e-5)
    y = add_global_context(y, y.float().mean((2, 3)), vector.expand(1, -1), 2, rescale, rescale, 1e-5)
    y = add_scaled(x, dwconv_gelu(y, weight, vector), vector)
    y.float().sum().backward()
    if x.grad is None or not bool(torch.isfinite(x.grad).all()):
        raise RuntimeError('gradients are not finite')
