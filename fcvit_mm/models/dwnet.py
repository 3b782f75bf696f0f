"""DWNet: Swin's stages, with 7x7 depth-wise convolutions in place of window attention.

Source: Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution", ICLR 2022,
arXiv 2106.04263.

Local attention is a depth-wise convolution whose kernels are computed from the input and shared by the channels of a
head. DWNet uses such convolutions: with fixed kernels, with kernels computed for each image (dynamic, homogeneous), or
for each position (inhomogeneous). Any input size works.

Shapes below: ``B`` images, ``C`` channels, ``H, W`` the stage's height and width.
"""

from typing import Dict, Optional, Sequence, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops.dynamic_depthwise import dynamic_depthwise_conv2d, inhomogeneous_depthwise_conv2d
from ..registry import MODELS
from .backbone import Backbone, InitCfg, dilate, resolve_arch
from .dwnet_names import PUBLISHED_NAMES
from .fusion import fuse_batch_norm_, fuse_batch_norm_before_
from .layers import Conv2d, DropPath, LayerNorm2d, activated, residual
from .modified import is_unmodified
from .padding import batch_to_space, pad_to_multiple, space_to_batch
from .position_tables import resize_map
from .stages import Stage, drop_path_rates

#: Side of the depth-wise kernels, and of the windows that maps are padded to multiples of.
WINDOW = 7
KINDS = (False, 'homogeneous', 'inhomogeneous')
OUTPUT_NORMS = {'LN': LayerNorm2d, 'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


class PatchStem(nn.Module):
    """Embedding of 4x4 patches, followed by a norm and, optionally, position embeddings.

    Args:
        in_channels (int): Channels of the images.
        channels (int): ``C``.
        position_size (int, optional): Side of the learned map of position embeddings; resized to the input's.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, C, ceil(H / 4), ceil(W / 4))``.
    """

    pos_embed: Optional[nn.Parameter]

    def __init__(self, in_channels: int, channels: int, position_size: Optional[int]) -> None:
        super().__init__()
        self.proj = Conv2d(in_channels, channels, 4, stride=4)
        self.norm = LayerNorm2d(channels)
        positions = (
            None
            if position_size is None
            else nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, position_size, position_size), std=0.02))
        )
        self.register_parameter('pos_embed', positions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(pad_to_multiple(x, 4)))
        return x if self.pos_embed is None else x + resize_map(self.pos_embed, x.shape[2:]).to(x.dtype)


