"""timm's ViT, CaiT and Swin blocks with AttnScale and FeatScale.

This module needs timm. It is imported when one of these networks is built.
"""

from functools import partial
from typing import Any, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.cait import LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformerBlock,
    WindowAttention,
    get_relative_position_index,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import Block
from torch import Tensor

from ..ops.tracing import is_traced, is_transformed, records_any_size
from .layers import is_inactive
from .modified import has_global_hooks, is_unmodified
from .oversmoothing import AttnScaleHeadMixing, FeatScale, attn_scale
from .padding import batch_to_space, pad_to_multiple, space_to_batch, up_to_multiple

__all__ = ['CaiTBlock', 'ClassAttentionBlock', 'DilatedPatchMerging', 'PatchMerging', 'SwinBlock', 'ViTBlock']

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm's annotation asks for a class, but timm only calls it

#: Size of an attention matrix in bytes above which it is computed in slices of queries, if no gradients are needed.
SLICE_BYTES = 8 * 2**20


def _lamb(num_heads: int, methods: Sequence[str]) -> Optional[nn.Parameter]:
    return nn.Parameter(torch.zeros(num_heads)) if 'attn_scale' in methods else None


def _scores(module: Union[Attention, TalkingHeadAttn, WindowAttention], x: Tensor) -> Tensor:
    """Return the scaled products of queries and keys: ``(B, N, C)`` to ``(B, H, N, N)``."""
    q, k, _ = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return module.scale * q @ k.transpose(-2, -1)


def _attend(
    module: Union[Attention, WindowAttention], q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None
) -> Tensor:
    """Return the attended values ``(B, H, N, d)``, by fused attention unless softmax or dropout must be called."""
    softmax = getattr(module, 'softmax', None)
    is_known = softmax is None or (type(softmax) is nn.Softmax and softmax.dim == -1 and is_unmodified(softmax))
    if is_known and is_inactive(module.attn_drop) and not is_transformed() and not has_global_hooks():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = module.scale * q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return module.attn_drop(scores.softmax(-1) if softmax is None else softmax(scores)) @ v


def _attn_scale_matrix(attention: Tensor, lamb: Optional[Tensor]) -> Tensor:
    """Return the matrix ``A'`` that :func:`attn_scale` applies without forming it, ``(..., H, N, N)``."""
    return attention if lamb is None else attention + lamb[:, None, None] * (attention - 1 / attention.shape[-1])


def _feat_scale(channels: int, factor: float, methods: Sequence[str]) -> nn.Module:
    return FeatScale(channels, factor) if 'feat_scale' in methods else nn.Identity()


class AttnScaleSelfAttention(Attention):
    """Self-attention, fused, with AttnScale. ``(B, N, C)`` to the same."""

    def __init__(self, channels: int, num_heads: int, methods: Sequence[str]) -> None:
        super().__init__(channels, num_heads, qkv_bias=True)
        if not hasattr(self, 'norm'):  # in older versions of timm
            self.norm = nn.Identity()
        self.lamb = _lamb(num_heads, methods)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = attn_scale(_attend(self, self.q_norm(q), self.k_norm(k), v), v, self.lamb)
        return self.proj_drop(self.proj(self.norm(x.transpose(1, 2).reshape(batch, tokens, channels))))

    def attention_matrix(self, x: Tensor) -> Tensor:
        """Return the attention of :meth:`forward`'s input: ``(B, N, C)`` to ``(B, H, N, N)``. For analyses."""
        return _attn_scale_matrix(_scores(self, x).softmax(-1), self.lamb)


