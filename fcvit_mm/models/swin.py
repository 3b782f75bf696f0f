"""Swin with AttnScale, FeatScale or both.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
OpenReview O476oWmiNNp; Liu et al., "Swin Transformer", arXiv 2103.14030.
"""

from typing import Iterator, Sequence, Tuple, Union

import torch.nn as nn
from torch import Tensor

from ..deprecation import deprecated_class
from ..registry import MODELS
from .backbone import InitCfg, dilate, resolve_arch
from .layers import LayerNorm2d
from .oversmoothing import check_methods
from .padding import pad_to_multiple
from .stages import Stage, drop_path_rates
from .transformer import Transformer, check_transformer, import_timm_blocks, init_transformer_weights_
from .transformer_names import SWIN


class WindowStem(nn.Module):
    """Swin's patch embedding. ``(B, in_channels, H, W)`` to ``(B, ceil(H / 4), ceil(W / 4), C)``."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(pad_to_multiple(x, 4)).permute(0, 2, 3, 1))


@MODELS.register_module()
class Swin(Transformer):
    """Swin with AttnScale in every window, FeatScale over the map, or both.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2103.14030 (Swin).

    Args:
        arch (str | dict): A variant of ``Swin.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``num_heads`` (one value per stage).
        methods (Sequence[str]): ``'attn_scale'``, ``'feat_scale'``, both, or none for the unmodified Swin.
        window_size (int): Side of a window. Relative-position biases of a checkpoint with another are resized.
        in_channels (int): Channels of the images.
        out_indices (int | Sequence[int]): Stages to return, negative ones counted from the end. Dense prediction
            takes all four, classification the last. Stages past the last of these are not built.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        output_stride (int): Largest stride, one of ``strides``. Stages that would go beyond it are dilated, with
            the same weights: the positions of a window are then as far apart as the dilation.
        frozen_stages, norm_eval, with_cp, init_cfg: See :class:`Backbone`. Weights of an unmodified Swin may be given:
            the parameters of the methods then start as the identity.

    Shape:
        ``(B, in_channels, H, W)`` to a tuple, one map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each of
        ``out_indices`` in ascending order, ``C_i`` in ``out_channels`` and ``s_i`` in ``out_strides``.

    Raises:
        ImportError: timm is not installed.
        ValueError: An unknown ``arch`` or method, heads that do not divide the channels, ...
    """

    #: Variants, one row each.
    arch_settings = {
        'small': dict(depths=(2, 2, 18, 2), channels=(96, 192, 384, 768), num_heads=(3, 6, 12, 24)),
    }
    published_names = SWIN
    strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: Union[str, dict] = 'small',
        methods: Sequence[str] = ('attn_scale',),
        window_size: int = 7,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        settings = resolve_arch(
            arch,
            self.arch_settings,
            per_stage=('depths', 'channels', 'num_heads'),
            defaults={},
            num_stages=len(self.strides),
        )
        depths, channels, num_heads = settings['depths'], settings['channels'], settings['num_heads']
        check_transformer(channels, num_heads, drop_path_rate)
        if not isinstance(window_size, int) or window_size < 2:
            raise ValueError(f'window_size is {window_size!r}, expected an integer of at least 2')
        methods = check_methods(methods)
        dilations = dilate(self.strides, output_stride)
        super().__init__(
            channels,
            [min(stride, output_stride) for stride in self.strides],
            out_indices,
            in_channels=in_channels,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.window_size = window_size
        blocks_of_timm = import_timm_blocks()
        self.stem = WindowStem(in_channels, channels[0])
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            before = dilations[max(i - 1, 0)]
            downsample: nn.Module
            if i == 0:
                downsample = nn.Identity()
            elif dilations[i] == before:
                downsample = blocks_of_timm.PatchMerging(channels[i - 1], channels[i])
            else:
                downsample = blocks_of_timm.DilatedPatchMerging(channels[i - 1], channels[i], before)
            blocks = [
                blocks_of_timm.SwinBlock(
                    channels[i], num_heads[i], window_size, j % 2 == 1, rate, methods, dilations[i]
                )
                for j, rate in enumerate(rates[i])
            ]
            self.stages.append(Stage(downsample, blocks, with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(channels[i]))
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        """See :meth:`Transformer.tables`."""
        side = 2 * self.window_size - 1
        for name, _ in self.named_parameters():
            if name.endswith('relative_position_bias_table'):
                yield name, 0, (side, side)

    def to_map(self, x: Tensor) -> Tensor:
        """Return ``(B, H, W, C)``, as stages pass it on, as ``(B, C, H, W)``."""
        return x.permute(0, 3, 1, 2)


ScaledSwin = deprecated_class('ScaledSwin', Swin, __name__, dict(remedies='methods'))
MODELS.register_module(module=ScaledSwin)
