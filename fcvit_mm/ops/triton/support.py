"""Common code of the GPU kernels: registration, launching and layouts. Imports no Triton.

Triton is imported by the first call. With ``TRITON_INTERPRET=1`` in the environment the kernels run on the CPU, slowly:
that is how they are tested.
"""

import os
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Callable, ContextManager, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, library

from ..checks import autocast_dtype
from ..conditions import is_channels_last, register_flops
from ..tracing import is_traced

#: Operators that take a map and depth-wise kernels first.
DEPTHWISE = ('depthwise_conv2d', 'depthwise_conv2d_grad_input', 'dwconv_gelu')
LAST = torch.channels_last
#: Triton reads the variable when a kernel is defined: later changes have no effect there either.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


def custom_op(
    name: str,
    fake: Callable[..., Any],
    backward: Optional[Callable[..., Any]] = None,
    setup_context: Optional[Callable[..., None]] = None,
    device: str = 'cuda',
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``fcvit_mm::name``, so that compilers and exporters record it as one node.

    Uses the dispatcher's own interface, because PyTorch's ``custom_op`` checks each call, which takes longer than a
    small kernel. Before torch 2.5, which lacks it, the function is not registered; nothing calls it there.

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
    """Return whether a call may bypass PyTorch's dispatcher, which takes longer than a small kernel.

    It may not if something must observe the call: autograd, compilers, exporters, modes such as counters and fake
    tensors, and tensor subclasses.
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

    The compiled kernel is cached and launched directly, because Triton's own launch looks it up each time, which takes
    longer than a small kernel.

    Args:
        kernel (triton.JITFunction): A kernel whose integers are all ``do_not_specialize``.
        grid (Sequence[int]): Programs in each of up to three dimensions.
        args (Sequence): Arguments before the constants, in the order of the signature.
        num_warps (int): Warps of a program.
        **constants: Constants of the kernel.
    """
    if INTERPRETED:
        kernel[tuple(grid)](*args, num_warps=num_warps, **constants)
        return
    grid = (*grid, 1, 1)[:3]
    # Triton specializes for types, 16-byte alignment, integers of more than 32 bits, and constants.
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


def autocast(x: Tensor) -> Tensor:
    """Cast as autocast casts the input of a convolution; unchanged where autocast is off."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def to_channels_last(x: Tensor) -> Tensor:
    """Convert ``x`` to channels_last."""
    return x.contiguous(memory_format=LAST)


def empty_like(x: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Return an empty channels_last output of the shape of ``x``; with its strides, if ``x`` is channels_last, too."""
    if is_channels_last(x):
        return torch.empty_like(x, dtype=dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=LAST)


def restore_layout(out: Tensor, like: Tensor) -> Tensor:
    """Convert a kernel's output ``out`` back to the memory layout of its input ``like``."""
    return out if is_channels_last(like) else out.contiguous()


def on_device(x: Tensor) -> ContextManager:
    """Make the device of ``x`` the current one, on which kernels are launched."""
    if x.is_cuda and torch.cuda.current_device() != x.device.index:
        return torch.cuda.device(x.device)
    return nullcontext()


def split_positions(x: Tensor, positions: int, most: int) -> Tuple[int, int]:
    """Return the number of parts that an image's positions are divided into, and the positions of a part.

    Args:
        x (Tensor): The map.
        positions (int): Positions that a program computes at once; those of a part are a multiple.
        most (int): Maximum number of parts. There are about four programs per processor.
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