class ViTBlock(Block):
    """ViT's pre-norm block. The factor of FeatScale is 2. ``(B, N, C)`` to the same."""

    def __init__(self, channels: int, num_heads: int, drop_path_rate: float, methods: Sequence[str]) -> None:
        super().__init__(channels, num_heads, qkv_bias=True, drop_path=drop_path_rate, norm_layer=LayerNorm)
        self.attn = AttnScaleSelfAttention(channels, num_heads, methods)
        self.feat_scale = _feat_scale(channels, 2, methods)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path1(self.ls1(self.feat_scale(self.attn(self.norm1(x)))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TalkingHeads(TalkingHeadAttn):
    """Self-attention whose heads are mixed before and after the softmax (arXiv 2003.02436). ``(B, N, C)`` to the same.

    The mixing needs the matrix ``(B, H, N, N)``, gigabytes for a large image. The row of a query does not depend on the
    other rows, so without gradients the matrix is computed in slices of queries.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = q * self.scale
        if torch.is_grad_enabled() or is_traced():
            x = self.attend(q, k, v)
        else:
            bytes_of_row = batch * self.num_heads * tokens * x.element_size()
            rows = max(SLICE_BYTES // max(bytes_of_row, 1), 1)
            x = torch.cat([self.attend(part, k, v) for part in q.split(rows, 2)], 2)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, channels)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from scaled queries ``(B, H, n, d)`` to keys and values ``(B, H, N, d)``: ``(B, H, n, d)``."""
        return self.attn_drop(self._mix(q @ k.transpose(-2, -1))) @ v

    def _mix(self, scores: Tensor) -> Tensor:
        """Mix heads, apply softmax, mix heads again: ``(B, H, n, N)`` to the same."""
        attention = self.proj_l(scores.permute(0, 2, 3, 1))
        return self.proj_w(attention.softmax(2)).permute(0, 3, 1, 2)

    def attention_matrix(self, x: Tensor) -> Tensor:
        """Return the attention of :meth:`forward`'s input: ``(B, N, C)`` to ``(B, H, N, N)``. For analyses."""
        return self._mix(_scores(self, x))


class CaiTBlock(LayerScaleBlock):
    """CaiT's block: talking heads and layer scale. The factor of FeatScale is 1. ``(B, N, C)`` to the same."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        methods: Sequence[str],
    ) -> None:
        super().__init__(
            channels,
            num_heads,
            qkv_bias=True,
            drop_path=drop_path_rate,
            norm_layer=LayerNorm,
            attn_block=TalkingHeads,
            init_values=layer_scale_init_value,
        )
        if 'attn_scale' in methods:
            self.attn.proj_w = AttnScaleHeadMixing(num_heads)
        self.feat_scale = _feat_scale(channels, 1, methods)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.feat_scale(self.attn(self.norm1(x))))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class ClassAttentionBlock(LayerScaleBlockClassAttn):
    """CaiT's class attention, unmodified: ``(B, N, C)`` and the class token ``(B, 1, C)`` to a class token."""

    def __init__(self, channels: int, num_heads: int, layer_scale_init_value: float) -> None:
        super().__init__(channels, num_heads, qkv_bias=True, norm_layer=LayerNorm, init_values=layer_scale_init_value)
        # Fused attention would not call the dropout module; with a single query it saves little.
        setattr(self.attn, 'fused_attn', False)  # noqa: B010


class AttnScaleWindowAttention(WindowAttention):
    """Attention within windows, fused, with AttnScale of each window. ``(B * windows, N, C)`` to the same."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window_size: int, methods: Sequence[str]) -> None:
        super().__init__(channels, num_heads, window_size=window_size)
        self.lamb = _lamb(num_heads, methods)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # State dicts lack the indices of the table, so a model constructed on `meta` must compute them.
        indices = get_relative_position_index(*self.window_size).to(self.relative_position_bias_table.device)
        if self.relative_position_index.device == indices.device:
            self.relative_position_index.copy_(indices)
        else:
            self.relative_position_index = indices

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._bias(windows, mask).to(q.dtype)
        x = attn_scale(_attend(self, q, k, v, bias), v, self.lamb)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(windows, tokens, channels)))

    def _bias(self, windows: int, mask: Optional[Tensor]) -> Tensor:
        """Return what is added to the scores: relative-position bias and mask, ``(1 or B * windows, H, N, N)``."""
        bias = self._get_rel_pos_bias()
        return bias if mask is None else (bias + mask[:, None]).repeat(windows // mask.shape[0], 1, 1, 1)

    def attention_matrix(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Return the attention of :meth:`forward`'s input: to ``(B * windows, H, N, N)``. For analyses."""
        return _attn_scale_matrix((_scores(self, x) + self._bias(len(x), mask)).softmax(-1), self.lamb)


class DilatedPatchMerging(PatchMerging):
    """Patch merging of positions ``dilation`` apart, which keeps the size. ``(B, H, W, C)`` to ``(B, H, W, C')``."""

    def __init__(self, channels: int, next_channels: int, dilation: int) -> None:
        super().__init__(channels, next_channels)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        step, (height, width) = self.dilation, x.shape[1:3]
        x = F.pad(x, (0, 0, 0, step, 0, step))
        parts = [x[:, row * step :, column * step :][:, :height, :width] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class SwinBlock(SwinTransformerBlock):
    """Swin's block, for maps of any size. The factor of FeatScale is 1. ``(B, H, W, C)`` to the same.

    timm shifts a map before padding it, but masks it as if it were padded first. This equals the published code only
    where no padding is needed. Here the map is padded first, as published. A side that one window covers is not
    shifted, as published.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        shifted: bool,
        drop_path_rate: float,
        methods: Sequence[str],
        dilation: int = 1,
    ) -> None:
        super().__init__(
            channels,
            (window_size, window_size),
            num_heads,
            window_size=window_size,
            shift_size=window_size // 2 if shifted else 0,
            always_partition=True,
            dynamic_mask=True,
            drop_path=drop_path_rate,
        )
        self.dilation = dilation
        self.attn = AttnScaleWindowAttention(channels, num_heads, window_size, methods)
        self.feat_scale = _feat_scale(channels, 1, methods)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.feat_scale(self._dilated_attn(self.norm1(x))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _dilated_attn(self, x: Tensor) -> Tensor:
        if self.dilation == 1:
            return self._attn(x)
        height, width = x.shape[1:3]
        phases = space_to_batch(pad_to_multiple(x.permute(0, 3, 1, 2), self.dilation), self.dilation)
        x = self._attn(phases.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return batch_to_space(x, self.dilation).permute(0, 2, 3, 1)[:, :height, :width]

    def _attn(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        window, sides = self.window_size, (height, width)
        padded = [up_to_multiple(side, part) for side, part in zip(sides, window)]
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        shift = self._shift(sides, x)
        mask = None
        if shift:
            x = rolled(x, [-step for step in shift])
            mask = shift_mask(padded, window, shift, x)
        x = self.attn(window_partition(x, window).flatten(1, 2), mask)
        x = window_reverse(x.unflatten(1, window), window, *padded)
        if shift:
            x = rolled(x, shift)
        return x[:, :height, :width]

    def _shift(self, sides: Sequence[int], like: Tensor) -> Sequence[Union[int, Tensor]]:
        """Return how far a map of this height and width is rolled up and left; empty if it is not rolled.

        In exported graphs these are tensors, so that the graph works for any size.
        """
        if not any(self.shift_size):
            return []
        if records_any_size():
            # From the last index, because the side itself is not a tensor in some exporters.
            lasts = [torch.arange(side, device=like.device)[-1] for side in sides]
            return [(last >= part) * step for last, part, step in zip(lasts, self.window_size, self.shift_size)]
        shift = [0 if side <= part else step for side, part, step in zip(sides, self.window_size, self.shift_size)]
        return shift if any(shift) else []

    def window_positions(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """Return the positions of the window tokens in the block's map. For analyses.

        Args:
            x (Tensor): The block's input, ``(B, H, W, C)``.

        Returns:
            tuple[Tensor, tuple[int, int]]: ``(windows, N)``, ``row * W + column`` before the shift, -1 for padding; and
            ``(H, W)``.
        """
        height, width = x.shape[1:3]
        bottom, right = (up_to_multiple(side, part) - side for side, part in zip((height, width), self.window_size))
        index = torch.arange(height * width, device=x.device).view(height, width)
        index = F.pad(index, (0, right, 0, bottom), value=-1)
        shift = self._shift((height, width), x)
        if shift:
            index = index.roll([-int(step) for step in shift], (0, 1))
        return window_partition(index[None, :, :, None], self.window_size).flatten(1), (height, width)


def rolled(x: Tensor, shift: Sequence[Union[int, Tensor]]) -> Tensor:
    """Roll a map ``(B, H, W, C)`` down and right; ``shift`` in pixels, or tensors of them."""
    if not isinstance(shift[0], Tensor):
        return x.roll([int(step) for step in shift], (1, 2))
    for dim, step in zip((1, 2), shift):
        positions = torch.arange(x.shape[dim], device=x.device)
        x = x.index_select(dim, (positions - step) % (positions[-1] + 1))
    return x


def shift_mask(
    size: Sequence[int], window: Tuple[int, int], shift: Sequence[Union[int, Tensor]], like: Tensor
) -> Tensor:
    """Return the attention mask of a shifted map's windows: -100 between tokens that were not neighbours before.

    Args:
        size (Sequence[int]): Height and width, multiples of the window's.
        window (tuple[int]): Height and width of a window.
        shift (Sequence[int | Tensor]): Distances by which the map was rolled up and left.
        like (Tensor): Tensor of the wanted dtype and device.

    Returns:
        Tensor: ``(windows, N, N)``.
    """
    rows = torch.arange(size[0], device=like.device) >= size[0] - shift[0]
    columns = torch.arange(size[1], device=like.device) >= size[1] - shift[1]
    wrapped = (2 * rows[:, None] + columns).view(1, *size, 1)
    regions = window_partition(wrapped, window).flatten(1)
    apart = regions[:, None] != regions[:, :, None]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)
