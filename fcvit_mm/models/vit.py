"""ViT (DeiT's variant) with AttnScale, FeatScale or both.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
OpenReview O476oWmiNNp; Touvron et al., "Training data-efficient image transformers & distillation through attention",
arXiv 2012.12877.
"""

from typing import Sequence, Union

import torch.nn as nn
from torch import Tensor

from ..deprecation import deprecated_class
from ..registry import MODELS
from .backbone import InitCfg, resolve_arch
from .oversmoothing import check_methods
from .stages import Stage, drop_path_rates
from .transformer import (
    TokenEmbed,
    TokenTransformer,
    check_transformer,
    grid_of,
    import_timm_blocks,
    init_transformer_weights_,
)
from .transformer_names import VIT


@MODELS.register_module()
class ViT(TokenTransformer):
    """ViT as in DeiT (class token, pre-norm) with AttnScale, FeatScale or both.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2012.12877 (DeiT).

    Args:
        arch (str | dict): A variant of ``ViT.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``num_heads`` (tuples of one value: there is one stage).
        methods (Sequence[str]): ``'attn_scale'``, ``'feat_scale'``, both, or none for the unmodified ViT.
        img_size (int | Sequence[int]): Image size that the position embeddings are made for. Any other works: they
            are resized, and images are padded to a multiple of the patch size.
        patch_size (int): Side of a patch, a multiple of 4.
        in_channels (int): Channels of the images.
        out_type (str): ``'cls_token'`` for classification; ``'pyramid'`` for dense prediction, a simple feature
            pyramid (see :class:`TokenTransformer`) in which every level ends in a norm of its own.
        out_indices (int | Sequence[int], optional): Levels of the pyramid; ``None`` for all four. Levels that are not
            returned are not built.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        frozen_stages (int): -1 freezes nothing, 0 the stem, ``n`` the stem and the first ``n`` blocks.
        norm_eval, with_cp, init_cfg: See :class:`Backbone`. Weights of an unmodified DeiT may be given: the
            parameters of the methods then start as the identity.

    Shape:
        ``(B, in_channels, H, W)`` to ``((B, C), )`` for the class token, else to a tuple, one map
        ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each of ``out_indices`` in ascending order, ``C_i`` of
        ``C / 4, C / 2, C, C`` in ``out_channels`` and ``s_i`` (4, 8, 16, 32 for patches of 16) in ``out_strides``.

    Raises:
        ImportError: timm is not installed.
        ValueError: An unknown ``arch``, method or ``out_type``, heads that do not divide the channels, ...

    Example:
        >>> import torch, fcvit_mm
        >>> backbone = fcvit_mm.ViT('small_12', methods=('attn_scale', 'feat_scale'))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 384, 2, 3)]
    """

    #: Variants, one row each: width and depth.
    arch_settings = {
        'small_12': dict(depths=(12,), channels=(384,), num_heads=(6,)),
        'small_24': dict(depths=(24,), channels=(384,), num_heads=(6,)),
        'base_12': dict(depths=(12,), channels=(768,), num_heads=(12,)),
        'base_24': dict(depths=(24,), channels=(768,), num_heads=(12,)),
    }
    published_names = VIT

    def __init__(
        self,
        arch: Union[str, dict] = 'small_12',
        methods: Sequence[str] = ('attn_scale',),
        img_size: Union[int, Sequence[int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_type: str = 'pyramid',
        out_indices: Union[None, int, Sequence[int]] = None,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        settings = resolve_arch(
            arch, self.arch_settings, per_stage=('depths', 'channels', 'num_heads'), defaults={}, num_stages=1
        )
        (depth,), (channels,), (num_heads,) = settings['depths'], settings['channels'], settings['num_heads']
        check_transformer((channels,), (num_heads,), drop_path_rate)
        methods = check_methods(methods)
        super().__init__(
            channels,
            depth,
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
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.stem = TokenEmbed(in_channels, channels, patch_size, grid_of(img_size, patch_size), class_token=True)
        blocks = [blocks_of_timm.ViTBlock(channels, num_heads, rate, methods) for rate in rates]
        self.stages = nn.ModuleList([Stage(nn.Identity(), blocks, with_cp)])
        self.build_outputs(channels)
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def class_token(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def patches(self, x: Tensor) -> Tensor:
        return x[:, 1:]


ScaledViT = deprecated_class('ScaledViT', ViT, __name__, dict(remedies='methods'))
MODELS.register_module(module=ScaledViT)
