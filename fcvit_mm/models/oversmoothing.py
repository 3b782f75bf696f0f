"""AttnScale and FeatScale, two methods against oversmoothing in deep transformers.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
OpenReview O476oWmiNNp. Self-attention is a low-pass filter: with depth only the tokens' mean (DC) survives. Both
methods scale what is not the mean, and start as the identity: every new parameter is 0 at first.
"""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..deprecation import renamed_in

#: The methods, by the names that the networks take.
METHODS = ('attn_scale', 'feat_scale')


def check_methods(methods: Sequence[str]) -> Tuple[str, ...]:
    """Return the methods as a tuple; an empty one for the unmodified transformer.

    Raises:
        TypeError: ``methods`` is not a sequence of names, but for example a single string.
        ValueError: A name that is none of ``METHODS``, or one given twice.
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise TypeError(
            f'methods is {methods!r}, expected a sequence of names out of {METHODS}, such as {METHODS[:1]}; an empty '
            'one gives the unmodified transformer'
        )
    unknown = [method for method in methods if method not in METHODS]
    if unknown or len(set(methods)) != len(methods):
        raise ValueError(
            f'methods is {methods!r}, expected each of {METHODS} at most once'
            + (f': {unknown[0]!r} is unknown' if unknown else '')
        )
    return tuple(methods)


def attn_scale(attended: Tensor, values: Tensor, lamb: Optional[Tensor]) -> Tensor:
    """Apply AttnScale without the attention matrix: ``A' v`` for ``A' = 1/N + (A - 1/N) (1 + lamb)``.

    ``A' v = (1 + lamb) (A v) - lamb mean(v)``, so any attention that returns ``A v`` can be used, fused attention too.

    Args:
        attended (Tensor): ``A v``, ``(..., H, N, d)``.
        values (Tensor): ``v`` of the ``N`` tokens, ``(..., H, N, d)``.
        lamb (Tensor, optional): ``(H, )``; ``None``: ``A v`` is returned unchanged.

    Returns:
        Tensor: ``(..., H, N, d)``.
    """
    if lamb is None:
        return attended
    mean = values.mean(-2, keepdim=True)
    # A v + (-lamb) (mean - A v) in one pass. In half precision, 1 + lamb would lose a small lamb to rounding.
    return torch.lerp(attended, mean.to(attended.dtype), -lamb[:, None, None].to(attended.dtype))


class AttnScaleHeadMixing(nn.Linear):
    """Talking heads' mixing after the softmax (arXiv 2003.02436) and AttnScale of its result.

    Mixing heads needs the attention matrix ``A`` anyway, and ``A' = (1 + lamb) A - lamb / N`` is fused into the weight
    and bias of the mixing: AttnScale adds no pass over the matrix.

    Args:
        num_heads (int): ``H``.

    Shape:
        ``(B, N, N, H)`` to the same.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__(num_heads, num_heads)
        self.lamb = nn.Parameter(torch.zeros(num_heads))

    def forward(self, attention: Tensor) -> Tensor:
        scale = 1 + self.lamb
        bias = scale * self.bias - self.lamb / attention.shape[2]
        return F.linear(attention, scale[:, None] * self.weight, bias)


class FeatScale(nn.Module):
    """``y + factor (lamb1 dc + lamb2 (y - dc))`` with ``dc`` the mean of ``y`` over the tokens.

    Args:
        channels (int): ``C``.
        factor (float): 2 in the published ViT models, 1 in the published CaiT and Swin models.

    Shape:
        ``(B, N, C)`` or ``(B, H, W, C)`` to the same.
    """

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.lamb1 = nn.Parameter(torch.zeros(channels))
        self.lamb2 = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        dc = y.mean(tuple(range(1, y.ndim - 1)), keepdim=True)
        low, high = self.lamb1.to(y.dtype), self.lamb2.to(y.dtype)
        return y + (self.factor * low * dc + self.factor * high * (y - dc))

    def extra_repr(self) -> str:
        return f'{len(self.lamb1)}, factor={self.factor}'


__getattr__ = renamed_in(__name__)
