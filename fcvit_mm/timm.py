"""The project's networks under timm's names: ``import fcvit_mm.timm``, then ``timm.create_model('fcvit_b12')``.

Each is a row of :data:`VARIANTS`. Parameters have the names of this project's checkpoints (``backbone.*``,
``head.fc.*``), so a classifier that ``tools/train.py`` or ``tools/convert_checkpoint.py`` wrote loads as it is, and a
published file through :func:`checkpoint_filter_fn`, with ``timm.create_model(name, checkpoint_path=FILE)``.
"""

from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Type, Union

import torch
import torch.nn as nn
from torch import Tensor

from .checkpoints.recognize import recognize
from .dependencies import require
from .models import Backbone, CaiT, DWNet, FCViT, Swin, ViT

require('timm')
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers import ClassifierHead  # noqa: E402
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402
from timm.models._features import feature_take_indices  # noqa: E402


class Classifier(nn.Module):
    """A backbone with stages and timm's classifier head, with the methods that timm asks of its models.

    Args:
        backbone (Backbone): With one output, that of its last stage.
        num_classes (int): 0 leaves the linear layer out.
        in_chans (int): Channels of the images.
        global_pool (str): ``'avg'``, another of timm's, or empty for none.
        drop_rate (float): Dropout before the linear layer.

    Shape:
        ``(B, in_chans, H, W)`` to ``(B, num_classes)``.
    """

    #: What ``features_only=True`` returns unless ``out_indices`` says otherwise: these, or so many of the last.
    feature_indices: Union[int, Tuple[int, ...]] = (0, 1, 2, 3)
    #: The head's pooling where none is asked for.
    default_pool = 'avg'

    def __init__(self, backbone: Backbone, num_classes: int, in_chans: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = backbone.out_channels[-1]
        self.feature_info = self.describe_features()
        self.head = self.build_head(num_classes, global_pool)
        if num_classes > 0:
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        # What timm.create_model(checkpoint_path=...) loads passes here.
        self._register_load_state_dict_pre_hook(_rename_published, with_module=True)

    def describe_features(self) -> List[dict]:
        """Channels, stride and module of each intermediate, as timm names them."""
        return [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.{i}')
            for i, (channels, stride) in enumerate(zip(self.backbone.stage_channels, self.backbone.stage_strides))
        ]

    def build_head(self, num_classes: int, global_pool: str) -> nn.Module:
        """Pooling, dropout and the linear layer ``fc``."""
        return ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=self.drop_rate)

    def is_last(self, stage: int) -> bool:
        """Whether the output norm is made for this stage."""
        return stage == len(self.feature_info) - 1

    def last_norm(self, x: Tensor) -> Tensor:
        """The output norm: ``(B, C, H, W)`` to the same."""
        return getattr(self.backbone, f'norm{len(self.feature_info) - 1}')(x)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters with more than one dimension that take no weight decay all the same."""
        learned = ('pos_embed', 'cls_token', 'relative_position_bias_table')
        return {name for name, _ in self.named_parameters() if name.endswith(learned)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns of parameter groups: by stage if ``coarse``, else by block, for layer-wise decay."""
        return dict(
            stem=r'^backbone\.stem',
            blocks=r'^backbone\.stages\.(\d+)'
            if coarse
            else [
                (r'^backbone\.stages\.(\d+)\.(?:downsample|cls_token)', (0,)),
                (r'^backbone\.stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^backbone\.norm', (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass."""
        for stage in self.backbone.stages:
            stage.with_cp = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Put a new linear layer (none for 0) and, if given, another pooling in place of the present ones."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last stage's output after its norm, ``(B, C, H / 32, W / 32)``."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what :meth:`forward_features` gave; only pool if ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Outputs of the stages (of the blocks, for transformers without stages) and the final features.

        Args:
            x (Tensor): ``(B, in_chans, H, W)``.
            indices (int | list[int], optional): Which, or how many of the last; all if ``None``.
            norm (bool): Let them pass the norm: the last stage's output alone, or every block's.
            stop_early (bool): Compute no more than ``indices`` needs.
            output_fmt (str): ``'NCHW'``, the only one there is.
            intermediates_only (bool): Leave the final features out.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The intermediates, or the final features and them.

        Raises:
            ValueError: Another ``output_fmt``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt={output_fmt!r}, expected NCHW')
        take, last_needed = feature_take_indices(self.num_intermediates(), indices)
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        intermediates = []
        for i, output in enumerate(self.outputs(x)):
            if i in take:
                intermediates.append(self.to_map(output, i, norm).contiguous(memory_format=layout))
            if stop_early and i == last_needed:
                break
        if intermediates_only:
            return intermediates
        return self.to_features(output, i, layout), intermediates

    def num_intermediates(self) -> int:
        return len(self.backbone.stages)

    def outputs(self, x: Tensor) -> Iterator[Any]:
        """What is computed one after another, up to the final features."""
        return self.backbone.forward_stages(x)

    def to_map(self, output: Any, i: int, norm: bool) -> Tensor:
        """The ``i``-th of :meth:`outputs` as a map ``(B, C, h, w)``."""
        return self.last_norm(output) if norm and self.is_last(i) else output

    def to_features(self, output: Any, i: int, layout: torch.memory_format) -> Tensor:
        """The ``i``-th of :meth:`outputs`, the last computed, as :meth:`forward_features` gives the last."""
        return self.to_map(output, i, norm=True).contiguous(memory_format=layout)

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the stages after the last of ``indices``, and what stands on them.

        Returns:
            list[int]: The indices, counted from 0.
        """
        take, last = feature_take_indices(len(self.backbone.stages), indices)
        if prune_norm or not self.is_last(last):
            setattr(self.backbone, f'norm{len(self.feature_info) - 1}', nn.Identity())
        self.backbone.stages = self.backbone.stages[: last + 1]
        self.num_features = self.feature_info[last]['num_chs']
        if prune_head or not self.is_last(last):
            self.reset_classifier(0, '')
        return take


class TokenHead(nn.Module):
    """Pooling of tokens, dropout, linear layer.

    Args:
        channels (int): ``C``.
        num_classes (int): 0 leaves the linear layer out.
        global_pool (str): ``'token'`` takes the class token, ``'avg'`` the mean of the patches, ``''`` no pooling.
        drop_rate (float): Dropout before the linear layer.

    Shape:
        ``(B, 1 + N, C)``, the class token first, to ``(B, num_classes)``.

    Raises:
        ValueError: Another ``global_pool``.
    """

    def __init__(self, channels: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.num_features = channels
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Put a new linear layer and, if given, another pooling in place of the present ones."""
        if global_pool not in (None, 'token', 'avg', ''):
            raise ValueError(f"global_pool={global_pool!r}, expected 'token', 'avg' or '' (none)")
        if global_pool is not None:
            self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(1)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)

    def extra_repr(self) -> str:
        return f'global_pool={self.global_pool!r}'


class TokenClassifier(Classifier):
    """A ViT or CaiT and its head, as timm has its own: features are tokens, intermediates the patches of each block.

    With ``features_only=True`` the maps of chosen blocks come at one stride, those of the last three blocks by default.
    For a pyramid take the backbone itself, ``fcvit_mm.ViT(out_type='pyramid')``.
    """

    feature_indices = 3
    default_pool = 'token'

    def describe_features(self) -> List[dict]:
        (channels,), (stride,) = self.backbone.stage_channels, self.backbone.stage_strides
        return [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.0.blocks.{i}')
            for i in range(self.num_intermediates())
        ]

    def build_head(self, num_classes: int, global_pool: str) -> nn.Module:
        return TokenHead(self.num_features, num_classes, global_pool, self.drop_rate)

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        like = self.backbone.stem.proj.weight
        self.head.to(like.device, like.dtype).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the tokens after the norm, ``(B, 1 + N, C)``, the class token first."""
        return self.final_tokens(self.backbone.forward_tokens(x)[0])

    def final_tokens(self, x: Tensor) -> Tensor:
        """What the blocks give to the tokens after the norm; patches alone where a CaiT's class attention is pruned."""
        patches = self.backbone.patches(x)
        if self.backbone.stem.cls_token is not None or len(self.backbone.stages) > 1:
            patches = torch.cat((self.backbone.class_token(x)[:, None], patches), 1)
        return self.backbone.norm(patches)

    def num_intermediates(self) -> int:
        return len(self.backbone.stages[0].blocks)

    def outputs(self, x: Tensor) -> Iterator[Any]:
        return self.backbone.forward_blocks(x)

    def to_map(self, output: Any, i: int, norm: bool) -> Tensor:
        tokens, grid = output
        patches = self.backbone.patches(tokens)
        return (self.backbone.norm(patches) if norm else patches).transpose(1, 2).unflatten(2, grid)

    def to_features(self, output: Any, i: int, layout: torch.memory_format) -> Tensor:
        return self.final_tokens(output[0])

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the blocks after the last of ``indices``; with the head go CaiT's class-attention blocks.

        Returns:
            list[int]: The indices, counted from 0.
        """
        take, last = feature_take_indices(self.num_intermediates(), indices)
        stage = self.backbone.stages[0]
        stage.blocks = stage.blocks[: last + 1]
        if prune_norm:
            self.backbone.norm = nn.Identity()
        if prune_head:
            self.backbone.stages = self.backbone.stages[:1]
            self.reset_classifier(0, '')
        return take


class Variant(NamedTuple):
    """One name under timm.

    Attributes:
        network (type): The backbone's class.
        options (dict): Its arguments beside ``in_channels`` and ``drop_path_rate``; with them it has one output, the
            last.
        crop (float): The evaluation crop's share of the resized image's side.
        paper (str): Identifier of the paper, with the site.
        model (type): What stands around the backbone.
    """

    network: Type[Backbone]
    options: dict
    crop: float
    paper: str
    model: Type[Classifier] = Classifier


def _fcvit(arch: str, crop: float) -> Variant:
    return Variant(FCViT, dict(arch=arch, out_indices=(3,), layer_scale_init_value=1e-5), crop, 'arXiv:2212.12552')


def _dwnet(arch: str, dynamic: Union[bool, str]) -> Variant:
    options = dict(arch=arch, dynamic=dynamic, out_indices=(3,), norm_cfg=dict(type='LN'))
    return Variant(DWNet, options, 224 / 256, 'arXiv:2106.04263')


def _transformer(network: Type[Backbone], arch: str, method: str) -> Variant:
    stages = network is Swin
    form = dict(out_indices=(3,)) if stages else dict(out_type='cls_token')
    return Variant(
        network,
        dict(arch=arch, methods=(method,), **form),
        224 / 256,
        'OpenReview:O476oWmiNNp',
        Classifier if stages else TokenClassifier,
    )


_TRANSFORMERS = {
    'vit_small_12': (ViT, 'small_12'),
    'vit_small_24': (ViT, 'small_24'),
    'vit_base_12': (ViT, 'base_12'),
    'vit_base_24': (ViT, 'base_24'),
    'cait_xxs24': (CaiT, 'xxs24'),
    'cait_s24': (CaiT, 's24'),
    'swin_small': (Swin, 'small'),
}

#: Every model, by its name under timm.
VARIANTS: Dict[str, Variant] = {
    'fcvit_tiny': _fcvit('tiny', crop=0.9),
    'fcvit_b12': _fcvit('b12', crop=0.9),
    'fcvit_b24': _fcvit('b24', crop=0.95),
    'fcvit_b48': _fcvit('b48', crop=0.95),
    'dwnet_tiny': _dwnet('tiny', dynamic=False),
    'dwnet_base': _dwnet('base', dynamic=False),
    'dynamic_dwnet_tiny': _dwnet('tiny', dynamic='homogeneous'),
    'dynamic_dwnet_base': _dwnet('base', dynamic='homogeneous'),
    'inhomogeneous_dwnet_tiny': _dwnet('tiny', dynamic='inhomogeneous'),
    'inhomogeneous_dwnet_base': _dwnet('base', dynamic='inhomogeneous'),
    **{
        f'{prefix}_{name}': _transformer(network, arch, method)
        for name, (network, arch) in _TRANSFORMERS.items()
        for prefix, method in (('attnscale', 'attn_scale'), ('featscale', 'feat_scale'))
    },
}


def checkpoint_filter_fn(state_dict: Dict[str, Tensor], model: Optional[nn.Module] = None) -> Dict[str, Tensor]:
    """Give a classifier's weights the names that the models here have, whatever published names they come with.

    Args:
        state_dict (dict[str, Tensor]): Published, of this project or of these models.
        model (nn.Module, optional): Where they go, as timm passes it; what its parts cannot take (position embeddings
            of another size) is fitted.

    Raises:
        CheckpointError: Nothing in it is of a network of this project.
    """
    found = recognize(state_dict, 'the state dict')
    weights = found.backbone if model is None else model.backbone.fit_state_dict(found.backbone)
    unknown = {name: state_dict[name] for name in found.unknown if name in state_dict}
    return {**{f'backbone.{name}': value for name, value in weights.items()}, **found.others, **unknown}


def _rename_published(model: Classifier, state_dict: dict, prefix: str, *_) -> None:
    """Before loading: published names become ours, in place."""
    if prefix or not state_dict or any(name.startswith('backbone.') for name in state_dict):
        return
    renamed = checkpoint_filter_fn(dict(state_dict), model)
    state_dict.clear()
    state_dict.update(renamed)


def _default_cfg(variant: Variant) -> dict:
    return dict(
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=variant.crop,
        interpolation='bicubic',
        pool_size=None if variant.model is TokenClassifier else (7, 7),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='backbone.stem.proj',
        classifier='head.fc',
        paper_ids=variant.paper,
    )


default_cfgs = generate_default_cfgs({name: _default_cfg(variant) for name, variant in VARIANTS.items()})


def _build(
    variant: Variant,
    num_classes: int = 1000,
    in_chans: int = 3,
    global_pool: Optional[str] = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **options,
) -> Classifier:
    """The model of a row; ``options`` are further ones of its backbone."""
    backbone = variant.network(**{**variant.options, **options}, in_channels=in_chans, drop_path_rate=drop_path_rate)
    global_pool = variant.model.default_pool if global_pool is None else global_pool
    return variant.model(backbone, num_classes, in_chans, global_pool, drop_rate)


def _entrypoint(name: str, variant: Variant) -> Callable[..., nn.Module]:
    """The function that timm calls by the model's name."""

    def create(pretrained: bool = False, **kwargs) -> nn.Module:
        sources = {**_sources(kwargs.get('pretrained_cfg')), **_sources(kwargs.get('pretrained_cfg_overlay'))}
        if pretrained and not sources:
            raise RuntimeError(
                f'{name} has no weights to download. Load a file: timm.create_model({name!r}, checkpoint_path=FILE), '
                'published or of this project; or, to change num_classes or in_chans, pretrained=True with '
                'pretrained_cfg_overlay=dict(file=FILE)'
            )

        def model_class(**options) -> Classifier:
            return _build(variant, **options)

        return build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=variant.model.feature_indices, feature_cls='getter'),
            **kwargs,
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f'{variant.network.__name__}({variant.options}), {variant.paper}.'
    return create


def _sources(cfg) -> dict:
    """Where a ``pretrained_cfg`` takes weights from."""
    places = ('file', 'url', 'hf_hub_id', 'state_dict')
    if cfg is None or isinstance(cfg, str):
        return {}
    return {
        place: value
        for place in places
        if (value := cfg.get(place) if isinstance(cfg, dict) else getattr(cfg, place, None))
    }


__all__: Sequence[str] = ['VARIANTS', 'Classifier', 'TokenClassifier', 'Variant', 'checkpoint_filter_fn']

for _name, _variant in VARIANTS.items():
    globals()[_name] = register_model(_entrypoint(_name, _variant))
