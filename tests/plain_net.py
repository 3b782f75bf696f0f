"""A small network without variants and without published names."""

from contextlib import contextmanager
from typing import Any, Iterator

import torch.nn as nn
from torch import Tensor

from fcvit_mm.models import Backbone, variants
from fcvit_mm.models.stages import Stage


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))


class PlainNet(Backbone):
    def __init__(
        self, depths: Any = (2, 1), channels: Any = (8, 16), out_indices: Any = (0, 1), **options: Any
    ) -> None:
        super().__init__(channels, (4, 8), out_indices, **options)
        self.stem = nn.Conv2d(self.in_channels, channels[0], 4, 4)
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = nn.Identity() if i == 0 else nn.Conv2d(channels[i - 1], channels[i], 2, 2)
            blocks = [Block(channels[i]) for _ in range(depths[i])]
            self.stages.append(Stage(downsample, blocks, self.with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.BatchNorm2d(channels[i]))
        self.freeze_stages()


@contextmanager
def temporary_variants() -> Iterator[None]:
    """Unregister the variants that are registered in this context."""
    rows, listeners = dict(variants._variants), list(variants._listeners)
    try:
        yield
    finally:
        variants._variants.clear()
        variants._variants.update(rows)
        variants._listeners[:] = listeners
