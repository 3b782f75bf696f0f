"""Common code of ViT, CaiT and Swin: position tables, tokens, and the outputs computed from them.

The blocks are timm's; ``timm_blocks.py`` adds AttnScale and FeatScale (``oversmoothing.py``) to them. timm is lighter
than mmpretrain, and the same package in every OpenMMLab stack. It is imported when one of these networks is built, so
``import fcvit_mm`` does not need it.
"""

from collections import OrderedDict
from types import ModuleType
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union, cast

import torch
import torch.nn as nn
from torch import Tensor

from ..dependencies import require
from ..ops.tracing import call
from .backbone import Backbone, check_frozen_stages, output_layout
from .layers import LayerNorm2d
from .padding import pad_to_multiple
from .position_tables import fit_table, resize_table
from .stages import Stage

OUT_TYPES = ('pyramid', 'cls_token')


def import_timm_blocks() -> ModuleType:
    """Import the module of timm's blocks.

    Raises:
        ImportError: timm is not installed; with the command that installs it.
    """
    require('timm')
    from . import timm_blocks

    return timm_blocks


def init_transformer_weights_(module: nn.Module) -> None:
    """Initialize a linear layer in place, as in DeiT, CaiT and Swin: truncated normal 0.02, bias 0; for ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_transformer(channels: Sequence[int], num_heads: Sequence[int], drop_path_rate: float) -> None:
    """Reject heads that do not divide their channels, and drop rates outside ``[0, 1)``."""
    for width, heads in zip(channels, num_heads):
        if width % heads:
            raise ValueError(
                f'arch has num_heads={tuple(num_heads)} for channels={tuple(channels)}, expected divisors of the '
                f'channels: {heads} does not divide {width}'
            )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate is {drop_path_rate}, expected 0 or more and less than 1')


class TokenEmbed(nn.Module):
    """Patch embedding with position embeddings and, optionally, a class token.

    Args:
        in_channels (int): Channels of the images.
        channels (int): ``C``.
        patch_size (int): Side of a patch, and its stride.
        grid (tuple[int]): Patches in height and width that the position embeddings are made for; they are resized for
            other images, and when a checkpoint has them for another grid.
        class_token (bool): Put a class token first.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, N, C)`` and the grid; images are padded to a multiple of the patch size.
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
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        x = self.proj(pad_to_multiple(x, self.patch_size))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x), 1)
        return x + resize_table(self.pos_embed, self.grid, grid), grid


