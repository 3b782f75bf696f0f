"""Comparison of every implementation of every operation with its reference, for tests/ops/test_implementations.py.

This module has the rows of the tables of operations, their inputs, and the comparison of values and gradients with the
reference in float64. New rows are tested without a change here.
"""

from typing import Any, Callable, Dict, List, Sequence
from unittest import mock

import pytest
import torch
from mmengine.utils import digit_version
from torch import Tensor

from fcvit_mm import ops
from fcvit_mm.ops import native, tracing, triton
from fcvit_mm.ops.dispatch import Implementation, Operation

#: Custom operators can be counted since torch 2.2.
counts_flops = pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.2'), reason='torch before 2.2')

CHANNELS = 16
#: Batch size, height and width.
SIZES = {
    'square': (2, 8, 8),
    'odd': (3, 7, 5),
    'one_image': (1, 6, 9),
    'smaller_than_the_kernel': (2, 2, 3),
    'one_position': (2, 1, 1),
    'empty': (0, 4, 4),
}
#: Largest difference, as a share of the largest value.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
#: Triton's interpreter is slow: small kernels, fewer sizes, and values and gradients in one call.
INTERPRETED = triton.support.INTERPRETED
if INTERPRETED:
    SIZES = {'odd': (2, 3, 5), 'empty': SIZES['empty']}
#: Arguments that are computed from the map, and whose gradients flow to the map.
DERIVED: Dict[str, Dict[int, Callable[[Tensor], Tensor]]] = {'add_global_context': {1: ops.channel_means}}

_unavailable = set()
if not native.available():
    _unavailable.update(('native', 'im2col'))
if not (triton.available() and (INTERPRETED or 'cuda' in DEVICES)):
    _unavailable.add('triton')
if 'cuda' not in DEVICES:
    _unavailable.update(('product', 'space_to_depth'))
#: The rows of all tables whose backend is available, including the references; in the interpreter, those of Triton.
ROWS = [
    pytest.param(op, row, id=f'{op.__name__}-{row.name}')
    for op in ops.OPERATIONS
    for row in op.table
    if row.name not in _unavailable and (row.name == 'triton' or not INTERPRETED)
]
EACH_OPERATION = pytest.mark.parametrize('op', ops.OPERATIONS, ids=lambda op: op.__name__)


def random_call(op: Operation, size: Sequence[int], channels: int = CHANNELS) -> List[Any]:
    """Return reproducible arguments in float64."""
    torch.manual_seed(0)
    batch, height, width = size
    args = list(op.example(torch.randn(batch, channels, height, width, dtype=torch.double) * 1.5 + 0.25))
    if INTERPRETED and op.__name__ == 'depthwise_conv2d':
        args[1] = args[1][..., :3, :3]
    return args


def cast(args: Sequence[Any], dtype: torch.dtype, layout: str = 'contiguous', device: str = 'cpu') -> List[Any]:
    """Convert tensors to a dtype and a device, and the map to a memory layout."""
    args = [arg.to(device, dtype) if isinstance(arg, Tensor) else arg for arg in args]
    return [args[0].contiguous(memory_format=LAYOUTS[layout]), *args[1:]]


def supported(row: Implementation, dtype: torch.dtype, device: str) -> bool:
    """Return whether this PyTorch has the operations that an implementation uses (float16 on a CPU: torch 2.4)."""
    late = dtype == torch.float16 and device == 'cpu' and row.name not in ('float32', 'triton')
    return not (late and digit_version(torch.__version__) < digit_version('2.4'))


def applies(row: Implementation, args: Sequence[Any]) -> bool:
    """Return whether an implementation applies to these arguments, in eager mode or in a graph for any image size."""
    if row.when(*args):
        return True
    with mock.patch.multiple(tracing, records_any_size=lambda: True, records_variable=lambda size: True):
        return row.traceable and row.when(*args)


def values_and_gradients(
    op: Operation, function: Callable[..., Tensor], args: Sequence[Any], grad: bool = True
) -> List[Tensor]:
    """Return the output and, with ``grad``, the gradients of all tensors."""
    leaves = [arg.detach().clone().requires_grad_(grad) if isinstance(arg, Tensor) else arg for arg in args]
    derived = DERIVED.get(op.__name__, {})
    with torch.set_grad_enabled(grad):
        call = [derived[i](leaves[0]) if i in derived else leaf for i, leaf in enumerate(leaves)]
        output = function(*call)
    if not grad:
        return [output]
    slope = torch.linspace(-1, 1, output.numel(), dtype=torch.double, device=output.device).view_as(output)
    wanted = [leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and i not in derived]
    return [output.detach(), *torch.autograd.grad(output, wanted, slope.to(output.dtype))]


def assert_agrees(op: Operation, row: Implementation, size: Sequence[int]) -> int:
    """Compare an implementation with the reference for one size, with all dtypes, layouts and devices that it supports.

    In half precision the reference rounds intermediate values, so the reference in float64 is used, with the same
    rounded arguments.

    Returns:
        int: Number of compared calls.
    """
    exact = random_call(op, size)
    compared = 0
    grads = (True,) if INTERPRETED else (True, False)
    for dtype, tolerance in TOLERANCES.items():
        expected = None
        if INTERPRETED and dtype == torch.float16:
            continue  # bfloat16 is rounded at the same places
        layouts = ['channels_last'] if INTERPRETED else LAYOUTS
        for device, layout, grad in ((d, at, g) for d in DEVICES for at in layouts for g in grads):
            args = cast(exact, dtype, layout, device)
            with torch.set_grad_enabled(grad):
                probe = [arg.clone().requires_grad_(grad) if isinstance(arg, Tensor) else arg for arg in args]
                if not (supported(row, dtype, device) and applies(row, probe)):
                    continue
            compared += 1
            expected = expected or values_and_gradients(op, op.reference, cast(args, torch.double))
            for i, (have, want) in enumerate(zip(values_and_gradients(op, row.function, args, grad), expected)):
                case = f'{op.__name__} by {row.name}, {dtype}, {layout}, {device}, {grad=}, result {i}'
                assert have.dtype == dtype and have.shape == want.shape, case
                if have.numel():
                    error = (have.to('cpu', torch.double) - want).abs().max() / want.abs().max().clamp(min=1)
                    assert error <= tolerance, f'{case}: {error:.1e}'
    return compared
