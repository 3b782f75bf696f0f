"""CaiT with AttnScale, FeatScale or both.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
OpenReview O476oWmiNNp; Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239.
"""

from typing import Sequence, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..deprecation import deprecated_class
from ..ops.tracing import call
from ..registry import MODELS
from .backbone import InitCfg, resolve_arch
from .oversmoothing import check_methods
from .stages import Stage
from .transformer import (
    TokenEmbed,
    TokenTransformer,
    check_transformer,
    grid_of,
    import_timm_blocks,
    init_transformer_weights_,
)
from .transformer_names import CAIT


class ClassAttentionStage(nn.Module):
    """CaiT's last blocks: a class token attends to the patches. ``(B, N, C)`` to the token ``(B, 1, C)``."""

    def __init__(self, channels: int, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        token = self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                token = checkpoint(block, x, token, use_reentrant=False)
            else:
                token = block(x, token)
        return token


@MODELS.register_module()
class CaiT(TokenTransformer):
    """CaiT (talking heads, layer scale, class attention) with AttnScale, FeatScale or both in its patch blocks.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2103.17239 (CaiT). The class-attention blocks are unmodified,
    and the pyramid does not use them.

    Args:
        arch (str | dict): A variant of ``CaiT.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``num_heads``: two values each, of the patch blocks and the class-attention blocks, with the same channels.
        layer_scale_init_value (float): Initial layer scale.
        drop_path_rate (float): Stochastic depth of every patch block.
        methods, img_size, patch_size, in_channels, out_type, out_indices: See :class:`ViT`.
        frozen_stages, norm_eval, with_cp, init_cfg: See :class:`ViT`; the blocks are the patch blocks.

    Shape:
        As :class:`ViT`.

    Raises:
        ImportError: timm is not installed.
        ValueError: See :class:`ViT`; or channels differ between the two kinds of blocks.
    """

    #: Variants, one row each: patch blocks, then class-attention blocks.
    arch_settings = {
        'xxs24': dict(depths=(24, 2), channels=(192, 192), num_heads=(4, 4)),
        's24': dict(depths=(24, 2), channels=(384, 384), num_heads=(8, 8)),
    }
    published_names = CAIT

    def __init__(
        self,
        arch: Union[str, dict] = 'xxs24',
        methods: Sequence[str] = ('attn_scale',),
        img_size: Union[int, Sequence[int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_type: str = 'pyramid',
        out_indices: Union[None, int, Sequence[int]] = None,
        layer_scale_init_value: float = 1e-5,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        settings = resolve_arch(
            arch, self.arch_settings, per_stage=('depths', 'channels', 'num_heads'), defaults={}, num_stages=2
        )
        depths, num_heads, channels = settings['depths'], settings['num_heads'], settings['channels'][0]
        if settings['channels'][1] != channels:
            raise ValueError(
                f'arch has channels={tuple(settings["channels"])}, expected the same for patch blocks and '
                'class-attention blocks'
            )
        check_transformer(settings['channels'], num_heads, drop_path_rate)
        methods = check_methods(methods)
        super().__init__(
            channels,
            depths[0],
            patch_size,
            out_type,
            out_indices,
            frozen_stages,
            in_channels=in_channels,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        blocks_of_timm = import_timm_blocks()
        self.stem = TokenEmbed(in_channels, channels, patch_size, grid_of(img_size, patch_size), class_token=False)
        blocks = [
            blocks_of_timm.CaiTBlock(channels, num_heads[0], drop_path_rate, layer_scale_init_value, methods)
            for _ in range(depths[0])
        ]
        self.stages = nn.ModuleList([Stage(nn.Identity(), blocks, with_cp)])
        if out_type == 'cls_token':
            blocks = [
                blocks_of_timm.ClassAttentionBlock(channels, num_heads[1], layer_scale_init_value)
                for _ in range(depths[1])
            ]
            self.stages.append(ClassAttentionStage(channels, blocks, with_cp))
        self.build_outputs(channels)
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def class_token(self, x: Tensor) -> Tensor:
        return call(self.stages[1], x)[:, 0]

    def patches(self, x: Tensor) -> Tensor:
        return x


ScaledCaiT = deprecated_class('ScaledCaiT', CaiT, __name__, dict(remedies='methods'))
MODELS.register_module(module=ScaledCaiT)