class Transformer(Backbone):
    """A backbone with learned position tables, which are resized whenever weights are loaded, by any function."""

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        """Yield each table's name, the number of rows before those of its grid, and the grid."""
        raise NotImplementedError

    def fit_state_dict(self, state_dict: Dict[str, Tensor], prefix: str = '') -> Dict[str, Tensor]:
        """Resize the tables of a checkpoint's weights to this network's.

        Args:
            state_dict (dict[str, Tensor]): Weights under the backbone's own names; not changed.
            prefix (str): Prefix of these names.

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

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Called before this method of the children, which then find the resized tables. It is load_state_dict's copy.
        state_dict.update(self.fit_state_dict(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class TokenTransformer(Transformer):
    """A transformer of tokens at one resolution, such as ViT and CaiT, and the outputs computed from its last map.

    Source of the pyramid: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv
    2203.16527, section 3: transposed convolutions and a pooling from the last map alone. The lateral convolutions are
    left to the neck: mmdet's FPN, or its ChannelMapper for a pyramid without a top-down path. Attention stays global.

    A subclass builds ``stem`` (a :class:`TokenEmbed`) and ``stages``, calls :meth:`build_outputs`, and defines
    :meth:`class_token` and :meth:`patches`.

    Args:
        channels (int): Channels of the tokens.
        depth (int): Number of blocks, for ``frozen_stages``.
        patch_size, out_type, out_indices, frozen_stages: See :class:`~.vit.ViT`.
        **options: ``in_channels, norm_eval, with_cp, init_cfg`` of :class:`Backbone`.
    """

    stem: TokenEmbed

    def __init__(
        self,
        channels: int,
        depth: int,
        patch_size: int,
        out_type: str,
        out_indices: Union[None, int, Sequence[int]],
        frozen_stages: int,
        **options: Any,
    ) -> None:
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type is {out_type!r}, expected one of {OUT_TYPES}')
        if patch_size < 4 or patch_size % 4 or channels % 4:
            raise ValueError(f'patch_size is {patch_size} and channels is {channels}, expected multiples of 4')
        if out_type == 'cls_token':
            if out_indices is not None:
                raise ValueError(
                    f"out_indices={out_indices!r} with out_type='cls_token': the class token has no levels: omit "
                    "out_indices, or use out_type='pyramid'"
                )
            out_indices, levels = 0, [(channels, patch_size)]
        else:
            out_indices = (0, 1, 2, 3) if out_indices is None else out_indices
            levels = [
                (channels // 4, patch_size // 4),
                (channels // 2, patch_size // 2),
                (channels, patch_size),
                (channels, patch_size * 2),
            ]
        super().__init__([width for width, _ in levels], [stride for _, stride in levels], out_indices, **options)
        check_frozen_stages(frozen_stages, depth, 'blocks')
        self.frozen_stages = frozen_stages
        self.out_type = out_type

    def build_outputs(self, channels: int) -> None:
        """Build the modules after the blocks: a norm for the class token, or the pyramid."""
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

    def prefers_channels_last(self, device: torch.device) -> bool:
        """Return ``False``: only the patch embedding reads maps, and it is not faster in channels_last."""
        return False

    def freezable_parts(self) -> List[nn.Module]:
        """Return the blocks."""
        return list(self.stage.blocks)

    @property
    def stage(self) -> Stage:
        """The one stage of patches."""
        return cast(Stage, self.stages[0])

    def tables(self) -> Iterator[Tuple[str, int, Tuple[int, int]]]:
        """See :meth:`Transformer.tables`."""
        yield 'stem.pos_embed', self.stem.num_extra, self.stem.grid

    def class_token(self, x: Tensor) -> Tensor:
        """Return the class token ``(B, C)`` of the blocks' output ``(B, N, C)``, before the norm."""
        raise NotImplementedError

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches of the blocks' output, ``(B, N, C)`` to ``(B, N - extra, C)``."""
        raise NotImplementedError

    def forward_tokens(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """Return the blocks' output ``(B, N, C)`` for images ``(B, in_channels, H, W)``, and the grid of patches."""
        x, grid = self.forward_stem(x)
        return call(self.stage, x), grid

    def forward_blocks(self, x: Tensor) -> Iterator[Tuple[Tensor, Tuple[int, int]]]:
        """Yield tokens and grid, as :meth:`forward_tokens` returns them, after every block; computed lazily."""
        x, grid = self.forward_stem(x)
        for block in self.stage.blocks:
            x = self.stage.run(block, x)
            yield x, grid

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the one map of patches after the blocks, ``(B, C, ceil(H / patch_size), ceil(W / patch_size))``."""
        yield self.to_map(self.forward_tokens(x))

    def to_map(self, x: Tuple[Tensor, Tuple[int, int]]) -> Tensor:
        """Return tokens ``(B, N, C)`` as the map of their patches, ``(B, C, *grid)``."""
        tokens, grid = x
        return self.patches(tokens).transpose(1, 2).unflatten(2, grid)

    def forward_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the class token ``(B, C)``, or the levels of the pyramid."""
        tokens, grid = self.forward_tokens(x)
        if self.out_type == 'cls_token':
            yield self.norm(self.class_token(tokens))
            return
        patches = self.to_map((tokens, grid)).contiguous(memory_format=output_layout(x))
        for i, stride in zip(self.out_indices, self.out_strides):
            # Crop the padding. (Not by -(-side // stride): see up_to_multiple.)
            height, width = [(side + stride - 1) // stride for side in x.shape[2:]]
            yield getattr(self, f'norm{i}')(self.pyramid[f'level{i}'](patches)[:, :, :height, :width])


def grid_of(img_size: Union[int, Sequence[int]], patch_size: int) -> Tuple[int, int]:
    """Return the number of patches in height and width of an image.

    Raises:
        ValueError: The size is not one or two multiples of the patch size.
    """
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 or side % patch_size for side in sides):
        raise ValueError(f'img_size is {img_size!r}, expected one or two multiples of patch_size={patch_size}')
    return sides[0] // patch_size, sides[1] // patch_size
