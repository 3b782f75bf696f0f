"""What every backbone of this package promises to a detector, segmentor or classifier."""

from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple, Union

import torch.nn as nn
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import check_image_batch, fast_layout

#: MMEngine's ``init_cfg``: one, several or none.
InitCfg = Union[None, dict, Sequence[dict]]


def normalize_indices(indices: Union[int, Sequence[int]], length: int, name: str = 'out_indices') -> Tuple[int, ...]:
    """Turn stage indices, negative ones counted from the end, into ascending ones; the argument stays as it is.

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
        raise ValueError(f'{name} is empty: name at least one of the {length} stages')
    for index in indices:
        if not isinstance(index, int):
            raise TypeError(f'{name} takes integers, got {index!r} in {given!r}')
        if not -length <= index < length:
            raise ValueError(f'{name} has {index}, expected {-length} to {length - 1} for {length} stages')
    ascending = tuple(sorted(index % length for index in indices))
    if len(set(ascending)) != len(ascending):
        raise ValueError(f'{name}={given!r} names a stage twice: each stage gives one output')
    return ascending


def resolve_arch(
    arch: Union[str, dict], settings: Dict[str, dict], per_stage: Sequence[str], defaults: dict, num_stages: int
) -> dict:
    """Look a variant up in its table, or check one given as a dict.

    Args:
        arch (str | dict): A name in ``settings``, or a row of one's own.
        settings (dict[str, dict]): The table of variants.
        per_stage (Sequence[str]): Keys that must be there, with one value per stage.
        defaults (dict): Keys that may be left out, and their values.
        num_stages (int): Number of stages.

    Returns:
        dict: The row, complete.

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
        raise ValueError(f'arch must be one of {sorted(settings)} or a dict, got {arch!r}')
    missing = [key for key in per_stage if key not in arch]
    unknown = [key for key in arch if key not in (*per_stage, *defaults)]
    if missing or unknown:
        raise ValueError(
            f'arch lacks {missing} and has unknown {unknown}: it takes {list(per_stage)} '
            f'and, if wanted, {list(defaults)}'
        )
    for key in per_stage:
        if len(arch[key]) != num_stages or not all(value > 0 for value in arch[key]):
            raise ValueError(f'arch has {key}={arch[key]!r}, expected {num_stages} positive values, one per stage')
    return {**defaults, **arch}


class Backbone(BaseModule):
    """Base of the backbones: a ``stem``, then ``stages``, whose outputs pass a norm of their own (``norm0``, ...).

    A subclass builds ``self.stem``, ``self.stages`` (an ``nn.ModuleList`` of modules with ``blocks``) and one
    ``norm{i}`` for each requested stage, then calls :meth:`freeze_stages`.

    Stages past the last requested one are not built: a parameter that no output depends on would get no gradient,
    and ``DistributedDataParallel`` stops at those.

    Args:
        channels (Sequence[int]): Channels of each stage's output.
        strides (Sequence[int]): Stride of each stage's output with respect to the input, in pixels.
        out_indices (int | Sequence[int]): Stages whose output is returned; negative ones count from the end.
        frozen_stages (int): -1 freezes nothing, 0 the stem, ``n`` the stem and the first ``n`` stages. Frozen
            parameters get no gradient and frozen layers stay in evaluation mode, after ``train()`` too.
        norm_eval (bool): Keep every BatchNorm in evaluation mode, so that its running statistics stay.
        with_cp (bool): Recompute each block's activations in the backward pass instead of storing them.
        init_cfg (dict | list[dict], optional): MMEngine's. ``dict(type='Pretrained', checkpoint=PATH)`` takes
            published files of this network and checkpoints of mmpretrain, mmdet and mmseg alike.

    Attributes:
        out_channels (tuple[int]): Channels of each returned map.
        out_strides (tuple[int]): Stride of each returned map, in input pixels.
        stage_channels, stage_strides (tuple[int]): The same of all stages that are built.
    """

    #: Reads the checkpoint of ``dict(type='Pretrained')`` into a backbone: ``loader(backbone, **init_cfg)``. Set by
    #: ``fcvit_mm.checkpoints``, which knows the published files' key names; the networks do not import it.
    pretrained_loader: Optional[Callable] = None

    in_channels: int
    stem: nn.Module
    stages: nn.ModuleList

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_indices: Union[int, Sequence[int]],
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = normalize_indices(out_indices, len(channels))
        self.num_stages = self.out_indices[-1] + 1
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages!r}, expected -1 (none), 0 (the stem) or up to '
                f'{self.num_stages} (the stem and all stages that out_indices={self.out_indices} needs)'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.stage_channels = tuple(channels[: self.num_stages])
        self.stage_strides = tuple(strides[: self.num_stages])
        self.out_channels = tuple(channels[index] for index in self.out_indices)
        self.out_strides = tuple(strides[index] for index in self.out_indices)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each stage's output before any norm, computed when it is asked for; for timm's features.

        Args:
            x (Tensor): ``(B, in_channels, H, W)``.

        Yields:
            Tensor: ``(B, C_i, H / s_i, W / s_i)``, in the layout that the next stage takes.
        """
        check_image_batch(x, self.in_channels, min_size=1, name=type(self).__name__)
        x = self.stem(fast_layout(x))
        for stage in self.stages:
            x = stage(x)
            yield x

    def init_weights(self) -> None:
        """Apply ``init_cfg``. The constructor has already drawn the initial weights."""
        init_cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        pretrained = [cfg for cfg in init_cfgs if cfg.get('type') in ('Pretrained', 'PretrainedInit')]
        if pretrained and self.pretrained_loader is None:
            raise RuntimeError('no reader for pretrained files is set: import fcvit_mm (not a part of it by path)')
        whole = self.init_cfg
        self.init_cfg = [cfg for cfg in init_cfgs if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = whole
        for cfg in pretrained:
            options = {key: value for key, value in cfg.items() if key != 'type'}
            type(self).pretrained_loader(self, **options)

    def fit_state_dict(self, state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """What of a file's weights (names of this package) to load, resized where that is possible; all as it is here.

        A network whose parameters depend on the size of the input, or whose output norms come in several kinds,
        overrides this.
        """
        return state_dict

    def freeze_stages(self) -> None:
        """Freeze what ``frozen_stages`` names: no gradients, evaluation mode."""
        if self.frozen_stages < 0:
            return
        for part in (self.stem, *self.stages[: self.frozen_stages]):
            part.eval()
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> 'Backbone':
        """As ``nn.Module.train``, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            self.freeze_stages()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Where a parameter stands, for layer-wise learning-rate decay (the contract of mmpretrain's backbones).

        The stem is layer 0, each block one layer (a patch embedding between stages counts to the block after it),
        output norms and whatever follows the backbone the last.

        Args:
            param_name (str): Name of a parameter in the whole model.
            prefix (str): What precedes the backbone's own names there, say ``'backbone.'``.

        Returns:
            tuple[int, int]: Its layer and the number of layers.
        """
        depths = [len(stage.blocks) for stage in self.stages]
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
