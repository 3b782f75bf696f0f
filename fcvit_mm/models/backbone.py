"""The base class of all backbones: what a subclass must build, and what it inherits.

The forward loop and the memory formats of computation and outputs are defined only here.
"""

from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops import native, triton
from ..ops.conditions import is_channels_last
from ..ops.dispatch import current_mode
from ..ops.tracing import call, is_exporting, is_transformed, records_any_size
from .published_names import PublishedNames

#: Types of an ``init_cfg`` that loads a file; pure-Python configs have the class.
PRETRAINED = ('Pretrained', 'PretrainedInit', PretrainedInit)
#: MMEngine's ``init_cfg``: one, several or none.
InitCfg = Union[None, dict, Sequence[dict]]


def normalize_indices(indices: Union[int, Sequence[int]], length: int, name: str = 'out_indices') -> Tuple[int, ...]:
    """Convert stage indices, of which negative ones count from the end, to ascending ones; the argument is unchanged.

    Args:
        indices (int | Sequence[int]): Indices in ``[-length, length - 1]``.
        length (int): Number of stages.
        name (str): The argument's name, for the error.

    Raises:
        TypeError: An index is not an integer.
        ValueError: None given, one out of range, or one given twice.
    """
    given = indices
    indices = (indices,) if isinstance(indices, int) else tuple(indices)
    if not indices:
        raise ValueError(f'{name} is empty, expected at least one of the {length} stages')
    for index in indices:
        if not isinstance(index, int):
            raise TypeError(f'{name} has {index!r} in {given!r}, expected integers')
        if not -length <= index < length:
            raise ValueError(f'{name} has {index}, expected {-length} to {length - 1} for {length} stages')
    ascending = tuple(sorted(index % length for index in indices))
    if len(set(ascending)) != len(ascending):
        raise ValueError(f'{name}={given!r} contains a stage twice, expected each stage at most once')
    return ascending


def resolve_arch(
    arch: Union[str, dict], settings: Dict[str, dict], per_stage: Sequence[str], defaults: dict, num_stages: int
) -> dict:
    """Look a variant up in its table, or check one given as a dict.

    Args:
        arch (str | dict): A name in ``settings``, or the settings of another variant.
        settings (dict[str, dict]): The table of variants.
        per_stage (Sequence[str]): Keys that must be there, with one value per stage.
        defaults (dict): Optional keys, and their default values.
        num_stages (int): Number of stages.

    Returns:
        dict: All settings of the variant.

    Raises:
        ValueError: An unknown name, unknown or missing keys, or a wrong number of values.
    """
    if isinstance(arch, str):
        if arch.lower() not in settings:
            raise ValueError(
                f'unknown arch {arch!r}, expected one of {sorted(settings)} or a dict of {list(per_stage)}'
            )
        arch = settings[arch.lower()]
    if not isinstance(arch, dict):
        raise ValueError(f'arch is {arch!r}, expected one of {sorted(settings)} or a dict')
    missing = [key for key in per_stage if key not in arch]
    unknown = [key for key in arch if key not in (*per_stage, *defaults)]
    if missing or unknown:
        raise ValueError(
            f'arch lacks {missing} and has unknown {unknown}, expected {list(per_stage)} and optionally '
            f'{list(defaults)}'
        )
    for key in per_stage:
        if len(arch[key]) != num_stages or not all(value > 0 for value in arch[key]):
            raise ValueError(f'arch has {key}={arch[key]!r}, expected {num_stages} positive values, one per stage')
    return {**defaults, **arch}


def check_frozen_stages(frozen_stages: int, count: int, parts: str) -> None:
    """Raise an error for a ``frozen_stages`` outside -1 to ``count``, the number of parts after the stem.

    Raises:
        ValueError: Names the range.
    """
    if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= count:
        raise ValueError(
            f'frozen_stages is {frozen_stages!r}, expected -1 (none), 0 (the stem) or up to {count} '
            f'(the stem and all {parts})'
        )


