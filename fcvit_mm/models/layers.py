"""Layers and helpers that the networks share: patch embedding, stages, norms, stochastic depth, initial weights."""

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.modules.module as nn_module
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..deprecation import renamed_in
from ..ops import add_scaled, conv2d, depthwise_conv2d, gelu_, group_norm, native
from ..ops.conditions import needs_grad
from ..ops.conv import packed_conv2d, window_matrix
from ..ops.dispatch import current_mode
from ..ops.measured import is_untuned
from ..ops.tracing import hides_attributes, is_traced, is_transformed, records_any_size


class CachedWeight:
    """A tensor computed lazily from a weight and recomputed when the weight changes.

    Changes are detected by PyTorch's version counter: in-place changes and ``load_state_dict``, but not writes through
    ``.data``. The tensor is not part of a ``state_dict`` and is neither copied nor pickled with its layer.
    """

    _made: Optional[Tuple[Any, Tensor]] = None

    def get(self, weight: Tensor, make: Callable[[Tensor], Tensor], *conditions: Any) -> Tensor:
        """Return ``make(weight)``, cached while neither the weight nor the conditions change."""
        if type(weight) not in (Tensor, nn.Parameter):  # of a subclass, such as fake tensors, which have no memory
            return make(weight)
        key = (_state_of(weight), weight.shape, *conditions)
        kept = self._made  # key and tensor as one: other threads may be here, too
        if kept is not None and kept[0] == key:
            return kept[1]
        made = make(weight)
        if type(made) is Tensor:  # else a mode made it, which ends
            self._made = key, made
        return made

    def __getstate__(self) -> Dict[str, Any]:
        return {}


def _state_of(value: Tensor) -> Any:
    """Return a key that changes with the values of a tensor."""
    return value.data_ptr(), None if value.is_inference() else value._version


_version_of = attrgetter('_version')
#: Attributes of a module with its hooks.
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


