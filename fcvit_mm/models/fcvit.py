"""FCViT, a convolutional network with one global context per image.

Source: Ma et al., "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552.

In deep Vision Transformers the attention map hardly depends on the query, and is sparse. FCViT therefore uses no
queries: it computes one global context vector per image, adds it at every position, weighted by the similarity of that
position to the image's mean, and mixes neighbouring positions with large depth-wise convolutions. Any input size works.

Shapes below: ``B`` images, ``C`` channels, ``H, W`` the stage's height and width, ``h`` heads of ``d = C / h``.
"""

from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Union

import torch
import torch.nn as nn
from torch import Tensor

from ..ops import (
    add_global_context,
    bottleneck,
    channel_means,
    channel_mixer,
    native,
    normalized_similarity,
    recomputed_channel_mixer,
)
from ..registry import MODELS
from .backbone import Backbone, InitCfg, dilate, resolve_arch
from .fcvit_names import PUBLISHED_NAMES
from .fusion import can_fuse, fuse_input_, fuse_output_
from .layers import (
    Conv2d,
    DropPath,
    GroupNorm1,
    activated,
    init_weights_,
    is_gelu,
    is_inactive,
    is_pointwise,
    may_bypass,
    packed_parameters,
    residual,
)
from .modified import is_unmodified
from .stages import PatchEmbed, Stage, drop_path_rates

if TYPE_CHECKING:
    from .fcvit_packed import PackedBlock


class GlobalContext(nn.Module):
    """Global context: a vector per image, added at each position, weighted by its similarity to the image's mean.

    Source: arXiv 2212.12552, section 3.3 ("global context" and the competition-driven bottleneck).

    Args:
        channels (int): ``C``.
        num_heads (int): ``h``; must divide ``C``.
        reduction (int): The bottleneck of the context vector has ``C // reduction`` channels.
        compete (bool): Take the larger of two candidates for each bottleneck channel; if not, apply GELU.
        weighted (bool): Weight by similarity; if not, the same context vector is added at every position.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    eps = 1e-5

    def __init__(
        self, channels: int, num_heads: int, reduction: int = 8, compete: bool = True, weighted: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.compete = compete
        self.weighted = weighted
        hidden = channels // reduction
        self.fc1 = nn.Linear(channels, 2 * hidden if compete else hidden)
        self.act = nn.Identity() if compete else nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        if weighted:
            self.rescale_weight = nn.Parameter(torch.ones(num_heads))
            self.rescale_bias = nn.Parameter(torch.zeros(num_heads))

    def similarity(self, x: Tensor) -> Tensor:
        """Return each position's similarity to the image's mean, normalized over heads and positions together.

        Args:
            x (Tensor): ``(B, C, H, W)``.

        Returns:
            Tensor: ``(B, h, H, W)``, float32 (float64 if ``x`` is).
        """
        similarity = normalized_similarity(x, channel_means(x), self.num_heads, self.eps)
        return similarity * self.rescale_weight.view(-1, 1, 1) + self.rescale_bias.view(-1, 1, 1)

    def context(self, means: Tensor) -> Tensor:
        """Return context vectors of images from their means over the positions: ``(B, C)`` to the same."""
        context = self.fc1(means)
        if self.compete:
            context = context.unflatten(1, (2, -1)).amax(1)
        return self.fc2(self.act(context))

    def forward(self, x: Tensor) -> Tensor:
        means = channel_means(x)
        context = self.context(means.to(x.dtype))
        if not self.weighted:
            return x + context[:, :, None, None]
        return add_global_context(x, means, context, self.num_heads, self.rescale_weight, self.rescale_bias, self.eps)


def depthwise(channels: int, kernel_size: int, dilation: int) -> Conv2d:
    """Build a depth-wise convolution that keeps the map's size."""
    padding = kernel_size // 2 * dilation
    return Conv2d(channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels)


