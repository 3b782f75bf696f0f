"""ViT, CaiT and Swin with AttnScale, FeatScale or both.

The methods (``oversmoothing.py``) are one idea; the transformers are timm's, whose blocks ``timm_blocks.py`` opens for
them. timm rather than mmpretrain, because it is the lighter of the two and the same in every stack. It is imported when
one of these networks is built: ``import fcvit_mm`` needs none.
"""

from collections import OrderedDict
from typing import Dict, Iterator, Sequence, Tuple, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dependencies import require
from ..deprecation import deprecated_class
from ..registry import MODELS
from .backbone import Backbone, resolve_arch
from .layers import LayerNorm2d, Stage, check_image_batch, drop_path_rates, is_plain, pad_to_multiple
from .oversmoothing import check_methods, fit_table, resample_table

OUT_TYPES = ('pyramid', 'cls_token')


def timm_blocks():
    """The module of the blocks.

    Raises:
        ImportError: timm is not installed; with the command that installs it.
    """
    require('timm')
    from . import timm_blocks

    return timm_blocks


def init_transformer_weights_(module: nn.Module) -> None:
    """As DeiT, CaiT and Swin start: linear weights truncated normal 0.02, biases 0; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_transformer(channels: Sequence[int], num_heads: Sequence[int], drop_path_rate: float) -> None:
    """Refuse heads that do not divide their channels, and rates that are none."""
    for width, heads in zip(channels, num_heads):
        if width % heads:
            raise ValueError(
                f'arch has num_heads={tuple(num_heads)} for channels={tuple(channels)}, expected heads '
                f'that divide them: {heads} does not divide {width}'
            )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}, expected 0 or more and less than 1')


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout for outputs: the images' own, for mmcv's RoIAlign on CPU reads any memory as if it were contiguous."""
    return torch.contiguous_format if is_plain(x) else torch.channels_last


class TokenEmbed(nn.Module):
    """Patches, a class token if wanted, and position embeddings.

    Args:
        in_channels (int): Channels of the images.
        channels (int): ``C``.
        patch_size (int): Side of a patch, and its stride.
        grid (tuple[int]): Patches in height and width that the position embeddings are made for; they are resized for
            other images, and when a checkpoint has them for another grid.
        class_token (bool): Whether a class token comes first.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, N, C)`` and the grid; images are padded to whole patches.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int, grid: Tuple[int, int], class_token: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch_size = patch_size
        self.num_extra = int(class_token)
        self.proj = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_extra + grid[0] * grid[1], channels))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if class_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        x = self.proj(pad_to_multiple(x, self.patch_size))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x), 1)
        return x + resample_table(self.pos_embed, self.grid, grid), grid


class ClassAttentionStage(nn.Module):
    """CaiT's last blocks: a class token that looks at the patches. ``(B, N, C)`` to the token ``(B, 1, C)``."""

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


