"""Scaled residual: the addition of a residual branch with layer scale and stochastic depth."""

from typing import Any, Optional, Tuple

from torch import Tensor

from . import native, triton
from .checks import check_arguments
from .conditions import is_channels_last, needs_grad
from .dispatch import Implementation, operation


def _check(x: Tensor, branch: Tensor, scale: Optional[Tensor] = None, keep: Optional[Tensor] = None) -> None:
    shape: Tuple[int, ...] = tuple(x.shape) if isinstance(x, Tensor) and x.ndim == 4 else ()
    check_arguments(
        'add_scaled', x, any_dtype=True, branch=(branch, shape), scale=(scale, shape[1:2]), keep=(keep, shape[:1])
    )


def _example(x: Tensor) -> Tuple[Any, ...]:
    return x, x.new_empty(x.shape).normal_(), x.new_empty(x.shape[1]).normal_()


@operation(_check, _example)
def add_scaled(x: Tensor, branch: Tensor, scale: Optional[Tensor] = None, keep: Optional[Tensor] = None) -> Tensor:
    """Add a branch to a map, times a scale per channel (layer scale) and a factor per image (stochastic depth).

    Source: Touvron et al., arXiv 2103.17239 (layer scale); Huang et al., arXiv 1603.09382 (stochastic depth).

    Args:
        x (Tensor): ``(B, C, H, W)``.
        branch (Tensor): The same shape.
        scale (Tensor, optional): ``(C,)``.
        keep (Tensor, optional): ``(B,)``; it gets no gradient.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    if scale is not None:
        branch = branch * scale[:, None, None]
    return x + (branch if keep is None else branch * keep.detach()[:, None, None, None])


def _fuses(x: Tensor, branch: Tensor, scale: Optional[Tensor] = None, keep: Optional[Tensor] = None) -> bool:
    there_is_more = scale is not None or keep is not None
    return there_is_more and triton.applies(x) and is_channels_last(x) and branch.dtype in triton.DTYPES


def _native_applies(x: Tensor, branch: Tensor, scale: Optional[Tensor] = None, keep: Optional[Tensor] = None) -> bool:
    tensors = (x, branch, scale)
    return (
        scale is not None
        and keep is None
        and native.applies(*tensors)
        and is_channels_last(branch)
        and not needs_grad(*tensors)
    )


def _native(x: Tensor, branch: Tensor, scale: Tensor, keep: None = None) -> Tensor:
    return native.add_scaled(x, branch, scale)


add_scaled.implementations = (
    Implementation(
        'triton',
        triton.add_scaled,
        when=_fuses,
        condition=f'{triton.APPLIES}; channels_last; a scale or a factor; not in compiled graphs',
        why='reads 2 maps and writes 1, where PyTorch moves 5 to 8: 2.2 to 2.7 times the speed on an H100 (compilers '
        'fuse it themselves)',
    ),
    Implementation(
        'native',
        _native,
        when=_native_applies,
        condition=f'a scale and no factor; {native.APPLIES}; no gradients needed; not in compiled graphs',
        why='one pass instead of two: 1.4 to 2.0 times the speed (compilers fuse it themselves)',
    ),
)