class TokenMix(nn.Module):
    """One token mix: add the global context, convolve depth-wise with a large kernel, mix channels, GELU.

    Source: arXiv 2212.12552, section 3.3.

    Args:
        channels (int): ``C``.
        kernel_size (int): Side of the depth-wise kernel, odd.
        hidden (int, optional): Channels between the two 1x1 convolutions; ``None`` for a single one.
        global_context (nn.Module, optional): The global context, which is added first.
        dilation (int): Dilation of the depth-wise kernel.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        hidden: Optional[int],
        global_context: Optional[nn.Module],
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.global_context = global_context
        self.dwconv = depthwise(channels, kernel_size, dilation)
        self.fc1 = Conv2d(channels, hidden or channels, 1)
        self.act1 = nn.GELU()
        self.fc2 = Conv2d(hidden, channels, 1) if hidden else None
        self.act2 = nn.GELU() if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        if self.global_context is not None:
            x = self.global_context(x)
        x = self.dwconv(x)
        if self.fc2 is None or self.act2 is None:
            return activated(self.fc1, self.act1, x)
        if self.may_fuse(self.fc1, self.fc2, self.act1, self.act2):
            packed = packed_parameters(x, self.fc1, self.fc2)
            if packed is not None:
                return native.bottleneck(x, *packed)
            return bottleneck(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return activated(self.fc2, self.act2, activated(self.fc1, self.act1, x))

    @staticmethod
    def may_fuse(fc1: nn.Module, fc2: nn.Module, *activations: nn.Module) -> bool:
        """Check that the layers replaced by :func:`bottleneck` are unmodified."""
        return may_bypass(fc1, fc2) and is_pointwise(fc1) and is_pointwise(fc2) and all(map(is_gelu, activations))


class TokenMixer(nn.Module):
    """Sequence of token mixes, optionally followed by spatial attention. ``(B, C, H, W)`` to the same."""

    def __init__(self, mixes: Sequence[TokenMix], spatial_attention: Optional[nn.Module]) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(mixes)
        self.spatial_attention = spatial_attention

    def forward(self, x: Tensor) -> Tensor:
        for mix in self.mixes:
            x = mix(x)
        return x if self.spatial_attention is None else self.spatial_attention(x)


class SpatialAttention(nn.Module):
    """Spatial attention: a gate for each value from its neighbourhood, ``x * sigmoid(1x1(gelu(1x1(dw3x3(x)))))``.

    Source: the published FCViT code (an option that no published variant uses).

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, reduction: int = 8, dilation: int = 1) -> None:
        super().__init__()
        hidden = channels // reduction
        self.dwconv = depthwise(channels, 3, dilation)
        self.fc1 = Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(self.dwconv(x)))).sigmoid()