class Transformer(Backbone):
    """A backbone with learned tables of positions, which loading resizes, by whatever way weights come in."""

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        """Each table's name, the number of rows before those of its grid, and the grid."""
        raise NotImplementedError

    def fit_state_dict(self, state_dict: Dict[str, Tensor], prefix: str = '') -> Dict[str, Tensor]:
        """Weights with tables resized to this network's.

        Raises:
            ValueError: A table of other size whose grid is not square.
        """
        result = OrderedDict(state_dict)
        for name, extra, grid in self.tables():
            if f'{prefix}{name}' in result:
                result[f'{prefix}{name}'] = fit_table(
                    result[f'{prefix}{name}'], self.get_parameter(name), extra, grid, name
                )
        return result

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Called before the children's, which read what stands in state_dict then. It is the caller's copy.
        state_dict.update(self.fit_state_dict(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class PlainTransformer(Transformer):
    """What ViT and CaiT share: one stage of blocks at one resolution, and what is made of its last map.

    Source of the pyramid: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv
    2203.16527, section 3: transposed convolutions and a pooling from the last map alone. The lateral convolutions are
    left to the neck: mmdet's FPN, or its ChannelMapper for a pyramid without a top-down path. Attention stays global.

    A subclass builds ``stem`` and ``stages`` and says what the class token and the patches are.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        patch_size: int,
        in_channels: int,
        out_type: str,
        out_indices: Union[None, int, Sequence[int]],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg,
    ) -> None:
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type={out_type!r}, expected one of {OUT_TYPES}')
        if patch_size < 4 or patch_size % 4 or channels % 4:
            raise ValueError(f'patch_size={patch_size} and channels={channels}, expected multiples of 4')
        if out_type == 'cls_token':
            if out_indices is not None:
                raise ValueError(
                    f"out_indices={out_indices!r} with out_type='cls_token': the class token has no "
                    "levels; leave out_indices out, or take out_type='pyramid'"
                )
            widths, strides, out_indices = (channels,), (patch_size,), 0
        else:
            widths = (channels // 4, channels // 2, channels, channels)
            strides = (patch_size // 4, patch_size // 2, patch_size, patch_size * 2)
            out_indices = (0, 1, 2, 3) if out_indices is None else out_indices
        super().__init__(widths, strides, out_indices, -1, norm_eval, with_cp, init_cfg)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= depth:
            raise ValueError(
                f'frozen_stages={frozen_stages!r}, expected -1 (none), 0 (the stem) or up to {depth} '
                '(the stem and all blocks)'
            )
        self.frozen_stages = frozen_stages
        self.in_channels = in_channels
        self.out_type = out_type

    def _build_outputs(self, channels: int) -> None:
        if self.out_type == 'cls_token':
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            return
        levels = (
            lambda: (
                nn.ConvTranspose2d(channels, channels // 2, 2, 2),
                LayerNorm2d(channels // 2),
                nn.GELU(),
                nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2),
            ),
            lambda: (nn.ConvTranspose2d(channels, channels // 2, 2, 2),),
            lambda: (),
            lambda: (nn.MaxPool2d(2, 2, ceil_mode=True),),
        )
        self.pyramid = nn.ModuleDict({f'level{i}': nn.Sequential(*levels[i]()) for i in self.out_indices})
        for i, width in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(width))

    def freeze_stages(self) -> None:
        """Freeze what ``frozen_stages`` names, the stem and so many blocks: no gradients, evaluation mode."""
        if self.frozen_stages < 0:
            return
        for part in (self.stem, *self.stages[0].blocks[: self.frozen_stages]):
            part.eval()
            part.requires_grad_(False)

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        yield 'stem.pos_embed', self.stem.num_extra, self.stem.grid

    def class_token(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` after the blocks to the class token ``(B, C)``, before the norm."""
        raise NotImplementedError

    def patches(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` after the blocks to that of the patches."""
        raise NotImplementedError

    def forward_tokens(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """``(B, in_channels, H, W)`` to what the blocks give, ``(B, N, C)``, and the grid of the patches."""
        x, grid = self.stem(x)
        return self.stages[0](x), grid

    def forward_blocks(self, x: Tensor) -> Iterator[Tuple[Tensor, Tuple[int, int]]]:
        """As :meth:`forward_tokens`, but yield after every block, computed when it is asked for; for timm's features.

        Yields:
            tuple[Tensor, tuple[int, int]]: ``(B, N, C)`` and the grid.
        """
        check_image_batch(x, self.in_channels, min_size=1, name=type(self).__name__)
        x, grid = self.stem(x)
        for block in self.stages[0].blocks:
            x = self.stages[0].run(block, x)
            yield x, grid

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        check_image_batch(x, self.in_channels, min_size=1, name=type(self).__name__)
        layout, size = layout_of(x), x.shape[2:]
        x, grid = self.forward_tokens(x)
        if self.out_type == 'cls_token':
            return (self.norm(self.class_token(x)),)
        x = self.patches(x).transpose(1, 2).unflatten(2, grid).contiguous(memory_format=layout)
        outputs = []
        for i, stride in zip(self.out_indices, self.out_strides):
            # Without what the padding added. (Not -(-side // stride): see up_to_multiple.)
            height, width = (size[0] + stride - 1) // stride, (size[1] + stride - 1) // stride
            output = getattr(self, f'norm{i}')(self.pyramid[f'level{i}'](x)[:, :, :height, :width])
            outputs.append(output.contiguous(memory_format=layout))
        return tuple(outputs)


@MODELS.register_module()
class ViT(PlainTransformer):
    """ViT of DeiT's form (class token, pre-norm) with AttnScale, FeatScale or both.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2012.12877 (DeiT).

    Args:
        arch (str | dict): A variant of ``ViT.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``num_heads`` (tuples of one value: there is one stage).
        methods (Sequence[str]): ``'attn_scale'``, ``'feat_scale'``, both, or none for the plain ViT.
        img_size (int | Sequence[int]): Image size that the position embeddings are made for. Any other works: they
            are resized, and images are padded to whole patches.
        patch_size (int): Side of a patch, a multiple of 4.
        in_channels (int): Channels of the images.
        out_type (str): ``'cls_token'`` for classification; ``'pyramid'`` for dense prediction, a simple feature
            pyramid (see :class:`PlainTransformer`) in which every level ends in a norm of its own.
        out_indices (int | Sequence[int], optional): Levels of the pyramid; ``None`` for all four. Levels that are not
            returned are not built.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        frozen_stages (int): -1 freezes nothing, 0 the stem, ``n`` the stem and the first ``n`` blocks.
        norm_eval, with_cp, init_cfg: See :class:`Backbone`. Weights of a plain DeiT may be given: what they lack
            starts as the identity.

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
        init_cfg=None,
    ) -> None:
        settings = resolve_arch(
            arch, self.arch_settings, per_stage=('depths', 'channels', 'num_heads'), defaults={}, num_stages=1
        )
        (depth,), (channels,), (num_heads,) = settings['depths'], settings['channels'], settings['num_heads']
        check_transformer((channels,), (num_heads,), drop_path_rate)
        methods = check_methods(methods)
        super().__init__(
            channels, depth, patch_size, in_channels, out_type, out_indices, frozen_stages, norm_eval, with_cp, init_cfg
        )
        hosts = timm_blocks()
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.stem = TokenEmbed(in_channels, channels, patch_size, grid_of(img_size, patch_size), class_token=True)
        blocks = [hosts.ViTBlock(channels, num_heads, rate, methods) for rate in rates]
        self.stages = nn.ModuleList([Stage(nn.Identity(), blocks, with_cp)])
        self._build_outputs(channels)
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def class_token(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def patches(self, x: Tensor) -> Tensor:
        return x[:, 1:]


@MODELS.register_module()
class CaiT(PlainTransformer):
    """CaiT (talking heads, layer scale, class attention) with AttnScale, FeatScale or both in its patch blocks.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2103.17239 (CaiT). The class-attention blocks have neither
    method; the pyramid does without them.

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
        ValueError: As :class:`ViT`; channels that differ between the two kinds of blocks.
    """

    #: Variants, one row each: patch blocks, then class-attention blocks.
    arch_settings = {
        'xxs24': dict(depths=(24, 2), channels=(192, 192), num_heads=(4, 4)),
        's24': dict(depths=(24, 2), channels=(384, 384), num_heads=(8, 8)),
    }

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
        init_cfg=None,
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
            in_channels,
            out_type,
            out_indices,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
        )
        hosts = timm_blocks()
        self.stem = TokenEmbed(in_channels, channels, patch_size, grid_of(img_size, patch_size), class_token=False)
        blocks = [
            hosts.CaiTBlock(channels, num_heads[0], drop_path_rate, layer_scale_init_value, methods)
            for _ in range(depths[0])
        ]
        self.stages = nn.ModuleList([Stage(nn.Identity(), blocks, with_cp)])
        if out_type == 'cls_token':
            blocks = [
                hosts.ClassAttentionBlock(channels, num_heads[1], layer_scale_init_value) for _ in range(depths[1])
            ]
            self.stages.append(ClassAttentionStage(channels, blocks, with_cp))
        self._build_outputs(channels)
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def class_token(self, x: Tensor) -> Tensor:
        return self.stages[1](x)[:, 0]

    def patches(self, x: Tensor) -> Tensor:
        return x


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
    """Swin with AttnScale in every window, FeatScale over the whole map, or both.

    Source: OpenReview O476oWmiNNp (the methods); arXiv 2103.14030 (Swin).

    Args:
        arch (str | dict): A variant of ``Swin.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``num_heads`` (one value per stage).
        methods (Sequence[str]): ``'attn_scale'``, ``'feat_scale'``, both, or none for the plain Swin.
        window_size (int): Side of a window. Relative-position biases of a checkpoint with another are resized.
        in_channels (int): Channels of the images.
        out_indices (int | Sequence[int]): Stages to return, negative ones counted from the end. Dense prediction
            takes all four, classification the last. Stages past the last of these are not built.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        frozen_stages, norm_eval, with_cp, init_cfg: See :class:`Backbone`. Weights of a plain Swin may be given: what
            they lack starts as the identity.

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
    strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: Union[str, dict] = 'small',
        methods: Sequence[str] = ('attn_scale',),
        window_size: int = 7,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg=None,
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
            raise ValueError(f'window_size={window_size!r}, expected an integer of at least 2')
        methods = check_methods(methods)
        super().__init__(channels, self.strides, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        self.in_channels = in_channels
        self.window_size = window_size
        hosts = timm_blocks()
        self.stem = WindowStem(in_channels, channels[0])
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            downsample = nn.Identity() if i == 0 else hosts.PatchMerging(channels[i - 1], channels[i])
            blocks = [
                hosts.SwinBlock(channels[i], num_heads[i], window_size, j % 2 == 1, rate, methods)
                for j, rate in enumerate(rates[i])
            ]
            self.stages.append(Stage(downsample, blocks, with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(channels[i]))
        self.apply(init_transformer_weights_)
        self.freeze_stages()

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        side = 2 * self.window_size - 1
        for i, stage in enumerate(self.stages):
            for j in range(len(stage.blocks)):
                yield f'stages.{i}.blocks.{j}.attn.relative_position_bias_table', 0, (side, side)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """See :meth:`Backbone.forward_stages`."""
        check_image_batch(x, self.in_channels, min_size=1, name='Swin')
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            yield x.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        check_image_batch(x, self.in_channels, min_size=1, name='Swin')
        layout = layout_of(x)
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                output = getattr(self, f'norm{i}')(x.permute(0, 3, 1, 2))
                outputs.append(output.contiguous(memory_format=layout))
        return tuple(outputs)


def grid_of(img_size: Union[int, Sequence[int]], patch_size: int) -> Tuple[int, int]:
    """Patches in height and width of an image.

    Raises:
        ValueError: The size is not one or two multiples of the patch size.
    """
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 or side % patch_size for side in sides):
        raise ValueError(f'img_size={img_size!r}, expected one or two multiples of patch_size={patch_size}')
    return sides[0] // patch_size, sides[1] // patch_size


ScaledViT = deprecated_class('ScaledViT', ViT, __name__, dict(remedies='methods'))
ScaledCaiT = deprecated_class('ScaledCaiT', CaiT, __name__, dict(remedies='methods'))
ScaledSwin = deprecated_class('ScaledSwin', Swin, __name__, dict(remedies='methods'))
for _old in (ScaledViT, ScaledCaiT, ScaledSwin):
    MODELS.register_module(module=_old)
