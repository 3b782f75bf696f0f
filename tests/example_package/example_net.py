"""An example of another package: a network and its row."""

from pathlib import Path
from typing import Any, Sequence, Union

import torch.nn as nn
from mmengine.registry import MODELS
from torch import Tensor

from fcvit_mm.models import Backbone
from fcvit_mm.models.fusion import fuse_batch_norm_
from fcvit_mm.models.layers import DropPath
from fcvit_mm.models.stages import PatchEmbed, Stage, drop_path_rates
from fcvit_mm.models.variants import Variant, register_variant


class Block(nn.Module):
    """A residual branch of a depth-wise convolution, BatchNorm, and a 1x1 convolution."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pointwise(self.norm(self.spatial(x)).relu()))

    def fuse_(self) -> None:
        self.norm = fuse_batch_norm_(self.spatial, self.norm)


@MODELS.register_module()
class ExampleNet(Backbone):
    """Four stages of blocks, for tests: ``(B, 3, H, W)`` to maps of strides 4, 8, 16 and 32."""

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int] = (8, 12, 16, 20),
        depths: Sequence[int] = (1, 1, 2, 1),
        drop_path_rate: float = 0.0,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        **options: Any,
    ) -> None:
        super().__init__(channels, self.strides, out_indices, **options)
        rates = drop_path_rates(drop_path_rate, depths)
        self.stem = PatchEmbed(self.in_channels, channels[0], 7, 4)
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = nn.Identity() if i == 0 else PatchEmbed(channels[i - 1], channels[i], 3, 2)
            self.stages.append(Stage(downsample, [Block(channels[i], rate) for rate in rates[i]], self.with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.BatchNorm2d(channels[i]))
        self.freeze_stages()


VARIANT = register_variant(
    Variant(
        'example_net',
        ExampleNet,
        dict(out_indices=(3,)),
        crop=0.9,
        paper='arXiv:0',
        collection='ExampleNet',
        config=str(Path(__file__).with_name('example_net_in1k.py')),
    )
)
