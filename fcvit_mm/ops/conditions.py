"""Conditions that the tables of several operations share."""

import importlib.abc
import importlib.machinery
import importlib.util
import math
import sys
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..deprecation import renamed_in
from .tracing import is_traced

if TYPE_CHECKING:
    from .dispatch import Operation

HALF = (torch.float16, torch.bfloat16)
#: The condition of :func:`lacks_half` as text.
LACKS_HALF = 'float16 or bfloat16 on a CPU without instructions for it'


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    """Return whether autograd will need the inputs of an operation on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_channels_last(x: Tensor) -> bool:
    """Return whether a map ``(B, C, H, W)`` lies in memory as a contiguous ``(B, H, W, C)``."""
    if is_traced() and not torch.jit.is_tracing():
        # For dynamic sizes, Dynamo evaluates the check below to False (torch 2.11).
        return x.ndim == 4 and x.permute(0, 2, 3, 1).is_contiguous()
    return x.is_contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=None)
def cpu_convolves(dtype: torch.dtype) -> bool:
    """Return whether this CPU has fast convolutions and matrix products in ``dtype``.

    Without AVX-512 or the like, PyTorch (2.1 to 2.11) convolves bfloat16 and float16 with scalar code, tens of times
    slower than float32, or raises an error.
    """
    if dtype not in HALF:
        return True
    name = '_is_mkldnn_bf16_supported' if dtype == torch.bfloat16 else '_is_mkldnn_fp16_supported'
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and supported()


def lacks_half(x: Tensor, *_: Any) -> bool:
    """Return whether ``x`` is a half-precision tensor on a CPU that is slow with it."""
    return x.device.type == 'cpu' and not cpu_convolves(x.dtype)


def in_float32(op: 'Operation') -> Callable[..., Tensor]:
    """Build an implementation of an operation that computes in float32 and converts the result to the map's dtype."""

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) else value

    def float32(x: Tensor, *args: Any) -> Tensor:
        return op(x.float(), *map(widened, args)).to(x.dtype)

    return float32


def register_flops(operator: Any, formula: Optional[Callable[..., int]] = None) -> None:
    """Register the FLOP formula of an operator with ``torch.utils.flop_counter``.

    Registration waits until the counter is imported, because that import loads Triton (50 MiB), which CPUs do not need.

    Args:
        operator (OpOverloadPacket): Operator of a map, whose size it keeps, and, among its other arguments, of the
            weights ``(D, C / groups, k, k)`` of one convolution or several.
        formula (Callable, optional): Function of the operator's arguments, with shapes instead of tensors, that returns
            the cost; default: two per position and weight element.
    """
    _counted.append((operator, formula or _flops))
    if _COUNTER in sys.modules:
        register_flop_formulas()
    elif len(_counted) == 1:
        sys.meta_path.insert(0, _CounterFinder())


_COUNTER = 'torch.utils.flop_counter'
_counted: List[Tuple[Any, Callable[..., int]]] = []


def register_flop_formulas() -> None:
    """Register the formulas with PyTorch's counter, which only knows formulas registered before it is created."""
    try:
        from torch.utils.flop_counter import flop_registry, register_flop_formula
    except ImportError:  # before torch 2.2
        return
    for operator, formula in _counted:
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)


class _CounterFinder(importlib.abc.MetaPathFinder):
    """Import hook that registers the formulas with PyTorch's counter as soon as something imports the counter."""

    is_searching = False

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != _COUNTER or self.is_searching:
            return None
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_searching = False
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                register_flop_formulas()

            loader.exec_module = exec_module
        return spec


def _flops(x_shape: Sequence[int], *others: Any, **_: Any) -> int:
    weights = (shape for shape in others if isinstance(shape, (tuple, list)) and len(shape) == 4)
    return 2 * x_shape[0] * math.prod(x_shape[2:]) * sum(map(math.prod, weights))


__getattr__ = renamed_in(__name__)
