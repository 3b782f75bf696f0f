"""Where the GPU kernels run, and how they are registered. Imports no Triton: that waits for the first call.

Needs a CUDA device of compute capability 8.0, Triton 3.3 (tuples in kernels) and PyTorch's registration of operators
with derivatives (torch 2.5). The kernels read and write channels_last alone; any other layout is converted. Elsewhere
:func:`applies` is false, and nothing here fails. With ``TRITON_INTERPRET=1`` in the environment the kernels run on the
CPU, slowly: that is how they are tested.
"""

import os
import threading
import warnings
from contextlib import nullcontext
from functools import lru_cache
from importlib import metadata
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from ..checks import autocast_dtype
from ..conditions import is_channels_last, register_flops
from ..tracing import assume_constant, is_traced

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Operators that take a map and depth-wise kernels first.
DEPTHWISE = ('depthwise_conv2d', 'depthwise_conv2d_grad_input', 'dwconv_gelu')
LAST = torch.channels_last
MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 3)
#: The condition of :func:`applies` as text.
APPLIES = (
    'float32, float16 or bfloat16 on a GPU of compute capability 8.0 or more; torch 2.5 and Triton 3.3 or later, '
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
    device: str = 'cuda',
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``fcvit_mm::name``, so that compilers and exporters record it as one node.

    By the dispatcher's own interface: PyTorch's ``custom_op`` checks each call, which costs more time than a small
    kernel takes. Under a torch that lacks it (before 2.5) the function stays unregistered; nobody calls it there.

    Args:
        name (str): The operator's name.
        fake (Callable): Gives empty outputs of the right shape, dtype and strides.
        backward (Callable, optional): The gradient formula; ``None`` if the operator has none.
        setup_context (Callable, optional): Saves what ``backward`` needs.
        device (str): The type of devices that it runs on.
    """

    def no_gradient(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f'fcvit_mm::{name} only has first derivatives: for higher ones, run the model under '
            "fcvit_mm.ops.use_ops('reference')"
        )

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(library, 'infer_schema'):
            return function
        library.define(f'fcvit_mm::{name}', library.infer_schema(function, mutates_args=()))
        library.impl(f'fcvit_mm::{name}', ('cuda', 'cpu') if INTERPRETED else device, function)
        library.register_fake(f'fcvit_mm::{name}', fake)
        library.register_autograd(f'fcvit_mm::{name}', backward or no_gradient, setup_context=setup_context)
        registered = getattr(torch.ops.fcvit_mm, name)
        if name in DEPTHWISE:
            register_flops(registered)

        def call(*args: Any) -> Any:
            return function(*args) if _is_unobserved(args) else registered.default(*args)

        return call

    return register


def _is_unobserved(args: Sequence[Any]) -> bool:
    """Return whether nobody would notice if a call went by the dispatcher, which takes longer than a small kernel.

    Noticed it would be by autograd, compilers, exporters, modes such as counters and fake tensors, and subclasses.
    """
    if is_traced() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    grad = torch.is_grad_enabled()
    for arg in args:
        if isinstance(arg, Tensor) and (type(arg) not in _TENSORS or (grad and arg.requires_grad)):
            return False
    return True


_TENSORS = (Tensor, torch.nn.Parameter)


def launch(kernel: Any, grid: Sequence[int], args: Sequence[Any], num_warps: int = 4, **constants: Any) -> None:
    """Launch a kernel on the current device.

    What Triton compiled is kept and launched directly: deciding anew at each launch what it is compiled for takes
    Triton more time than a small kernel takes.

    Args:
        kernel (triton.JITFunction): Its integers are all ``do_not_specialize``.
        grid (Sequence[int]): Programs in each of up to three dimensions.
        args (Sequence): What comes before the constants in its signature, in that order.
        num_warps (int): Warps of a program.
        **constants: Its constants.
    """
    if INTERPRETED:
        kernel[tuple(grid)](*args, num_warps=num_warps, **constants)
        return
    grid = (*grid, 1, 1)[:3]
    # What Triton specialises for: types, 16-byte alignment, integers of more than 32 bits, constants.
    kinds = [
        (arg.dtype, arg.data_ptr() % 16 == 0) if isinstance(arg, Tensor) else arg > _INT32 if type(arg) is int else None
        for arg in args
    ]
    key = (id(kernel), torch.cuda.current_device(), num_warps, *kinds, *constants.values())
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[grid](*args, num_warps=num_warps, **constants)
    else:
        compiled[grid](*args, *(constants[name] for name in kernel.arg_names[len(args) :]))


_INT32 = 2**31 - 1
_compiled: Dict[Any, Any] = {}


@lru_cache(maxsize=None)
def available() -> bool:
    """Return whether this torch and Triton have what the kernels need, on whatever device."""
    if not hasattr(library, 'infer_schema') or torch.version.hip is not None:
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
    """Return whether the kernels build and compute rightly on a device; tried once, with a warning if they do not.

    Not while a CUDA graph is captured, which the trial would break: then what was found before counts, and without it
    the answer is no.

    Args:
        device (str): As ``str(tensor.device)`` gives it.
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
        except Exception as error:  # whatever it is, the references still work
            failures.append(error)

    # In a thread of its own, where no autocast, no_grad, fake tensors or tracing of the caller reach.
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
    from . import add_global_context, add_scaled, depthwise_conv2d, dwconv_gelu, group_norm

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


def autocast(x: Tensor) -> Tensor:
    """Cast as autocast casts the input of a convolution; unchanged where autocast is off."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` in channels_last."""
    return x.contiguous(memory_format=LAST)


def empty_like(x: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Return an output of the kernels of the shape of ``x``: channels_last, with the very strides of ``x`` if it is."""
    if is_channels_last(x):
        return torch.empty_like(x, dtype=dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=LAST)


def as_laid_out(out: Tensor, like: Tensor) -> Tensor:
    """Return an output of the kernels in the layout of the map that it was computed from."""
    return out if is_channels_last(like) else out.contiguous()


def on_device(x: Tensor) -> ContextManager:
    """Make the device of ``x`` the current one, on which kernels are launched."""
    if x.is_cuda and torch.cuda.current_device() != x.device.index:
        return torch.cuda.device(x.device)
    return nullcontext()


def split(x: Tensor, positions: int, most: int) -> Tuple[int, int]:
    """Return the splits of an image's positions for about four programs a processor, and the positions in one.

    Args:
        x (Tensor): The map.
        positions (int): Those that a program takes at once: a split holds a multiple.
        most (int): Splits at most.
    """
    batch, num_positions = len(x), x.shape[2] * x.shape[3]
    splits = min(most, max(1, 4 * num_processors(x.device) // batch))
    per_split = -(-num_positions // splits)
    per_split = -(-per_split // positions) * positions
    return -(-num_positions // per_split), per_split


@lru_cache(maxsize=None)
def num_processors(device: torch.device) -> int:
    """Return the streaming multiprocessors of a device; 1 in the interpreter, which runs programs in turn."""
    return 1 if device.type == 'cpu' else torch.cuda.get_device_properties(device).multi_processor_count


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least ``n``."""
    return 1 << (n - 1).bit_length()
