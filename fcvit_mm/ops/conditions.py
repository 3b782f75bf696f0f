"""What the rules of several operations ask about tensors and processors."""

from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from .dispatch import Operation

HALF = (torch.float16, torch.bfloat16)


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    """Whether autograd will want what an operation on these tensors computes from."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_nhwc(x: Tensor) -> bool:
    """Whether a map ``(B, C, H, W)`` lies in memory as a contiguous ``(B, H, W, C)``."""
    return x.is_contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=None)
def cpu_convolves(dtype: torch.dtype) -> bool:
    """Whether this CPU has fast convolutions and matrix products in ``dtype``.

    Without AVX-512 or the like, PyTorch (2.1 to 2.11) convolves bfloat16 and float16 with scalar code, tens of times
    slower than float32, or refuses.
    """
    if dtype not in HALF:
        return True
    name = '_is_mkldnn_bf16_supported' if dtype == torch.bfloat16 else '_is_mkldnn_fp16_supported'
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and supported()


def lacks_half(x: Tensor) -> bool:
    """Whether ``x`` is a half-precision tensor on a CPU that is slow with it."""
    return x.device.type == 'cpu' and not cpu_convolves(x.dtype)


def add_float32_form(op: Operation) -> None:
    """Give an operation a form in float32 arithmetic for half-precision maps on a CPU that is slow with them."""

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) else value

    @op.fast('float32', when=lambda x, *_: lacks_half(x))
    def _(x: Tensor, *args) -> Tensor:
        return op(x.float(), *map(widened, args)).to(x.dtype)