class _ModuleState:
    """State that the forward pass of a module depends on, including that of all modules in it.

    It is compared at each call, so by functions of Python that are implemented in C, and with few objects: most of the
    time is spent reading them from memory.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.modules())
        self.hooks = RemovableHandle.next_id
        self.attributes = [vars(each) for each in self.modules]
        self.sizes = list(map(len, self.attributes))
        # The hooks' dictionaries are compared, too: other ones can be put in their place without registering a hook.
        self.readers = [itemgetter('training', *_HOOKS, *_settings_of(each)) for each in self.modules]
        self.values = self.read_attributes()
        self.children = [each._modules for each in self.modules]
        self.children_then = [dict(each) for each in self.children]
        self.holders = [each._parameters for each in self.modules if each._parameters]
        self.parameters = self.read_parameters()
        self.tensors = [each for each in self.parameters if each is not None]
        self.counted = [each for each in self.tensors if not each.is_inference()]  # the others have no version
        self.states = self.read_states()

    def read_attributes(self) -> List[Any]:
        return [read(attributes) for read, attributes in zip(self.readers, self.attributes)]

    def read_parameters(self) -> List[Optional[nn.Parameter]]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def read_states(self) -> List[int]:
        return [*map(Tensor.data_ptr, self.tensors), *map(_version_of, self.counted)]

    def has_hooks(self) -> bool:
        """Return whether a module has hooks; looked for only if a hook was registered anywhere since the last time."""
        count = RemovableHandle.next_id
        if count != self.hooks:
            if not all(map(is_unmodified, self.modules)):
                return True
            self.hooks = count
        return False

    def is_current(self) -> bool:
        """Return whether the modules still have this state, and no hooks."""
        if hides_attributes() or has_global_hooks() or self.has_hooks():
            return False
        try:
            same = (
                list(map(len, self.attributes)) == self.sizes  # a `forward` of its own makes an attribute more
                and self.read_attributes() == self.values
                and self.children == self.children_then
            )
        except KeyError:  # an attribute was deleted
            return False
        parameters = self.read_parameters()
        return (
            same
            and len(parameters) == len(self.parameters)
            and all(map(is_, parameters, self.parameters))
            and self.read_states() == self.states
        )


def _settings_of(module: nn.Module) -> List[str]:
    """Return the names of public attributes with plain values, such as ``eps``."""
    return [
        name
        for name, value in vars(module).items()
        if name[0] != '_' and name != 'training' and isinstance(value, (int, float, str, tuple))
    ]


class ModuleCache:
    """A value computed from a module's parameters, recomputed when a parameter, child, hook or setting changes.

    Parameter changes are detected as in :class:`CachedWeight`; so are replaced child modules, hooks, parametrisations,
    the training mode and settings such as ``eps``. It is neither copied nor pickled with the module.
    """

    _made: Optional[Tuple[Any, _ModuleState, Any]] = None

    def get(self, module: nn.Module, make: Callable[[Any], Any], option: Any) -> Any:
        """Return ``make(option)``, cached while nothing changes.

        Args:
            module (nn.Module): The module whose parameters, including those of its children, the value depends on.
            make (Callable): Returns the value, or ``None`` if the modules do not permit it.
            option (Any): What else the value depends on. Only the value for the last option is kept.
        """
        kept = self._made  # option, state and value as one: other threads may be here, too
        if kept is not None and kept[0] == option and kept[1].is_current():
            return kept[2]
        self._made = None
        made = make(option)
        if made is not None:
            self._made = option, _ModuleState(module), made
        return made

    def __getstate__(self) -> Dict[str, Any]:
        return {}


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, computed by the fastest implementation for its input.

    Attributes:
        packed (CachedWeight, optional): The weight of a 1x1 or a depth-wise kernel as compiled kernels read it, for
            inference; see :func:`packed_parameters`.
    """

    packed: Optional[CachedWeight] = None

    @property
    def keeps_size(self) -> bool:
        """``True`` if its padding is that of an undilated kernel of odd size, stride 1."""
        return (
            self.stride == self.dilation == (1, 1)
            and self.padding == tuple(size // 2 for size in self.kernel_size)
            and self.padding_mode == 'zeros'
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == self.in_channels == self.out_channels > 1 and self.keeps_size:
            return depthwise_conv2d(x, self.weight, self.bias)
        if self.padding_mode != 'zeros':
            return super().forward(x)
        if self.packed is not None and self.bias is not None and self.groups == 1 and self.kernel_size != (1, 1):
            settings = (self.stride, self.padding, self.dilation)
            out = packed_conv2d(x, self.weight, self.bias, *settings, self._pack_windows)
            if out is not None:
                return out
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups, self.dilation)

    def _pack_windows(self) -> Tensor:
        packed: Any = self.packed
        return packed.get(self.weight, lambda weight: native.pack(window_matrix(weight)))


class Linear(nn.Linear):
    """``nn.Linear`` that uses the compiled kernels for inference where they are faster: on AMD CPUs with AVX-512."""

    def forward(self, x: Tensor) -> Tensor:
        if is_traced() or x.ndim < 2 or x.shape[-1] != self.in_features or x.numel() == 0 or not self.pays(x):
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).contiguous().permute(0, 3, 1, 2)
        if not may_use_packed(rows, self.in_features, self.weight, self.bias):
            return super().forward(x)
        out = native.pointwise_conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    @staticmethod
    def pays(x: Tensor) -> bool:
        """Return whether PyTorch's matrix products are slower: MKL only uses AVX2 on AMD CPUs."""
        return x.device.type == 'cpu' and native.available() and native.instructions() == 'AVX512' and not is_untuned(x)


# -- the one rule for what may be computed without calling it, or be fused ---------------------------------------------


def is_unmodified(module: nn.Module) -> bool:
    """Check that a module is unmodified: no hooks, no ``forward`` of its own, no parametrisation.

    Pruning, feature extraction, old ``weight_norm``, offloading (accelerate) and ``parametrize`` (spectral norm, LoRA)
    use these.
    """
    if hides_attributes():
        return False  # unknown: it is called, which is always right
    own = module.__dict__
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or 'forward' in own
        or 'parametrizations' in module._modules
    )