class PatchMerging(nn.Module):
    """Downsampling by 2: concatenated 2x2 neighbours, LayerNorm, and a linear layer to the next stage's channels.

    Source: Liu et al., "Swin Transformer", arXiv 2103.14030, section 3.1.

    Shape:
        ``(B, C, H, W)`` to ``(B, C_next, ceil(H / 2), ceil(W / 2))``; with a stride of 1, which reads neighbours
        ``dilation`` apart, to ``(B, C_next, H, W)``.
    """

    def __init__(self, channels: int, next_channels: int, stride: int = 2, dilation: int = 1) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.norm = LayerNorm2d(4 * channels)
        self.reduction = nn.Linear(4 * channels, next_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Channels in the order of the published weights: of each 2x2 square first the left column, then the right one.
        squares = [(row, column) for column in (0, 1) for row in (0, 1)]
        if self.stride == 2:
            x = pad_to_multiple(x, 2)
            x = torch.cat([x[:, :, row::2, column::2] for row, column in squares], 1)
        else:
            step, (height, width) = self.dilation, x.shape[2:]
            x = F.pad(x, (0, step, 0, step))
            parts = [x[:, :, row * step :, column * step :][:, :, :height, :width] for row, column in squares]
            x = torch.cat(parts, 1)
        return self.reduction(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DynamicDepthwiseConv(nn.Module):
    """Depth-wise convolution with kernels computed from the image's mean; the bias is learned.

    Source: arXiv 2106.04263, section 3, "dynamic depth-wise convolution" (homogeneous).

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    norm: nn.Module

    def __init__(self, channels: int, kernel_size: int, reduction: int = 4, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.kernel_size = kernel_size
        self.fc1 = Conv2d(channels, channels // reduction, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels // reduction)
        self.act = nn.ReLU()
        self.fc2 = Conv2d(channels // reduction, channels * kernel_size**2, 1)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if type(self.norm) is nn.BatchNorm2d and self.norm.training and x.shape[0] == 1:
            raise ValueError(
                'dynamic DWNet computes its kernels with a BatchNorm over the images of a batch, which needs at least '
                '2 images in training, got 1: use a larger batch, norm_eval=True or SyncBN'
            )
        kernels = self.fc2(self.act(self.norm(self.fc1(x.mean((2, 3), keepdim=True)))))
        kernels = kernels.reshape(x.shape[0], x.shape[1], self.kernel_size, self.kernel_size)
        kernels, bias, dilation = kernels.to(x.dtype), self.bias.to(x.dtype), self.dilation
        if dilation == 1:
            return dynamic_depthwise_conv2d(x, kernels, bias)
        kernels = kernels.repeat_interleave(dilation**2, 0)
        return batch_to_space(dynamic_depthwise_conv2d(space_to_batch(x, dilation), kernels, bias), dilation)

    def fuse_(self) -> None:
        """Fuse the BatchNorm into the preceding convolution, in place, for inference."""
        self.norm = fuse_batch_norm_(self.fc1, self.norm)


class InhomogeneousDepthwiseConv(nn.Module):
    """Depth-wise convolution with kernels computed at each position, shared by the channels of a group.

    Source: arXiv 2106.04263, section 3, "inhomogeneous dynamic depth-wise convolution".

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    norm: nn.Module

    def __init__(
        self, channels: int, kernel_size: int, group_channels: int, reduction: int = 4, dilation: int = 1
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.groups = channels // group_channels
        self.fc1 = Conv2d(channels, channels // reduction, 1)
        self.norm = nn.BatchNorm2d(channels // reduction)
        self.act = nn.ReLU()
        self.fc2 = Conv2d(channels // reduction, self.groups * kernel_size**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernels = space_to_batch(self.fc2(self.act(self.norm(self.fc1(x)))), self.dilation)
        kernels = kernels.unflatten(1, (self.groups, -1)).to(x.dtype)
        return batch_to_space(inhomogeneous_depthwise_conv2d(space_to_batch(x, self.dilation), kernels), self.dilation)

    def fuse_(self) -> None:
        """Fuse the BatchNorm into the preceding convolution, in place, for inference."""
        self.norm = fuse_batch_norm_(self.fc1, self.norm)


class DWMixer(nn.Module):
    """1x1, depth-wise and 1x1 convolution, each with BatchNorm, ReLU between them.

    Source: arXiv 2106.04263, section 4, and its published code.

    Args:
        channels (int): ``C``.
        dwconv (nn.Module): The depth-wise convolution, of any kind.
        window (int): The map is padded with zeros, right and bottom, to a multiple of it. The padding passes through
            the first norm, so it affects the last columns and rows, as in the training of the published weights.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module

    def __init__(self, channels: int, dwconv: nn.Module, window: int) -> None:
        super().__init__()
        self.window = window
        self.fc1 = Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.dwconv = dwconv
        self.norm2 = nn.BatchNorm2d(channels)
        self.fc2 = Conv2d(channels, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.act(self.norm1(self.fc1(pad_to_multiple(x, self.window))))
        x = self.act(self.norm2(self.dwconv(x)))
        return self.norm3(self.fc2(x))[:, :, :height, :width]

    def fuse_(self) -> None:
        """Fuse the BatchNorms into the preceding convolutions, in place, for inference."""
        self.norm1 = fuse_batch_norm_(self.fc1, self.norm1)
        self.norm3 = fuse_batch_norm_(self.fc2, self.norm3)
        if isinstance(self.dwconv, nn.Conv2d):
            self.norm2 = fuse_batch_norm_(self.dwconv, self.norm2)


class MLP(nn.Module):
    """Linear, GELU, dropout, linear, dropout at each position. ``(B, C, H, W)`` to the same."""

    def __init__(self, channels: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        # nn.Linear over the last dimension instead of 1x1 convolutions: adapters such as LoRA expect it.
        x = activated(self.fc1, self.act, x.permute(0, 2, 3, 1))
        return self.drop(self.fc2(self.drop(x))).permute(0, 3, 1, 2)


class DWNetBlock(nn.Module):
    """Mixer without a norm before it, MLP after BatchNorm, each in a residual branch.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    norm: nn.Module

    def __init__(self, channels: int, mixer: nn.Module, mlp: MLP, drop_path_rate: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.BatchNorm2d(channels)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, self.mixer(x), None, self.drop_path)
        return residual(x, self.mlp(self.norm(x)), None, self.drop_path)

    def fuse_(self) -> None:
        """Fuse the BatchNorm into the first layer of the MLP, in place, for inference."""
        if type(self.mlp) is MLP and is_unmodified(self.mlp):
            self.norm = fuse_batch_norm_before_(self.norm, self.mlp.fc1)


@MODELS.register_module()
class DWNet(Backbone):
    """DWNet backbone: multi-scale features at strides 4, 8, 16 and 32.

    Source: arXiv 2106.04263, section 4 and its published code.

    Args:
        arch (str | dict): A variant of ``DWNet.arch_settings``, or a dict of ``depths`` and ``channels`` (one value
            per stage) and, optionally, ``group_channels`` (channels that share an inhomogeneous kernel, per stage) and
            ``mlp_ratio`` (4).
        dynamic (bool | str): Source of the depth-wise kernels: ``False``, they are learned; ``'homogeneous'``, they are
            computed for each image; ``'inhomogeneous'``, for each position.
        in_channels (int): Channels of the images.
        out_indices (int | Sequence[int]): Stages to return, negative ones counted from the end. Dense prediction
            takes all four, classification the last. Stages past the last of these are not built.
        norm_cfg (dict): Norm of each output: ``dict(type='BN')``, or ``'SyncBN'``, as published dense models have it;
            ``'LN'`` for classification. Other keys go to the norm's class (``eps``, ``momentum``).
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        drop_rate (float): Dropout in the MLPs.
        position_size (int, optional): Add a learned position embedding of this side after the patch embedding, 56 for
            images of 224x224; it is resized (bicubic) for others. No published variant has it.
        output_stride (int): Largest stride, one of ``strides``. Stages that would go beyond it are dilated, with
            the same weights.
        frozen_stages, norm_eval, with_cp, init_cfg: See :class:`Backbone`.

    Shape:
        ``(B, in_channels, H, W)`` to a tuple, one map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each of
        ``out_indices`` in ascending order, ``C_i`` in ``out_channels`` and ``s_i`` in ``out_strides``.

    Raises:
        ValueError: An unknown ``arch`` or ``dynamic``, groups that do not divide the channels, ...

    Example:
        >>> import torch, fcvit_mm
        >>> backbone = fcvit_mm.DWNet('tiny', dynamic='homogeneous').eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """

    #: Variants, one row each. Only inhomogeneous kernels use ``group_channels``.
    arch_settings = {
        'tiny': dict(depths=(2, 2, 6, 2), channels=(96, 192, 384, 768), group_channels=(3, 6, 12, 24)),
        'base': dict(depths=(2, 2, 18, 2), channels=(128, 256, 512, 1024), group_channels=(4, 8, 16, 32)),
    }
    published_names = PUBLISHED_NAMES
    strides = (4, 8, 16, 32)
    stem: PatchStem

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        dynamic: Union[bool, str] = False,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        norm_cfg: Optional[dict] = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        position_size: Optional[int] = None,
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        settings = resolve_arch(
            arch,
            self.arch_settings,
            per_stage=('depths', 'channels'),
            defaults=dict(group_channels=None, mlp_ratio=4),
            num_stages=len(self.strides),
        )
        depths, channels = settings['depths'], settings['channels']
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
        check_options(dynamic, channels, settings['group_channels'], drop_path_rate, position_size)
        self.dynamic = dynamic

        def depthwise(i: int) -> nn.Module:
            dilation = dilations[i]
            if dynamic == 'homogeneous':
                return DynamicDepthwiseConv(channels[i], WINDOW, dilation=dilation)
            if dynamic == 'inhomogeneous':
                return InhomogeneousDepthwiseConv(channels[i], WINDOW, settings['group_channels'][i], dilation=dilation)
            padding = WINDOW // 2 * dilation
            return Conv2d(channels[i], channels[i], WINDOW, padding=padding, dilation=dilation, groups=channels[i])

        def block(i: int, rate: float) -> DWNetBlock:
            mlp = MLP(channels[i], int(settings['mlp_ratio'] * channels[i]), drop_rate)
            return DWNetBlock(channels[i], DWMixer(channels[i], depthwise(i), WINDOW * dilations[i]), mlp, rate)

        self.stem = PatchStem(in_channels, channels[0], position_size)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            before = dilations[max(i - 1, 0)]
            stride = 2 if dilations[i] == before == 1 else 1
            downsample = nn.Identity() if i == 0 else PatchMerging(channels[i - 1], channels[i], stride, before)
            self.stages.append(Stage(downsample, [block(i, rate) for rate in rates[i]], with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', build_output_norm(norm_cfg, channels[i]))

        self.apply(init_linear_)
        self.freeze_stages()

    def prefers_channels_last(self, device: torch.device) -> bool:
        """Return ``True``: norms and linear layers over the channels need no copy in channels_last, on any device."""
        return True

    def fit_state_dict(self, state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Drop output norms of the other kind, and resize the position embedding.

        A classifier's LayerNorm and a dense model's BatchNorm have the same name, but their scales are not
        interchangeable. Swin's classifiers store position embeddings as (1, H * W, C).
        """

        def is_other_kind(name: str) -> bool:
            norm = getattr(self, name.split('.')[0], None) if name.startswith('norm') else None
            has_statistics = f'{name.split(".")[0]}.running_mean' in state_dict
            return norm is not None and isinstance(norm, nn.LayerNorm) == has_statistics

        result = {name: value for name, value in state_dict.items() if not is_other_kind(name)}
        own, given = self.stem.pos_embed, result.get('stem.pos_embed')
        if own is not None and given is not None:
            side = round(given.shape[1] ** 0.5)
            if given.ndim == 3 and side**2 == given.shape[1]:
                given = given.transpose(1, 2).unflatten(2, (side, side))
            if given.ndim == 4 and given.shape[:2] == own.shape[:2]:
                given = resize_map(given, own.shape[2:])
            result['stem.pos_embed'] = given
        return result


def build_output_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
    """Build the norm of an output: BatchNorm unless ``norm_cfg`` says otherwise.

    Raises:
        ValueError: ``norm_cfg`` names no norm of ``OUTPUT_NORMS``.
    """
    options = dict(norm_cfg or {'type': 'BN'})
    kind, learns = options.pop('type', None), options.pop('requires_grad', True)
    if kind not in OUTPUT_NORMS:
        raise ValueError(f'norm_cfg is {norm_cfg!r}, expected a dict whose type is one of {list(OUTPUT_NORMS)}')
    return OUTPUT_NORMS[kind](channels, **options).requires_grad_(learns)


def init_linear_(module: nn.Module) -> None:
    """Initialize a linear layer in place, as published: truncated normal 0.02, bias 0; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_options(
    dynamic: Union[bool, str],
    channels: Sequence[int],
    group_channels: Optional[Sequence[int]],
    drop_path_rate: float,
    position_size: Optional[int],
) -> None:
    """Reject invalid options; the error names the value and what was expected."""
    if dynamic not in KINDS or (dynamic == 0 and dynamic is not False):
        raise ValueError(f'dynamic is {dynamic!r}, expected one of {", ".join(map(repr, KINDS))}')
    if dynamic and min(channels) < 4:
        raise ValueError(
            f'channels is {tuple(channels)}, expected at least 4, because kernels are computed from a quarter of them'
        )
    if dynamic == 'inhomogeneous':
        fits = (
            group_channels is not None
            and len(group_channels) == len(channels)
            and all(count > 0 and width % count == 0 for count, width in zip(group_channels, channels))
        )
        if not fits:
            raise ValueError(
                f"arch has group_channels={group_channels!r} for channels={tuple(channels)}: dynamic='inhomogeneous' "
                'needs one divisor of the channels per stage'
            )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate is {drop_path_rate}, expected 0 or more and less than 1')
    if position_size is not None and position_size < 1:
        raise ValueError(f'position_size is {position_size}, expected None or at least 1')
