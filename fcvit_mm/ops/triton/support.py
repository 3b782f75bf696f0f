"""Where the GPU kernels run, and how they are registered. Imports no Triton: that waits for the first call.

Needs a CUDA device of compute capability 8.0, Triton 3.3 (tuples in kernels) and PyTorch's custom operators (torch
2.4). Elsewhere :func:`applies` is false, and nothing here fails. With ``TRITON_INTERPRET=1`` in the environment the
kernels run on the CPU, slowly: that is how they are tested.
"""

import os
import threading
import warnings
from contextlib import nullcontext
from functools import lru_cache
from importlib import metadata
from typing import Any, Callable, ContextManager, Dict, List, Optional

import torch
from torch import Tensor, library

from ..conditions import register_flops
from ..tracing import assume_constant

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Operators that take a map and depth-wise kernels first.
DEPTHWISE = ('depthwise_conv2d', 'depthwise_conv2d_grad_input', 'dwconv_gelu')
MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 3)
#: The condition of :func:`applies` as text.
APPLIES = (
    'float32, float16 or bfloat16 on a GPU of compute capability 8.0 or more; torch 2.4 and Triton 3.3 or later, '
    'on which the kernels build'
)
#: Triton reads the variable when a kernel is defined: later changes have no effect there either.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

_usable: Dict[str, bool] = {}
_lock = threading.Lock()


def custom_op(
    name: str,
    fake: Callable[..., Any],
    backward: Optional[Callable[..., Any]] = None,
    setup_context: Optional[Callable[..., None]] = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``fcvit_mm::name``, so that compilers and exporters record it as one node.

    Under a torch without custom operators (before 2.4) the function stays unregistered; nobody calls it there.

    Args:
        name (str): The operator's name.
        fake (Callable): Gives empty outputs of the right shape, dtype and strides.
        backward (Callable, optional): The gradient formula; ``None`` if the operator has none.
        setup_context (Callable, optional): Saves what ``backward`` needs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(library, 'custom_op'):
            return function
        registered = library.custom_op(f'fcvit_mm::{name}', function, mutates_args=())
        registered.register_fake(fake)
        if backward is not None:
            registered.register_autograd(backward, setup_context=setup_context)
        if name in DEPTHWISE:
            register_flops(getattr(torch.ops.fcvit_mm, name))
        return registered

    return register


@lru_cache(maxsize=None)
def available() -> bool:
    """Return whether this torch and Triton have what the kernels need, on whatever device."""
    if not hasattr(library, 'custom_op') or torch.version.hip is not None:
        return False
    try:
        version = metadata.version('triton')
        return tuple(int(part) for part in version.split('.')[:2]) >= MIN_TRITON
    except (metadata.PackageNotFoundError, ValueError):
        return False


def applies(x: Tensor, *_: Any) -> bool:
    """Return whether the kernels can take a map; see :data:`APPLIES`."""
    return x.dtype in DTYPES and (x.is_cuda or INTERPRETED) and usable(str(x.device))


@assume_constant
def usable(device: str) -> bool:
    """Return whether the kernels build and run on a device; tried once, with a warning if they do not.

    Args:
        device (str): As ``str(tensor.device)`` gives it.
    """
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
        except Exception as error:  # whatever it is, the references still work
            failures.append(error)

    # In a thread of its own, where no autocast, no_grad, fake tensors or tracing of the caller reach.
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    for error in failures:
        name = torch.cuda.get_device_name(device) if device.startswith('cuda') else device
        warnings.warn(
            f'fcvit_mm: the Triton kernels do not build on {device} ({name}): {type(error).__name__}: '
            f'{error}. The reference implementations in PyTorch run there instead: same results, slower',
            RuntimeWarning,
            stacklevel=4,
        )
    return not failures


def _smoke(device: str) -> None:
    """Run each kernel once, forward and backward, on a tiny map."""
    from . import add_global_context, depthwise_conv2d, dwconv_gelu

    x = torch.rand(1, 16, 2, 2, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(16, 1, 3, 3, device=device, requires_grad=True)
    bias = torch.rand(16, device=device, requires_grad=True)
    rescale = torch.rand(2, device=device, requires_grad=True)
    y = add_global_context(x, x.mean((2, 3)), bias.expand(1, -1), 2, rescale, rescale, 1e-5)
    y = dwconv_gelu(depthwise_conv2d(y, weight, bias), weight, bias)
    y.sum().backward()
    if x.grad is None or not bool(torch.isfinite(x.grad).all()):
        raise RuntimeError('gradients are not finite')


def autocast(x: Tensor) -> Tensor:
    """Cast as autocast casts the input of a convolution; unchanged where autocast is off."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout in which the kernels read ``x``: channels_last if it is stored so, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def dense(x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """Return ``x`` in one of the two layouts: its own if it is in one (else contiguous), or that of ``like``."""
    return x.contiguous(memory_format=memory_format(x if like is None else like))


def on_device(x: Tensor) -> ContextManager:
    """Make the device of ``x`` the current one, on which kernels are launched."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@lru_cache(maxsize=None)
def num_processors(device: torch.device) -> int:
    """Return the streaming multiprocessors of a device; 2 in the interpreter, which runs programs in turn."""
    return 2 if device.type == 'cpu' else torch.cuda.get_device_properties(device).multi_processor_count


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least ``n``."""
    return 1 << (n - 1).bit_length()