def has_global_hooks() -> bool:
    """Check whether hooks are registered for all modules, as counters and profilers do."""
    return bool(
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Check whether a convolution or linear layer reads each position alone."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.padding in ((0, 0), 'same', 'valid') and layer.groups == 1
    return isinstance(layer, nn.Linear)


def may_bypass(*layers: nn.Module) -> bool:
    """Check whether these convolutions or linear layers may be computed from their weights, without calling them.

    Not if they are modified (:func:`is_unmodified`), replaced by another class, or if global hooks are registered.
    """
    for layer in layers:
        if type(layer) is Conv2d:
            if not layer.keeps_size:
                return False
        elif type(layer) is not nn.Linear:
            return False
        if layer.bias is None or not is_unmodified(layer):
            return False
    return not has_global_hooks()


def may_use_packed(x: Tensor, channels: int, *others: Optional[Tensor]) -> bool:
    """Check whether compiled kernels may compute a map with weights that were packed before.

    Arguments are those of :func:`may_use_kernels`.
    """
    return not is_traced() and may_use_kernels(x, channels, *others)


def may_use_kernels(x: Tensor, channels: int, *others: Optional[Tensor]) -> bool:
    """Check whether compiled kernels may compute a map, in a graph that a compiler records, too.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        channels (int): Expected number of channels.
        others (Tensor, optional): Parameters that the result is computed with.
    """
    return not (
        current_mode() == 'reference'
        or is_transformed()
        or x.ndim != 4
        or x.shape[1] != channels
        or not native.applies(x, *others)
        or needs_grad(x, *others)
    )


def packed_parameters(x: Tensor, fc1: Conv2d, fc2: Conv2d, *others: Optional[Tensor]) -> Optional[Tuple[Any, ...]]:
    """Return packed weights and biases of two 1x1 convolutions, if compiled kernels can compute this map.

    Args:
        x (Tensor): ``(B, C, H, W)``, which ``fc1`` reads.
        fc1 (Conv2d): Layers that :func:`may_bypass` allows.
        fc2 (Conv2d): The same.
        others (Tensor, optional): Further tensors of the computation.

    Returns:
        tuple or None: Weight, bias, weight, bias, the weights of :func:`fcvit_mm.ops.native.pack`; ``None`` if
            ``packed`` is not set in both layers, or another implementation is wanted: while gradients are needed or a
            graph is made, in other dtypes and layouts.
    """
    if fc1.packed is None or fc2.packed is None:
        return None
    if not may_use_packed(x, fc1.in_channels, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *others):
        return None
    return fc1.packed.get(fc1.weight, native.pack), fc1.bias, fc2.packed.get(fc2.weight, native.pack), fc2.bias


def is_gelu(activation: nn.Module) -> bool:
    """Check whether an activation is the exact GELU, and may be computed without calling it."""
    return type(activation) is nn.GELU and activation.approximate == 'none' and is_unmodified(activation)


def is_inactive(dropout: nn.Module) -> bool:
    """Check whether a dropout, or a stochastic depth, drops nothing, and need not be called."""
    drops_nothing = (
        type(dropout) is nn.Identity
        or (type(dropout) is nn.Dropout and not (dropout.training and dropout.p > 0))
        or (type(dropout) is DropPath and not (dropout.training and dropout.rate > 0))
    )
    return drops_nothing and is_unmodified(dropout)


def activated(layer: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Return the activation of a layer's output, which a GELU overwrites if nothing else can see it.

    Args:
        layer (nn.Module): Layer that returns ``(B, C, H, W)``, or a linear one that returns ``(B, H, W, C)``.
        activation (nn.Module): Activation of the output.
        x (Tensor): The layer's input.

    Returns:
        Tensor: Activated output, in the shape of the layer's output.
    """
    x = layer(x)
    if not (is_gelu(activation) and may_bypass(layer)):
        return activation(x)
    if isinstance(layer, nn.Linear):
        return gelu_(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return gelu_(x)


#: Layers that can take over a norm or scale next to them.
Weighted = Union[nn.Conv2d, nn.Linear]


def can_fuse(*modules: nn.Module) -> bool:
    """Check that these modules are unmodified, so that one can be fused into another.

    Layers and norms of classes that override ``forward`` are none of those: adapters (LoRA), quantized layers.
    """
    return all(is_unmodified(module) and type(module).forward in _FUSIBLE for module in modules)


#: What :func:`can_fuse` knows.
_FUSIBLE = {
    Conv2d.forward,
    nn.Conv2d.forward,
    nn.Linear.forward,
    nn.Identity.forward,
    nn.Dropout.forward,
    _BatchNorm.forward,
    nn.SyncBatchNorm.forward,
}


@torch.no_grad()
def batch_norm_affine(norm: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Return factor and bias per channel of a BatchNorm in evaluation mode, in float64.

    Raises:
        ValueError: It has no running statistics, so that its factors depend on the batch.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f'{norm} has no running statistics (track_running_stats=False): it cannot be fused')
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight.double() * scale
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else norm.bias.double() + shift


@torch.no_grad()
def fuse_output_(layer: Weighted, scale: Tensor, shift: Tensor) -> None:
    """Fuse a ``scale`` and ``shift`` of the output channels into a convolution or linear layer."""
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    _set(layer, layer.weight.double().flatten(1) * scale.double()[:, None], bias)


@torch.no_grad()
def fuse_input_(layer: Weighted, scale: Tensor, shift: Tensor) -> None:
    """Fuse a ``scale`` and ``shift`` of the input channels into a 1x1 convolution or linear layer."""
    weight = layer.weight.double().flatten(1)
    bias = weight @ shift.double() + (0 if layer.bias is None else layer.bias.double())
    _set(layer, weight * scale.double(), bias)


def _set(layer: Weighted, weight: Tensor, bias: Tensor) -> None:
    # New parameters: another layer may share the old ones.
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like.dtype).view_as(like), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)


def fuse_batch_norm_(layer: Weighted, norm: nn.Module) -> nn.Module:
    """Fuse a BatchNorm (in evaluation mode) into the convolution before it.

    Other norms are not fused, nor if the norm or the convolution is modified: see :func:`can_fuse`.

    Returns:
        nn.Module: The replacement of the norm.
    """
    if not isinstance(norm, _BatchNorm) or not can_fuse(layer, norm):
        return norm
    fuse_output_(layer, *batch_norm_affine(norm))
    return nn.Identity()


def fuse_batch_norm_before_(norm: nn.Module, layer: Weighted) -> nn.Module:
    """Fuse a BatchNorm (in evaluation mode) into the 1x1 convolution or linear layer after it.

    Other norms are not fused, nor if the norm or the layer is modified: see :func:`can_fuse`.

    Returns:
        nn.Module: The replacement of the norm.
    """
    if not (isinstance(norm, _BatchNorm) and can_fuse(layer, norm) and is_pointwise(layer)):
        return norm
    fuse_input_(layer, *batch_norm_affine(norm))
    return nn.Identity()


class PatchEmbed(nn.Module):
    """Patch embedding, as the stem or between stages: a strided convolution and BatchNorm.

    Source: arXiv 2212.12552, section 4 and its published code.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Side of the convolution's kernel.
        stride (int): Stride of the convolution.
        dilation (int): Dilation of the convolution; the padding is ``kernel_size // 2`` times that.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    norm: nn.Module

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.proj = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))

    def fuse_(self) -> None:
        """Fuse the BatchNorm into the convolution, in place, for inference."""
        self.norm = fuse_batch_norm_(self.proj, self.norm)


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group: mean and variance over the channels and positions of each image.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494, with one group.

    Args:
        channels (int): ``C``.
        affine (bool): Learn a factor and a bias per channel.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(1, channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == 'cpu' and torch.is_grad_enabled() and not x.requires_grad:
            # After frozen layers: PyTorch's channels_last kernel on CPU crashes (seen in 2.1 to 2.11) in the backward
            # pass when the affine parameters want a gradient and the input does not.
            x = x.contiguous()
        elif is_transformed():  # whose decomposition takes views
            x = x.contiguous()
        return group_norm(x, self.weight, self.bias, self.eps)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map.

    Args:
        channels (int): ``C``.
        eps (float): Number added to the variance.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Patch embedding, followed by blocks at one resolution.

    Args:
        downsample (nn.Module): Patch embedding between stages; ``nn.Identity`` in the first.
        blocks (Sequence[nn.Module]): Blocks, each of which keeps the shape.
        with_cp (bool): Recompute each block's activations in the backward pass instead of storing them.

    Shape:
        ``(B, C_previous, H, W)`` to ``(B, C, ceil(H / 2), ceil(W / 2))``; the first stage keeps the size.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block, recomputed in the backward pass if ``with_cp``."""
        return recomputed(block, x) if self.with_cp and torch.is_grad_enabled() else block(x)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, computed again in the backward pass; BatchNorms count the batch once all the same."""
    if any(isinstance(module, _BatchNorm) for module in block.modules()):
        contexts = partial(_first_and_second_pass, block)
        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return checkpoint(block, x, use_reentrant=False)


def _first_and_second_pass(block: nn.Module) -> Tuple[ContextManager[None], ContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Leave running statistics of BatchNorms in training as they are."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    momenta, batches = [norm.momentum for norm in norms], [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for count, batch in zip(counts, batches):
            count.copy_(batch)


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for some images of the batch.

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382. What survives is divided by the
    probability of surviving, so that the expected value stays.

    Args:
        rate (float): Probability of dropping, in ``[0, 1)``.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep(x, x.dtype)
        return x if keep is None else x * keep.view(-1, *(1,) * (x.ndim - 1))

    def keep(self, x: Tensor, dtype: torch.dtype) -> Optional[Tensor]:
        """Return the factors ``(B,)`` of a batch's branches: 0, or 1 / P(surviving); None for all 1."""
        if not self.training or self.rate == 0:
            return None
        probability = 1 - self.rate
        return x.new_empty(x.shape[0], dtype=dtype).bernoulli_(probability).div_(probability)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3g}'


def residual(x: Tensor, branch: Tensor, scale: Optional[Tensor], drop_path: nn.Module) -> Tensor:
    """Return a map plus a branch times its layer scale, after stochastic depth: all ``(B, C, H, W)``.

    Args:
        x (Tensor): The map.
        branch (Tensor): Output of the branch.
        scale (Tensor, optional): ``(C,)``.
        drop_path (nn.Module): :class:`DropPath`, or what somebody put in its place.
    """
    if type(drop_path) is DropPath and is_unmodified(drop_path) and not has_global_hooks():
        # Under autocast the branch may be of lower precision than its product with the scale, which the factor is for.
        dtype = branch.dtype if scale is None else torch.promote_types(branch.dtype, scale.dtype)
        return add_scaled(x, branch, scale, drop_path.keep(branch, dtype))
    return x + drop_path(branch if scale is None else branch * scale[:, None, None])


def drop_path_rates(rate: float, depths: Sequence[int]) -> List[List[float]]:
    """Return rates that grow linearly with the block's index over all stages, grouped by stage.

    Args:
        rate (float): The last block's rate.
        depths (Sequence[int]): Blocks per stage.

    Returns:
        list[list[float]]: One rate per block, ``rate * index / (blocks - 1)``.
    """
    last = max(sum(depths) - 1, 1)
    rates = iter([rate * index / last for index in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_weights_(module: nn.Module) -> None:
    """Initialize one layer in place, as the published FCViT code does; for ``Module.apply``.

    Convolutions: normal with standard deviation ``sqrt(2 / (kernel area * out_channels / groups))``, bias 0.
    Linear layers: normal truncated at two, standard deviation 0.02, bias 0. Norms: 1 and 0.
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameter values in ``module``, frozen ones included (buffers are not parameters)."""
    return sum(parameter.numel() for parameter in module.parameters())


def up_to_multiple(side: int, divisor: int) -> int:
    """Return the next multiple of ``divisor``.

    Exporters recognize it as one in this notation; ``//`` of negative numbers is avoided because ONNX's division rounds
    towards zero.
    """
    return (side + divisor - 1) // divisor * divisor


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pad ``(B, C, H, W)`` with zeros, right and bottom, until both sides are multiples of ``divisor``."""
    height, width = x.shape[2:]
    down, right = up_to_multiple(height, divisor) - height, up_to_multiple(width, divisor) - width
    return F.pad(x, (0, right, 0, down)) if records_any_size() or down or right else x


def space_to_batch(x: Tensor, dilation: int) -> Tensor:
    """Return each set of positions ``dilation`` apart as an image, in which a dilated operation is undilated.

    Args:
        x (Tensor): ``(B, C, H, W)``, sides multiples of ``dilation``.
        dilation (int): ``d``.

    Returns:
        Tensor: ``(B * d * d, C, H / d, W / d)``.
    """
    if dilation == 1:
        return x
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))
    return x.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def batch_to_space(x: Tensor, dilation: int) -> Tensor:
    """Undo :func:`space_to_batch`."""
    if dilation == 1:
        return x
    x = x.unflatten(0, (-1, dilation, dilation)).permute(0, 3, 4, 1, 5, 2)
    return x.flatten(4, 5).flatten(2, 3)


def check_image_batch(x: Tensor, channels: int, name: str) -> None:
    """Raise an error if ``x`` is not a batch of images for the network.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: ``x`` is not ``(B, channels, H, W)`` with both sides at least 1.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f'{name} got {got}, expected a floating-point tensor: convert the images first, as the data_preprocessor '
            'of a config does'
        )
    if x.ndim != 4:
        raise ValueError(
            f'{name} got {x.ndim} dimensions {tuple(x.shape)}, expected a batch of images (B, {channels}, H, W): add '
            'the batch dimension of a single image with image[None]'
        )
    if x.shape[1] != channels:
        raise ValueError(
            f'{name} got {x.shape[1]} channels in {tuple(x.shape)}, expected {channels}: pass (B, {channels}, H, W), '
            f'or build it with in_channels={x.shape[1]}'
        )
    if any(side < 1 for side in x.shape[2:]):
        raise ValueError(
            f'{name} got images of {x.shape[2]}x{x.shape[3]} pixels, expected at least 1x1: check their size'
        )


__getattr__ = renamed_in(__name__)