def dilate(strides: Sequence[int], output_stride: int) -> List[int]:
    """Return the dilation of each stage that keeps the strides from exceeding ``output_stride``.

    As in DeepLab (Chen et al., arXiv 1706.05587): a stage that would exceed it has stride 1, and its convolutions and
    those of the stages after it are dilated by the product of the strides that were replaced.

    Raises:
        ValueError: Another ``output_stride`` than one of the strides.
    """
    if output_stride not in strides:
        raise ValueError(f'output_stride is {output_stride!r}, expected one of {tuple(strides)}')
    return [max(stride // output_stride, 1) for stride in strides]


def output_layout(images: Tensor) -> torch.memory_format:
    """Return the memory format of the outputs: that of the images, or contiguous in traced graphs.

    The format of the images, because mmcv's RoIAlign on CPU reads any memory as if it were contiguous.
    """
    if records_any_size() or is_transformed() or images.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if is_channels_last(images) else torch.contiguous_format


@fx.wrap  # one node of a graph: it depends on the images
def in_layout_of(images: Tensor, output: Tensor) -> Tensor:
    """Convert a feature map to the format of :func:`output_layout`; a class token is returned unchanged."""
    return output.contiguous(memory_format=output_layout(images)) if output.ndim == 4 else output


class Backbone(BaseModule):
    """Base of all backbones, of this package and of others: a ``stem``, then ``stages``, then a norm for each output.

    A subclass, in its constructor,

    - calls this one,
    - builds ``self.stem``, a module that takes images ``(B, in_channels, H, W)``, ``self.stages``, an
      ``nn.ModuleList`` of the first ``self.num_stages`` stages (:class:`~fcvit_mm.models.stages.Stage`, or any module
      with an ``nn.ModuleList`` called ``blocks`` and an attribute ``with_cp``), and a norm ``self.norm{i}`` for each
      ``i`` of ``self.out_indices``,
    - and calls :meth:`freeze_stages` last.

    Stages past the last requested one must not be built: no output depends on them, so their parameters get no
    gradient, at which ``DistributedDataParallel`` stops.

    It inherits the forward pass (:meth:`forward`; :meth:`forward_stages` for timm's features), ``out_channels``
    and ``out_strides`` for necks and heads, frozen stages, ``norm_eval``, activation checkpointing, layer-wise
    learning-rate decay (:meth:`get_layer_depth`) and ``init_cfg``. Where the defaults do not fit, it overrides:

    - :meth:`to_map`, if stages do not return feature maps ``(B, C, H, W)``,
    - :meth:`prefers_channels_last`, if another memory layout is faster,
    - :meth:`fit_state_dict`, if checkpoints of it may need adapting,
    - :meth:`freezable_parts`, if ``frozen_stages`` counts something else,
    - ``fuse_()`` of a module inside, called by :func:`~fcvit_mm.optimize_for_inference`, if it can be made faster in
      place, for example by fusing a norm into the convolution before it.

    Args:
        channels (Sequence[int]): Channels of each stage's output.
        strides (Sequence[int]): Stride of each stage's output with respect to the input, in pixels.
        out_indices (int | Sequence[int]): Stages whose output is returned; negative ones count from the end.
        in_channels (int): Channels of the images.
        frozen_stages (int): -1 freezes nothing, 0 the stem, ``n`` the stem and the first ``n`` stages. Frozen
            parameters get no gradient and frozen layers stay in evaluation mode, after ``train()`` too.
        norm_eval (bool): Keep every BatchNorm in evaluation mode, so that its running statistics stay.
        with_cp (bool): Recompute each block's activations in the backward pass instead of storing them.
        init_cfg (dict | list[dict], optional): Initialization, as in MMEngine.
            ``dict(type='Pretrained', checkpoint=PATH)`` takes published files of this network and checkpoints of
            mmpretrain, mmdet and mmseg alike.

    Attributes:
        out_channels (tuple[int]): Channels of each returned map.
        out_strides (tuple[int]): Stride of each returned map, in input pixels.
        stage_channels, stage_strides (tuple[int]): The same of all stages that are built.

    Shape:
        ``(B, in_channels, H, W)`` to a tuple, one map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` for each of
        ``out_indices`` in ascending order, ``C_i`` in ``out_channels`` and ``s_i`` in ``out_strides``.
    """

    #: Reads the checkpoint of ``dict(type='Pretrained')`` into a backbone: ``loader(backbone, **init_cfg)``. Set by
    #: ``fcvit_mm.checkpoints``, which knows the published files' key names; the networks do not import it.
    pretrained_loader: Optional[Callable[..., None]] = None
    #: Names of the parameters in published files of the network. ``None``: they have our names.
    published_names: Optional[PublishedNames] = None
    #: Replays forward passes for inference: a :class:`~fcvit_mm.inference.cuda_graphs.CudaGraphs` after
    #: ``optimize_for_inference(model, cuda_graphs=True)``, otherwise ``None``.
    cuda_graphs: Any = None
    #: Type of the outputs of a half-precision network that computes in float32, which
    #: ``optimize_for_inference`` sets; ``None``: the type that the network computes in.
    output_dtype: Optional[torch.dtype] = None

    init_cfg: Any
    stem: nn.Module
    stages: nn.ModuleList

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_indices: Union[int, Sequence[int]],
        *,
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        super().__init__(init_cfg)
        native.available()  # loads the compiled operators and registers their formulas with the FLOP counter
        self.in_channels = in_channels
        self.out_indices = normalize_indices(out_indices, len(channels))
        self.num_stages = self.out_indices[-1] + 1
        check_frozen_stages(frozen_stages, self.num_stages, f'stages that out_indices={self.out_indices} needs')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.stage_channels = tuple(channels[: self.num_stages])
        self.stage_strides = tuple(strides[: self.num_stages])
        self.out_channels = tuple(channels[index] for index in self.out_indices)
        self.out_strides = tuple(strides[index] for index in self.out_indices)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        if self.cuda_graphs is not None and self.cuda_graphs.apply_to(x) and not self.training:
            return self.cuda_graphs(self.forward_maps, x, next(self.parameters()))
        return self.forward_maps(x)

    def forward_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the outputs of :meth:`forward`, without CUDA graphs."""
        return tuple(self.in_output_dtype(in_layout_of(x, output)) for output in self.forward_outputs(x))

    def in_output_dtype(self, output: Tensor) -> Tensor:
        """Convert an output to ``output_dtype``, if that is set."""
        return output if self.output_dtype is None else output.to(self.output_dtype)

    def forward_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of :meth:`forward`, each still in the layout that it was computed in."""
        for i, output in enumerate(self.forward_stages(x)):
            if i in self.out_indices:
                yield call(getattr(self, f'norm{i}'), output)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each stage's output before any norm, computed lazily.

        Args:
            x (Tensor): ``(B, in_channels, H, W)``.

        Yields:
            Tensor: ``(B, C_i, ceil(H / s_i), ceil(W / s_i))``, in the layout that it was computed in.
        """
        x = self.forward_stem(x)
        for stage in self.stages:
            x = call(stage, x)
            yield self.to_map(x)

    def forward_stem(self, x: Tensor) -> Any:
        """Check the images, convert them to the memory format that the network computes in, and apply the stem.

        With channels_last, ``torch.export`` would assume that no dimension of any map is 1, and the graph would reject
        a single image. The images' own layout is recorded instead.

        Raises:
            TypeError, ValueError: ``x`` is no batch of images: see :func:`check_image_batch`.
        """
        if isinstance(x, fx.Proxy):
            device = next(self.parameters()).device
        else:
            check_image_batch(x, self.in_channels, name=type(self).__name__)
            device = x.device
        if self.prefers_channels_last(device) and not is_exporting() and not is_transformed():
            x = x.contiguous(memory_format=torch.channels_last)
        return call(self.stem, x if self.output_dtype is None else x.float())

    def prefers_channels_last(self, device: torch.device) -> bool:
        """Return whether channels_last is faster than the images' layout.

        Default: on CPUs, often twice as fast, and on GPUs where our kernels run, which read no other layout. (cuDNN's
        depth-wise convolutions with large kernels take 5 to 7 times as long in channels_last as in NCHW.)
        """
        return device.type == 'cpu' or (
            device.type == 'cuda' and current_mode() != 'reference' and triton.usable(str(device))
        )

    def to_map(self, x: Any) -> Tensor:
        """Convert a stage's output to a feature map ``(B, C, H, W)``. Default: unchanged."""
        return x

    def init_weights(self) -> None:
        """Apply ``init_cfg``. The constructor has drawn the initial weights already."""
        init_cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        pretrained = [cfg for cfg in init_cfgs if cfg.get('type') in PRETRAINED]
        loader = type(self).pretrained_loader
        if pretrained and loader is None:
            raise RuntimeError(
                'no reader for pretrained files is registered: import the package fcvit_mm, not only one of its '
                'modules by path'
            )
        given = self.init_cfg
        self.init_cfg = [cfg for cfg in init_cfgs if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        for cfg in pretrained:
            if loader is not None:
                loader(self, **{key: value for key, value in cfg.items() if key != 'type'})

    def fit_state_dict(self, state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Adapt a checkpoint's weights to this backbone. Default: unchanged.

        A network whose parameters depend on the size of the images, or whose output norms come in several kinds,
        overrides this.

        Args:
            state_dict (dict[str, Tensor]): Weights under the backbone's own names; not changed.

        Returns:
            dict[str, Tensor]: Weights to load.
        """
        return state_dict

    def freezable_parts(self) -> List[nn.Module]:
        """Return the parts after the stem that ``frozen_stages`` counts. Default: the stages."""
        return list(self.stages)

    def freeze_stages(self) -> None:
        """Freeze the stem and the first ``frozen_stages`` parts: no gradients, evaluation mode."""
        if self.frozen_stages < 0:
            return
        for part in (self.stem, *self.freezable_parts()[: self.frozen_stages]):
            part.eval()
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> 'Backbone':
        """Switch to training, except for what is frozen, or back; as ``nn.Module.train``."""
        super().train(mode)
        if mode:
            self.freeze_stages()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Return a parameter's layer, for layer-wise learning-rate decay (the contract of mmpretrain's backbones).

        The stem is layer 0, each block one layer (a patch embedding between stages counts to the block after it),
        output norms and whatever follows the backbone the last.

        Args:
            param_name (str): Prefix of the backbone's parameters in the complete model, for example ``'backbone.'``.
            prefix (str): Prefix of the backbone's names in ``state_dict``, for example ``'backbone.'``.

        Returns:
            tuple[int, int]: Layer of the parameter, and the number of layers.
        """
        depths = [sum(1 for _ in stage.get_submodule('blocks').children()) for stage in self.stages]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        parts = param_name[len(prefix) :].split('.')
        if parts[0] == 'stem':
            return 0, num_layers
        if parts[0] != 'stages':
            return num_layers - 1, num_layers
        stage = int(parts[1])
        block = int(parts[3]) if parts[2] == 'blocks' else 0
        return 1 + sum(depths[:stage]) + block, num_layers


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
