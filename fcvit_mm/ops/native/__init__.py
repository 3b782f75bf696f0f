"""CPU kernels in C++, registered as torch operators ``fcvit_mm_cpu::...``, where the package was installed with them.

setup.py builds them if torch and a compiler are there. They need an x86-64 processor with AVX2, Linux, and the torch
that they were built with: the library's name holds its version. Elsewhere :func:`applies` is false, and nothing fails.
"""

import math
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import autocast_dtype
from ..conditions import is_channels_last, needs_grad, register_flops
from ..tracing import assume_constant, is_traced, records_file

FOLDER = Path(__file__).parent
_PREFIX = 'kernels_for_torch_'
#: Operators whose arguments are a map and weights of convolutions.
CONVOLUTIONS = ('depthwise_conv2d', 'dwconv_gelu', 'pointwise_conv2d', 'bottleneck', 'channel_mixer')
#: The condition of :func:`applies` as text.
APPLIES = 'float32, channels_last on a CPU with AVX2; compiled kernels installed; no autocast; not in exported files'


def name_of_library(torch_version: str) -> str:
    """Return the file name, without suffix, of the library for a version of torch; ``setup.py`` uses it, too."""
    return _PREFIX + re.sub(r'\W', '_', torch_version.split('+')[0])


@assume_constant
def available() -> bool:
    """Return whether the kernels are installed for this torch and processor; warn if they are for another torch.

    The library is loaded in the first call.
    """
    return _load()


@lru_cache(maxsize=None)
def _load() -> bool:
    if torch.backends.cpu.get_cpu_capability() not in ('AVX2', 'AVX512'):
        return False
    library = FOLDER / f'{name_of_library(torch.__version__)}.so'
    if library.is_file():
        try:
            torch.ops.load_library(library)
            for name in CONVOLUTIONS:
                register_flops(getattr(torch.ops.fcvit_mm_cpu, name))
            for name, formula in _FLOPS.items():
                register_flops(getattr(torch.ops.fcvit_mm_cpu, name), formula)
            # The newest operator: a library without it was compiled for an older version of this package.
            _ = torch.ops.fcvit_mm_cpu.multiplies_bfloat16
            return torch.ops.fcvit_mm_cpu.supported()
        except (OSError, RuntimeError, AttributeError) as error:
            _warn(f'cannot be loaded ({error})')
            return False
    others = sorted(path.stem[len(_PREFIX) :].replace('_', '.') for path in FOLDER.glob(f'{_PREFIX}*.so'))
    if others:
        _warn(f'were built for torch {", ".join(others)}, but torch {torch.__version__} is installed')
    return False


def _flops_of_taps(grad: Sequence[int], x: Sequence[int], kernel_size: int, **_: Any) -> int:
    return 2 * math.prod(x) * kernel_size**2


