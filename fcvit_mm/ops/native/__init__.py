"""CPU kernels in C++, registered as torch operators ``fcvit_mm_cpu::...``, where the package was installed with them.

setup.py builds them if torch and a compiler are there. They need an x86-64 processor with AVX2, Linux, and the torch
that they were built with: the library's name holds its version. Elsewhere :func:`applies` is false, and nothing fails.
"""

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Optional, Tuple

import torch
from torch import Tensor

from ..checks import autocast_dtype
from ..conditions import is_nhwc, needs_grad
from ..dispatch import is_traced

FOLDER = Path(__file__).parent
_PREFIX = 'kernels_for_torch_'


def name_of_library(torch_version: str) -> str:
    """File name, without its ending, of the library for a version of torch. setup.py names it so, too."""
    return _PREFIX + re.sub(r'\W', '_', torch_version.split('+')[0])


def available() -> bool:
    """Whether the kernels are there and this torch and processor can run them; a warning if they are for another torch.

    Loads the library, once.
    """
    return _load()


# What torch.compiler.assume_constant_result sets; that would import Dynamo here. A compiler takes the answer as it is.
available._dynamo_marked_constant = True


@lru_cache(maxsize=None)
def _load() -> bool:
    if torch.backends.cpu.get_cpu_capability() not in ('AVX2', 'AVX512'):
        return False
    library = FOLDER / f'{name_of_library(torch.__version__)}.so'
    if library.is_file():
        try:
            torch.ops.load_library(library)
            return torch.ops.fcvit_mm_cpu.supported()
        except (OSError, RuntimeError, AttributeError) as error:
            _warn(f'do not load ({error})')
            return False
    others = sorted(path.stem[len(_PREFIX) :].replace('_', '.') for path in FOLDER.glob(f'{_PREFIX}*.so'))
    if others:
        _warn(f'were built with torch {", ".join(others)}, but this is {torch.__version__}')
    return False


def _warn(what: str) -> None:
    warnings.warn(
        f"fcvit_mm: the compiled CPU kernels {what}. PyTorch's own run instead: same results, slower. To "
        'build them again, install the package again with `pip install --no-build-isolation`, or leave them '
        'out with FCVIT_MM_NATIVE=0 in the environment',
        RuntimeWarning,
        stacklevel=5,
    )


# What torch.compile records, and neither torch.jit.trace nor an exporter, whose files must not need this library.
_is_dynamo = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)


def applies(x: Tensor, *others: Optional[Tensor]) -> bool:
    """Whether the kernels can take a map and what comes with it: in float32 and channels_last, on a CPU."""
    return (
        x.device.type == 'cpu'
        and is_nhwc(x)
        and autocast_dtype(x) is None
        and all(y is None or y.dtype == torch.float32 for y in (x, *others))
        and (not is_traced() or (_is_dynamo() and not torch.jit.is_tracing()))
        and available()
    )


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Depth-wise convolution, stride 1, same padding.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32.
        weight (Tensor): ``(C, 1, k, k)``, k odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)`` in channels_last. It has derivatives.
    """
    if needs_grad(x, weight, bias):
        return _DepthwiseConv2d.apply(x, weight, bias)
    return torch.ops.fcvit_mm_cpu.depthwise_conv2d(x, weight, bias)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        return torch.ops.fcvit_mm_cpu.depthwise_conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        needs_x, *needs_others = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = depthwise_conv2d(grad, weight.flip(2, 3))
        if any(needs_others):
            channels, padding = weight.shape[0], weight.shape[-1] // 2
            grad = grad.contiguous(memory_format=torch.channels_last)
            _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                [channels] if ctx.has_bias else None,
                [1, 1],
                [padding, padding],
                [1, 1],
                False,
                [0, 0],
                channels,
                [False, *needs_others],
            )
        return grad_x, grad_weight, grad_bias


def dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Depth-wise convolution and exact GELU in one pass, without derivatives.

    Args, Returns: As of :func:`depthwise_conv2d`.
    """
    return torch.ops.fcvit_mm_cpu.dwconv_gelu(x, weight, bias)


def gelu_(x: Tensor) -> Tensor:
    """Exact GELU in place, of any dense tensor of float32, without derivatives."""
    return torch.ops.fcvit_mm_cpu.gelu_(x)
