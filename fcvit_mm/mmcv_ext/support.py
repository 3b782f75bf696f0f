"""Parts shared by the operators: torchvision's kernels, and gradients by recomputation."""

from typing import Any, Callable, Sequence, Tuple

import torch
from torch import Tensor

#: The smallest normal float32: mmcv's kernels keep logarithms finite with it.
TINY = torch.finfo(torch.float32).tiny


def torchvision_kernels() -> Any:
    """Return torchvision's registered operators."""
    import torchvision  # noqa: F401 (registers them)

    return torch.ops.torchvision


def for_torchvision(x: Tensor) -> Tensor:
    """Convert a tensor for torchvision's kernels: to contiguous memory, which they assume; bfloat16 to float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).contiguous()


def recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> Tuple[Tensor, ...]:
    """Return the gradients of ``function(*inputs)`` with respect to ``inputs``."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