class ChannelAttention(nn.Module):
    """Channel attention: adds a vector, computed from the channels' means by two convolutions along the channels.

    Source: the published FCViT code (an option that no published variant uses).

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.conv1 = nn.Conv1d(1, 1, 3, padding=1)
        self.conv2 = nn.Conv1d(1, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.act(x).mean((2, 3)).unsqueeze(1)
        pooled = self.conv2(self.act(self.conv1(pooled)))
        return x + pooled.transpose(1, 2).unsqueeze(3)


class ChannelMixer(nn.Module):
    """Channel mixer: 1x1 expansion, depth-wise 3x3 convolution, GELU, 1x1 reduction.

    Args:
        channels (int): ``C``.
        hidden (int): Expanded channels.
        dwconv (bool): Convolve depth-wise between the two 1x1 convolutions.
        channel_attention (bool): Append :class:`ChannelAttention`.
        drop_rate (float): Dropout after the GELU and at the end.
        recompute (bool): Whether training drops the expanded maps and computes them again in the backward pass.
        dilation (int): Dilation of the depth-wise kernel.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        dwconv: bool = True,
        channel_attention: bool = False,
        drop_rate: float = 0.0,
        recompute: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.fc1 = Conv2d(channels, hidden, 1)
        self.dwconv = depthwise(hidden, 3, dilation) if dwconv else nn.Identity()
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = Conv2d(hidden, channels, 1)
        self.channel_attention = ChannelAttention() if channel_attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.may_fuse():
            x = self.fused(x)
        else:
            x = self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x))))))
        return self.channel_attention(x)

    def may_fuse(self) -> bool:
        """Check that the layers replaced by :meth:`fused` are unmodified."""
        layers = (self.fc1, self.dwconv, self.fc2)
        return (
            may_bypass(*layers)
            and is_gelu(self.act)
            and is_inactive(self.drop)
            and is_pointwise(self.fc1)
            and is_pointwise(self.fc2)
            and self.dwconv.groups == self.dwconv.in_channels == self.dwconv.out_channels
        )

    def fused(self, x: Tensor, shortcut: Optional[Tensor] = None) -> Tensor:
        """Return the output without channel attention, in one operation, plus ``shortcut`` if that is given."""
        layers = (self.fc1, self.dwconv, self.fc2)
        parameters: List[Any] = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        _, _, dw_weight, dw_bias, _, _ = parameters
        packed = packed_parameters(x, self.fc1, self.fc2, dw_weight, dw_bias, shortcut)
        of_taps: Any = self.dwconv.packed
        if packed is not None and of_taps is not None and self.dwconv.kernel_size == (3, 3):
            fc1_weight, fc1_bias, fc2_weight, fc2_bias = packed
            taps = of_taps.get(dw_weight, native.pack_taps)
            return native.channel_mixer(x, fc1_weight, fc1_bias, taps, dw_bias, fc2_weight, fc2_bias, shortcut)
        if self.recompute and torch.is_grad_enabled():
            x = recomputed_channel_mixer(x, *parameters)
            return x if shortcut is None else shortcut + x
        return channel_mixer(x, *parameters, shortcut)


class FCViTBlock(nn.Module):
    """Token mixer and channel mixer, each after a norm, in a scaled residual branch.

    Attributes:
        packed (PackedBlock, optional): Arguments of the compiled kernel for the complete block, for inference.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    layer_scale1: Optional[nn.Parameter]
    layer_scale2: Optional[nn.Parameter]
    packed: Optional['PackedBlock'] = None

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        channel_mixer: ChannelMixer,
        layer_scale_init_value: Optional[float],
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.norm1 = GroupNorm1(channels)
        self.token_mixer = token_mixer
        self.norm2 = GroupNorm1(channels)
        self.channel_mixer = channel_mixer
        self.drop_path = DropPath(drop_path_rate)
        for name in ('layer_scale1', 'layer_scale2'):
            scale = (
                None
                if layer_scale_init_value is None
                else nn.Parameter(torch.full((channels,), float(layer_scale_init_value)))
            )
            self.register_parameter(name, scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            args = self.packed.args(self, x)
            if args is not None:
                return native.fcvit_block(*args)
        x = residual(x, self.token_mixer(self.norm1(x)), self.layer_scale1, self.drop_path)
        normed = self.norm2(x)
        if self.mixer_may_add() and normed.dtype == x.dtype:
            return self.channel_mixer.fused(normed, x)
        return residual(x, self.channel_mixer(normed), self.layer_scale2, self.drop_path)

    def mixer_may_add(self) -> bool:
        """Check whether the channel mixer's operation can include the residual addition."""
        mixer = self.channel_mixer
        return (
            self.layer_scale2 is None
            and is_inactive(self.drop_path)
            and type(mixer) is ChannelMixer
            and is_unmodified(mixer)
            and type(mixer.channel_attention) is nn.Identity
            and is_unmodified(mixer.channel_attention)
            and mixer.may_fuse()
        )

    def fuse_(self) -> None:
        """Fuse the affine part of ``norm2`` and ``layer_scale2`` into the 1x1 convolutions, in place, for inference.

        ``norm1``, which the similarity reads, and ``layer_scale1``, which follows a GELU, cannot be fused.
        """
        mixer = self.channel_mixer
        if type(mixer) is not ChannelMixer or not is_unmodified(mixer):
            return
        norm_is_ours = type(self.norm2) is GroupNorm1 and is_unmodified(self.norm2)
        if norm_is_ours and self.norm2.affine and can_fuse(mixer.fc1) and is_pointwise(mixer.fc1):
            fuse_input_(mixer.fc1, self.norm2.weight, self.norm2.bias)
            self.norm2 = GroupNorm1(self.norm2.num_channels, affine=False)
        # Only if nothing after fc2 is modified or replaced, because other modules may not commute with the scale.
        if self.layer_scale2 is not None and can_fuse(mixer.fc2, mixer.drop, mixer.channel_attention):
            fuse_output_(mixer.fc2, self.layer_scale2, torch.zeros_like(self.layer_scale2))
            self.layer_scale2 = None


