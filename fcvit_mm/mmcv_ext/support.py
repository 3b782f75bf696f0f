"""Parts shared by the operators: torchvision's kernels, gradients by recomputation, the error of a missing one."""

from typing import Any, Callable, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import UserError

#: The smallest normal float32: mmcv's kernels keep logarithms finite with it.
TINY = torch.finfo(torch.float32).tiny


class MMCVOperatorError(UserError, NotImplementedError):
    """An operator of mmcv that only its compiled build has.

    Args:
        name (str): The operator, or the part of it, as mmcv calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f'the operator {name} of mmcv is not available: this mmcv was installed without its compiled operators, '
            'and torchvision has none in its place. With a C++ compiler (and nvcc for a GPU), MMCV=compiled make setup '
            'builds it; in an environment of your own: pip install --no-build-isolation --no-cache-dir '
            '--force-reinstall --no-deps onedl-mmcv'
        )


def torchvision_kernels() -> Any:
    """Return torchvision's registered operators."""
    import torchvision  # noqa: F401 (registers them)

    return torch.ops.torchvision


def recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> Tuple[Tensor, ...]:
    """Return the gradients of ``function(*inputs)`` with respect to ``inputs``."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
