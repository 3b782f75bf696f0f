"""Attention matrices and layouts of timm's and mmpretrain's modules, which do not expose them.

Classes of a package are imported only if the package is imported already; otherwise none of its networks exists.
"""

import sys
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

#: Function of a module and the arguments of its ``forward``; returns the attention matrix ``(B, heads, N, N)``.
AttentionFunction = Callable[..., Tensor]


def attention_functions() -> Dict[type, AttentionFunction]:
    """Return functions that compute the attention matrix, by the class whose ``forward`` computes the attention.

    A subclass that overrides ``forward`` needs a row of its own.
    """
    functions: Dict[type, AttentionFunction] = {}
    if 'timm' in sys.modules:
        from timm.layers import Attention
        from timm.models.cait import TalkingHeadAttn

        functions[Attention] = softmax_attention
        functions[TalkingHeadAttn] = talking_heads_attention
    if 'mmpretrain.models' in sys.modules:
        from mmpretrain.models.utils.attention import MultiheadAttention

        functions[MultiheadAttention] = softmax_attention
    return functions


def channels_last_blocks() -> Tuple[type, ...]:
    """Return the classes of blocks whose maps are ``(B, H, W, C)``."""
    if 'timm' not in sys.modules:
        return ()
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.swin_transformer_v2 import SwinTransformerV2Block

    return SwinTransformerBlock, SwinTransformerV2Block


def attention_scores(module: Any, x: Tensor) -> Tensor:
    """Compute the scaled products of queries and keys: ``(B, N, C)`` to ``(B, heads, N, N)``."""
    q, k, _ = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(module, 'q_norm'):
        q, k = module.q_norm(q), module.k_norm(k)
    scores: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    return scores


def softmax_attention(module: Any, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
    """Compute the matrix of a self-attention: ``(B, N, C)`` to ``(B, heads, N, N)``; a mask is added to the scores."""
    scores = attention_scores(module, x)
    if attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)


def talking_heads_attention(module: Any, x: Tensor) -> Tensor:
    """Compute the matrix of a self-attention whose heads are mixed before and after the softmax (arXiv 2003.02436)."""
    scores = module.proj_l(attention_scores(module, x).permute(0, 2, 3, 1))
    attention: Tensor = module.proj_w(scores.softmax(2))
    return attention.permute(0, 3, 1, 2)