@MODELS.register_module()
class FCViT(Backbone):
    """FCViT backbone: multi-scale features at strides 4, 8, 16 and 32.

    Source: arXiv 2212.12552, table 1 (variants), section 3.3 (blocks), table 6 (ablations).

    Args:
        arch (str | dict): A variant of ``FCViT.arch_settings``, or a dict of ``depths``, ``channels`` and
            ``mlp_ratios`` (one value per stage) and, if not 8, ``num_heads``.
        in_channels (int): Channels of the images.
        out_indices (int | Sequence[int]): Stages to return, negative ones counted from the end. Dense prediction
            takes all four, classification the last. Stages past the last of these are not built.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        drop_rate (float): Dropout in the channel mixers.
        layer_scale_init_value (float, optional): Initial layer scale: 1e-5 for classification, 1e-6 for dense
            prediction in the published recipes. ``None`` for no layer scale.
        kernel_sizes (Sequence[int]): Side of the depth-wise kernel of each token mix, one or two odd numbers;
            ``(11,)`` for a single mix.
        token_mix_reduction (int): Bottleneck of the two 1x1 convolutions after each depth-wise one: between them are
            ``max(C // token_mix_reduction, token_mix_min_channels)`` channels; 1 makes them a single convolution.
        token_mix_min_channels (int): See ``token_mix_reduction``.
        global_context (bool): Add the global context in token mixes.
        context_reduction (int): Bottleneck of the global context vector.
        compete (bool): Competition in that bottleneck; if not, GELU.
        weighted (bool): Weight the global context by similarity.
        channel_mixer_dwconv (bool): Convolve depth-wise, 3x3, in channel mixers.
        spatial_attention (bool): Spatial attention after the token mixes.
        channel_attention (bool): Channel attention after the channel mixer.
        mixer_recompute (bool): Whether training computes the expanded maps of the channel mixers in slices, drops them,
            and computes them again in the backward pass: less memory than ``with_cp``, for large images.
        output_stride (int): Largest stride, one of ``strides``. Stages that would go beyond it are dilated, with
            the same weights.
        frozen_stages, norm_eval, with_cp, init_cfg: See :class:`Backbone`.

    Shape:
        ``(B, in_channels, H, W)`` to a tuple, one map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each of
        ``out_indices`` in ascending order, ``C_i`` in ``out_channels`` and ``s_i`` in ``out_strides``.

    Raises:
        ValueError: An unknown ``arch``, channels that the heads do not divide, indices out of range, ...

    Example:
        >>> import torch, fcvit_mm
        >>> backbone = fcvit_mm.FCViT('b12')
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)]
    """

    #: Variants, one row each. Table 1 of the paper.
    arch_settings = {
        'tiny': dict(depths=(3, 3, 5, 2), channels=(32, 64, 160, 320), mlp_ratios=(8, 8, 4, 4)),
        'b12': dict(depths=(2, 2, 6, 2), channels=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4)),
        'b24': dict(depths=(4, 4, 12, 4), channels=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4)),
        'b48': dict(depths=(8, 8, 24, 8), channels=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4)),
    }
    published_names = PUBLISHED_NAMES
    strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        layer_scale_init_value: Optional[float] = 1e-6,
        kernel_sizes: Sequence[int] = (11, 11),
        token_mix_reduction: int = 8,
        token_mix_min_channels: int = 16,
        global_context: bool = True,
        context_reduction: int = 8,
        compete: bool = True,
        weighted: bool = True,
        channel_mixer_dwconv: bool = True,
        spatial_attention: bool = False,
        channel_attention: bool = False,
        mixer_recompute: bool = False,
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        settings = resolve_arch(
            arch,
            self.arch_settings,
            per_stage=('depths', 'channels', 'mlp_ratios'),
            defaults=dict(num_heads=8),
            num_stages=len(self.strides),
        )
        depths, channels = settings['depths'], settings['channels']
        mlp_ratios, num_heads = settings['mlp_ratios'], settings['num_heads']
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
        check_options(channels, num_heads, kernel_sizes, token_mix_reduction, context_reduction, drop_path_rate)

        def token_mix(width: int, kernel_size: int, dilation: int) -> TokenMix:
            hidden = max(width // token_mix_reduction, token_mix_min_channels) if token_mix_reduction > 1 else None
            context = GlobalContext(width, num_heads, context_reduction, compete, weighted) if global_context else None
            return TokenMix(width, kernel_size, hidden, context, dilation)

        def block(width: int, mlp_ratio: float, rate: float, dilation: int) -> FCViTBlock:
            mixes = [token_mix(width, kernel_size, dilation) for kernel_size in kernel_sizes]
            return FCViTBlock(
                width,
                token_mixer=TokenMixer(
                    mixes, SpatialAttention(width, dilation=dilation) if spatial_attention else None
                ),
                channel_mixer=ChannelMixer(
                    width,
                    int(mlp_ratio * width),
                    channel_mixer_dwconv,
                    channel_attention,
                    drop_rate,
                    mixer_recompute,
                    dilation,
                ),
                layer_scale_init_value=layer_scale_init_value,
                drop_path_rate=rate,
            )

        self.stem = PatchEmbed(in_channels, channels[0], kernel_size=7, stride=4)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            dilation, before = dilations[i], dilations[max(i - 1, 0)]
            downsample = (
                nn.Identity()
                if i == 0
                else PatchEmbed(channels[i - 1], channels[i], 3, 2 if dilation == before == 1 else 1, before)
            )
            blocks = [block(channels[i], mlp_ratios[i], rate, dilation) for rate in rates[i]]
            self.stages.append(Stage(downsample, blocks, with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', GroupNorm1(channels[i]))

        self.apply(init_weights_)
        self.freeze_stages()


def check_options(
    channels: Sequence[int],
    num_heads: int,
    kernel_sizes: Sequence[int],
    token_mix_reduction: int,
    context_reduction: int,
    drop_path_rate: float,
) -> None:
    """Reject invalid options; the error names the value and what was expected."""
    for width in channels:
        if width % num_heads:
            raise ValueError(
                f'num_heads={num_heads} does not divide the {width} channels of a stage (channels={tuple(channels)}): '
                'change one of them in arch'
            )
        if width < context_reduction:
            raise ValueError(
                f'context_reduction={context_reduction} reduces the {width} channels of a stage to 0: use a smaller one'
            )
    if not 1 <= len(kernel_sizes) <= 2 or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
        raise ValueError(f'kernel_sizes is {kernel_sizes!r}, expected one or two odd numbers, one per token mix')
    if token_mix_reduction < 1 or context_reduction < 1:
        raise ValueError(
            f'token_mix_reduction is {token_mix_reduction} and context_reduction is {context_reduction}, expected at '
            'least 1'
        )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate is {drop_path_rate}, expected 0 or more and less than 1')
