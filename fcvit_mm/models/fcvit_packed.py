"""The arguments of the compiled kernel that computes a complete FCViT block, for inference."""

from functools import partial
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ..ops import native
from ..ops.checks import autocast_dtype
from ..ops.measured import is_untuned
from ..ops.tracing import is_traced
from .caches import ModuleCache
from .fcvit import FCViTBlock, GlobalContext, TokenMix, TokenMixer
from .layers import GroupNorm1, may_bypass, may_use_kernels
from .modified import is_unmodified


class PackedBlock(ModuleCache):
    """Arguments of :func:`native.fcvit_block` for one block, packed again when something in the block changes.

    Args:
        dtype (torch.dtype): Dtype in which 1x1 convolutions and the convolutions of token mixes multiply; everything
            else uses float32. On a CPU without instructions for the dtype, they use float32, too.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __getstate__(self) -> Dict[str, Any]:
        return dict(dtype=self.dtype)

    def args(self, block: FCViTBlock, x: Tensor) -> Optional[Tuple[Any, ...]]:
        """Return the arguments of :func:`native.fcvit_block`, or ``None`` if the kernel cannot compute this map.

        Under autocast the kernel runs on CPUs that it was tuned on; the map then becomes float32.
        """
        if type(x) is not Tensor:
            return None
        dtype = autocast_dtype(x)
        if dtype is None:
            packed = self._packed(block, x, self.dtype)
        elif x.device.type != 'cpu' or is_untuned(x):
            return None
        else:
            with torch.autocast('cpu', enabled=False):
                x = x.float()
                packed = self._packed(block, x, dtype)
        return None if packed is None else (x, *packed)

    def _packed(self, block: FCViTBlock, x: Tensor, dtype: torch.dtype) -> Optional[Tuple[Any, ...]]:
        if not may_use_kernels(x, block.channels):
            return None
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in block.parameters()):
            return None
        if dtype != torch.bfloat16 or not native.multiplies_bfloat16():
            dtype = torch.float32
        # A compiler records the packing of the weights. With freezing it runs once, otherwise at each call.
        return pack_block(block, dtype) if is_traced() else self.get(block, partial(pack_block, block), dtype)


def pack_block(block: FCViTBlock, dtype: torch.dtype = torch.float32) -> Optional[Tuple[Any, ...]]:
    """Return the arguments of :func:`native.fcvit_block` after the map.

    Args:
        block (FCViTBlock): A block for inference.
        dtype (torch.dtype): Dtype of the weights of 1x1 convolutions and token mixes: float32 or bfloat16.

    Returns:
        tuple or None: ``None`` if a layer of the block was modified, or the kernel does not support the configuration
            of the block.
    """
    mixer, channel_mixer, norms = block.token_mixer, block.channel_mixer, (block.norm1, block.norm2)
    mixes: List[Any] = list(mixer.mixes) if type(mixer) is TokenMixer else []
    if not (
        type(mixer) is TokenMixer
        and mixer.spatial_attention is None
        and all(type(mix) is TokenMix and _may_pack(mix) for mix in mixes)
        and len({mix.global_context.num_heads for mix in mixes}) == 1
        and all(map(is_unmodified, (block, mixer, mixer.mixes, *mixes, *norms)))
        and type(block.norm1) is type(block.norm2) is GroupNorm1
        and block.norm1.eps == block.norm2.eps
        and not block.norm2.affine
        and block.mixer_may_add()
        and channel_mixer.dwconv.kernel_size == (3, 3)
        and all(each.dtype == torch.float32 and each.device.type == 'cpu' for each in block.parameters())
    ):
        return None
    fc1, fc2 = channel_mixer.fc1, channel_mixer.fc2
    dwconv: Any = channel_mixer.dwconv
    return (
        block.norm1.weight,
        block.norm1.bias,
        [tensor for mix in mixes for tensor in _pack_mix(mix, dtype)],
        mixes[0].global_context.num_heads,
        block.layer_scale1,
        [
            native.pack(fc1.weight, dtype),
            fc1.bias,
            native.pack_taps(dwconv.weight),
            dwconv.bias,
            native.pack(fc2.weight, dtype),
            fc2.bias,
        ],
        block.norm1.eps,
        GlobalContext.eps,
    )


def _may_pack(mix: TokenMix) -> bool:
    """Check that the layers of a token mix are unmodified and that the kernel supports its configuration."""
    context: Any = mix.global_context
    dwconv = mix.dwconv
    return (
        type(context) is GlobalContext
        and context.compete
        and context.weighted
        and is_unmodified(context)
        and type(context.act) is nn.Identity
        and is_unmodified(context.act)
        and may_bypass(context.fc1, context.fc2, dwconv)
        and dwconv.groups == dwconv.in_channels == dwconv.out_channels
        and dwconv.kernel_size[0] == dwconv.kernel_size[1] > 3
        and mix.fc2 is not None
        and mix.act2 is not None
        and mix.may_fuse(mix.fc1, mix.fc2, mix.act1, mix.act2)
    )


def _pack_mix(mix: TokenMix, dtype: torch.dtype) -> Tuple[Optional[Tensor], ...]:
    """Return the parameters of a token mix in the order of :func:`native.fcvit_block`, weights packed."""
    context: Any = mix.global_context
    fc2: Any = mix.fc2
    return (
        native.pack(context.fc1.weight),
        context.fc1.bias,
        native.pack(context.fc2.weight),
        context.fc2.bias,
        context.rescale_weight,
        context.rescale_bias,
        native.pack_taps(mix.dwconv.weight, dtype),
        mix.dwconv.bias,
        native.pack(mix.fc1.weight, dtype),
        mix.fc1.bias,
        native.pack(fc2.weight, dtype),
        fc2.bias,
    )