def _flops_of_taps_and_convolution(grad: Sequence[int], x: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _flops_of_taps(grad, x, 3)


def _flops_of_winograd(x: Sequence[int], panels: Sequence[int], outputs: int, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * outputs * 9


def _flops_of_pointwise(grad: Sequence[int], x: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(grad) * x[1]


def _flops_of_block(
    x: Sequence[int],
    norm_weight: Any,
    norm_bias: Any,
    mixes: Sequence[Sequence[int]],
    num_heads: int,
    scale: Any,
    channel_mixer: Sequence[Sequence[int]],
    *_: Any,
    **__: Any,
) -> int:
    # Numbers of channels come from the biases, because packed weights are rounded up to whole panels.
    batch, channels, height, width = x
    per_image, per_position = 0, 0
    for i in range(0, len(mixes), 12):
        of = mixes[i : i + 12]
        candidates, hidden = of[1][0], of[9][0]
        per_image += candidates * channels + candidates // 2 * channels
        taps = of[6][1] if len(of[6]) == 3 else (math.isqrt(8 * of[6][1] + 1) - 1) ** 2 // 4  # k (k + 1) / 2 pairs
        per_position += channels * taps + 2 * channels * hidden
    expanded = channel_mixer[1][0]
    per_position += expanded * (2 * channels + 9)
    return 2 * batch * (per_image + height * width * per_position)


_FLOPS: Dict[str, Callable[..., int]] = {
    'fcvit_block': _flops_of_block,
    'depthwise_conv2d_grad_weight': _flops_of_taps,
    'dwconv_gelu_grad_': _flops_of_taps_and_convolution,
    'pointwise_conv2d_grad_weight': _flops_of_pointwise,
    'winograd_conv2d': _flops_of_winograd,
}


def _warn(what: str) -> None:
    warnings.warn(
        f"fcvit_mm: the compiled CPU kernels {what}. PyTorch's kernels are used instead: same results, slower. "
        'Reinstall the package with `pip install --no-build-isolation` to rebuild them, or with FCVIT_MM_NATIVE=0 in '
        'the environment to install without them',
        RuntimeWarning,
        stacklevel=5,
    )


def applies(x: Tensor, *others: Optional[Tensor]) -> bool:
    """Return whether the kernels can process a map and the tensors that come with it; see :data:`APPLIES`."""
    return (
        x.device.type == 'cpu'
        and is_channels_last(x)
        and autocast_dtype(x) is None
        and all(y is None or y.dtype == torch.float32 for y in (x, *others))
        and not records_file()
        and available()
    )


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the depth-wise convolution, stride 1, same padding.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32.
        weight (Tensor): ``(C, 1, k, k)``, k odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)`` in channels_last. It is differentiable.
    """
    if needs_grad(x, weight, bias):
        return _DepthwiseConv2d.apply(x, weight, bias)
    return torch.ops.fcvit_mm_cpu.depthwise_conv2d(x, weight, bias)


class _DepthwiseConv2d(torch.autograd.Function):
    """The gradients of :func:`depthwise_conv2d`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        return torch.ops.fcvit_mm_cpu.depthwise_conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        needs_x, *needs_others = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = depthwise_conv2d(grad, weight.flip(2, 3))
        if any(needs_others) and (is_traced() or not torch.is_grad_enabled()):
            grad_weight, grad_bias = torch.ops.fcvit_mm_cpu.depthwise_conv2d_grad_weight(grad, x, weight.shape[-1])
            grad_bias = grad_bias if ctx.has_bias else None
        elif any(needs_others):  # for higher derivatives, by an operator that supports them
            channels, padding = weight.shape[0], weight.shape[-1] // 2
            grad = grad.contiguous(memory_format=torch.channels_last)
            _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                [channels] if ctx.has_bias else None,
                [1, 1],
                [padding, padding],
                [1, 1],
                False,
                [0, 0],
                channels,
                [False, *needs_others],
            )
        return grad_x, grad_weight, grad_bias


def dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the depth-wise convolution and the exact GELU in one pass, without derivatives.

    Arguments and result are those of :func:`depthwise_conv2d`.
    """
    return torch.ops.fcvit_mm_cpu.dwconv_gelu(x, weight, bias)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the 1x1 convolution as a matrix product, without derivatives.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32.
        weight (Tensor): ``(D, C, 1, 1)``; with a bias, also that of :func:`pack`.
        bias (Tensor, optional): ``(D,)``.

    Returns:
        Tensor: ``(B, D, H, W)`` in channels_last.
    """
    return torch.ops.fcvit_mm_cpu.pointwise_conv2d(x, weight, bias)


@assume_constant
def instructions() -> str:
    """Return the instructions of the kernels in use: ``AVX2`` or ``AVX512``; ``none`` without kernels.

    They are those that PyTorch itself uses: ``ATEN_CPU_CAPABILITY=avx2`` in the environment disables AVX-512 for both.
    """
    return str(torch.ops.fcvit_mm_cpu.instructions()) if available() else 'none'


@assume_constant
def panel_width() -> int:
    """Return how many output channels a matrix product computes at a time: 16 with AVX2, 32 with AVX-512."""
    return int(torch.ops.fcvit_mm_cpu.panel_width())


@assume_constant
def multiplies_bfloat16() -> bool:
    """Return whether the kernels in use multiply bfloat16, which needs AVX-512 and a processor with ``avx512_bf16``."""
    return available() and bool(torch.ops.fcvit_mm_cpu.multiplies_bfloat16())


def winograd_panels(weight: Tensor) -> Tensor:
    """Pack weights for :func:`winograd_conv2d`: ``(36, C, D)`` to ``(36, D / P rounded up, C, P)``.

    P is :func:`panel_width`.
    """
    return _panels(weight)


def pack(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pack the weight ``(D, C, 1, 1)`` of a 1x1 convolution for the matrix products: ``(D / P rounded up, C, P)``.

    P is :func:`panel_width`. All kernels with 1x1 weights accept them in this layout, in float32; :func:`fcvit_block`
    also in bfloat16, as pairs of neighbouring inputs: ``(D / P rounded up, C / 2 rounded up, P, 2)``.
    """
    matrix = weight.detach().flatten(1)
    if dtype == torch.float32:
        return _panels(matrix.t())
    pairs = F.pad(matrix.to(dtype), (0, matrix.shape[1] % 2)).unflatten(1, (-1, 2))  # (D, C / 2, 2)
    return _panels(pairs.permute(2, 1, 0)).permute(1, 2, 3, 0).contiguous()


def _panels(weight: Tensor) -> Tensor:
    *points, channels, outputs = weight.shape
    width = panel_width()
    padded = F.pad(weight, (0, -outputs % width))
    return padded.reshape(*points, channels, -1, width).transpose(-3, -2).contiguous()


def pack_taps(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pack the weight ``(C, 1, k, k)`` of a depth-wise convolution for the kernels: ``(C / L, k * k, L)``.

    L is half of :func:`panel_width`; C is padded to a multiple of L. :func:`fcvit_block` and :func:`channel_mixer`
    expect weights in this layout. In token mixes :func:`fcvit_block` also takes bfloat16, as pairs of neighbours in a
    row: ``(C / L, k * (k / 2 rounded up), L, 2)``.
    """
    width = panel_width()
    taps = F.pad(weight.detach().flatten(1), (0, 0, 0, -len(weight) % width))
    if dtype != torch.float32:
        size = weight.shape[-1]
        taps = F.pad(taps.to(dtype).unflatten(1, (size, size)), (0, size % 2)).reshape(len(taps), -1, 2)
    return taps.unflatten(0, (-1, width // 2)).transpose(1, 2).contiguous()


def winograd_conv2d(x: Tensor, panels: Tensor, outputs: int, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the 3x3 convolution with one zero around the map by Winograd's tiles, without derivatives.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32.
        panels (Tensor): Result of :func:`winograd_panels`.
        outputs (int): D.
        bias (Tensor, optional): ``(D,)``.

    Returns:
        Tensor: ``(B, D, H, W)`` in channels_last.
    """
    return torch.ops.fcvit_mm_cpu.winograd_conv2d(x, panels, outputs, bias)


def bottleneck(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """Compute two 1x1 convolutions, each followed by the exact GELU, a few positions at a time, without gradients.

    Arguments and result are those of :func:`fcvit_mm.ops.bottleneck`; both weights may be packed by :func:`pack`.
    """
    return torch.ops.fcvit_mm_cpu.bottleneck(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)


def channel_mixer(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    shortcut: Optional[Tensor] = None,
) -> Tensor:
    """Compute the channel mixer for a few rows and expanded channels at a time, without derivatives.

    Arguments and result are those of :func:`fcvit_mm.ops.channel_mixer`, the depth-wise kernel 3x3. The weights may
    be packed by :func:`pack` and :func:`pack_taps`, all three or none.
    """
    return torch.ops.fcvit_mm_cpu.channel_mixer(
        x, fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias, shortcut
    )


def fcvit_block(
    x: Tensor,
    norm_weight: Optional[Tensor],
    norm_bias: Optional[Tensor],
    mixes: Sequence[Tensor],
    num_heads: int,
    scale: Optional[Tensor],
    channel_mixer: Sequence[Tensor],
    eps: float,
    context_eps: float,
) -> Tensor:
    """Compute a block of FCViT, image by image where there are enough of them, without derivatives.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32.
        norm_weight (Tensor, optional): ``(C,)``, of the first GroupNorm of one group; the second has none.
        norm_bias (Tensor, optional): ``(C,)``.
        mixes (Sequence[Tensor]): Weights and biases of each token mix: of the context's two linear layers, of its
            scale, of the depth-wise and of the two 1x1 convolutions; weights from :func:`pack` and :func:`pack_taps`,
            the kernel larger than 3x3. Those of the three convolutions are bfloat16 in all mixes or none.
        num_heads (int): Number of similarities of the context.
        scale (Tensor, optional): ``(C,)``, factor of the mixes' result before ``x`` is added.
        channel_mixer (Sequence[Tensor]): Weights and biases of :func:`channel_mixer` in its order, weights packed.
        eps (float): ``eps`` of the norms.
        context_eps (float): Number added to the standard deviation of the similarities.

    Returns:
        Tensor: ``(B, C, H, W)`` in channels_last.
    """
    return torch.ops.fcvit_mm_cpu.fcvit_block(
        x, norm_weight, norm_bias, mixes, num_heads, scale, channel_mixer, eps, context_eps
    )


def add_global_context(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    """Compute the similarity, then add the weighted context, in one pass over the map each, without derivatives.

    Arguments and result are those of :func:`fcvit_mm.ops.add_global_context`.
    """
    return torch.ops.fcvit_mm_cpu.add_global_context(x, means, context, num_heads, rescale_weight, rescale_bias, eps)


def group_norm(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float) -> Tensor:
    """Compute GroupNorm with one group, image after image, without derivatives.

    Arguments and result are those of :func:`fcvit_mm.ops.group_norm`.
    """
    return torch.ops.fcvit_mm_cpu.group_norm(x, weight, bias, eps)


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """Compute ``x + branch * scale``, maps ``(B, C, H, W)`` and ``(C,)``, in one pass and without derivatives."""
    return torch.ops.fcvit_mm_cpu.add_scaled(x, branch, scale)


def gelu_(x: Tensor) -> Tensor:
    """Compute the exact GELU in place, of any dense tensor of float32, without derivatives."""
    result = torch.ops.fcvit_mm_cpu.gelu_(x)
    increment: Any = getattr(torch.autograd.graph, 'increment_version', None)
    if increment is not None and not is_traced() and not x.is_inference():
        increment(x)  # the version, by which autograd detects changes of tensors that it saved
    return result
