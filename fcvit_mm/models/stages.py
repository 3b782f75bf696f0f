"""Parts that backbones are built from: patch embeddings, stages of blocks, and rates of stochastic depth."""

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import ContextManager, Iterator, List, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .fusion import fuse_batch_norm_
from .layers import Conv2d


class PatchEmbed(nn.Module):
    """Patch embedding, as the stem or between stages: a strided convolution and BatchNorm.

    Source: arXiv 2212.12552, section 4 and its published code.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Side of the convolution's kernel.
        stride (int): Stride of the convolution.
        dilation (int): Dilation of the convolution; the padding is ``kernel_size // 2`` times that.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    norm: nn.Module

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.proj = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))

    def fuse_(self) -> None:
        """Fuse the BatchNorm into the convolution, in place, for inference."""
        self.norm = fuse_batch_norm_(self.proj, self.norm)


class Stage(nn.Module):
    """Patch embedding, followed by blocks at one resolution.

    Args:
        downsample (nn.Module): Patch embedding between stages; ``nn.Identity`` in the first.
        blocks (Sequence[nn.Module]): Blocks, each of which keeps the shape.
        with_cp (bool): Recompute each block's activations in the backward pass instead of storing them.

    Shape:
        ``(B, C_previous, H, W)`` to ``(B, C, ceil(H / 2), ceil(W / 2))``; the first stage keeps the size.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block; if ``with_cp``, its activations are recomputed in the backward pass."""
        return recomputed(block, x) if self.with_cp and torch.is_grad_enabled() else block(x)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Run ``block(x)`` with activation checkpointing; BatchNorms still count the batch once."""
    if any(isinstance(module, _BatchNorm) for module in block.modules()):
        contexts = partial(_first_and_second_pass, block)
        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return checkpoint(block, x, use_reentrant=False)


def _first_and_second_pass(block: nn.Module) -> Tuple[ContextManager[None], ContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorms in training unchanged."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    momenta, batches = [norm.momentum for norm in norms], [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for count, batch in zip(counts, batches):
            count.copy_(batch)


def drop_path_rates(rate: float, depths: Sequence[int]) -> List[List[float]]:
    """Return rates of stochastic depth, which grow linearly with the block's index, grouped by stage.

    Args:
        rate (float): The last block's rate.
        depths (Sequence[int]): Blocks per stage.

    Returns:
        list[list[float]]: One rate per block, ``rate * index / (blocks - 1)``.
    """
    last = max(sum(depths) - 1, 1)
    rates = iter([rate * index / last for index in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]
