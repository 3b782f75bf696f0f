"""The project's networks under timm's names: ``import fcvit_mm.timm``, then ``timm.create_model('fcvit_b12')``.

Each is a row of :data:`fcvit_mm.models.variants.VARIANTS`; those that another package registers there are added.
Parameters have the names of this project's checkpoints (``backbone.*``, ``head.fc.*``), so a classifier that
``tools/convert_checkpoint.py`` wrote loads unchanged, and a published file through :func:`checkpoint_filter_fn`, with
``timm.create_model(name, checkpoint_path=FILE)``. timm only reads files without other objects than tensors, so convert
a checkpoint of ``tools/train.py``, which also contains the state of the run. For ``features_only=True``, where timm's
``checkpoint_path`` does not find the weights of any classifier, ``pretrained=True,
pretrained_cfg_overlay=dict(file=FILE)`` loads them. ``pretrained=True`` alone loads published weights by the model's
name (:mod:`fcvit_mm.checkpoints.published`), even if their file contains other objects.
"""

import inspect
from contextlib import nullcontext
from typing import Any, Callable, Dict, Optional, Type

import torch
import torch.nn as nn
from torch import Tensor

from .checkpoints.published import SCHEME, published_classifier
from .checkpoints.recognize import recognize
from .checkpoints.safe_load import read_checkpoint
from .dependencies import require
from .deprecation import warn_deprecated
from .models import variants
from .models.variants import Variant, for_each_variant

require('timm')
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402

from .models.timm_classifier import Classifier, TokenClassifier  # noqa: E402


def checkpoint_filter_fn(state_dict: Dict[str, Tensor], model: Optional[nn.Module] = None) -> Dict[str, Tensor]:
    """Rename a classifier's weights, under any published names, to the names of these models.

    Args:
        state_dict (dict[str, Tensor]): Published, of this project or of these models.
        model (nn.Module, optional): Model that will load the weights, passed by timm; position embeddings of another
            size are resized to its own.

    Raises:
        CheckpointError: No network explains the names in it.
    """
    if PUBLISHED_KEY in state_dict:
        state_dict = read_checkpoint(str(state_dict[PUBLISHED_KEY]))
    backbone = getattr(model, 'backbone', None)
    found = recognize(state_dict, 'the state dict', backbone=backbone)
    weights = found.backbone if backbone is None else backbone.fit_state_dict(found.backbone)
    unknown = {name: state_dict[name] for name in found.unknown if name in state_dict}
    return {**{f'backbone.{name}': value for name, value in weights.items()}, **found.others, **unknown}


def _rename_published(model: nn.Module, state_dict: Dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give published weights our names, in place, before they are loaded."""
    if prefix or not state_dict or any(name.startswith('backbone.') for name in state_dict):
        return
    renamed = checkpoint_filter_fn(dict(state_dict), model)
    state_dict.clear()
    state_dict.update(renamed)


def model_class(variant: Variant) -> Type[Classifier]:
    """Return the class of a variant's model."""
    return TokenClassifier if variant.class_token else Classifier


def _default_cfg(variant: Variant) -> Dict[str, Any]:
    stride = getattr(variant.network, 'strides', (32,))[-1]
    weights = published_classifier(variant)
    return dict(
        # timm lists models with a URL as pretrained. Files that must be downloaded by hand have none.
        url=None if weights is None else weights.address,
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=variant.crop,
        interpolation='bicubic',
        pool_size=None if variant.class_token else (224 // stride, 224 // stride),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv=f'backbone.{variant.first_conv}',
        classifier='head.fc',
        paper_ids=variant.paper,
    )


#: Key of a placeholder for published weights in place of a state dict; :func:`checkpoint_filter_fn` reads the weights.
PUBLISHED_KEY = 'published'
#: timm's settings of every model, by name.
default_cfgs: Dict[str, Any] = {}


def _build(
    variant: Variant,
    num_classes: int = 1000,
    in_chans: int = 3,
    global_pool: Optional[str] = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Classifier:
    """Build the classifier of a variant; ``options`` are further arguments of its backbone."""
    # Only arguments that differ from the default: a network of another package may not have them.
    if in_chans != 3:
        options['in_channels'] = in_chans
    if drop_path_rate:
        options['drop_path_rate'] = drop_path_rate
    output_stride = options.pop('output_stride', 32)
    if output_stride != 32:
        if 'output_stride' not in inspect.signature(variant.network.__init__).parameters:
            raise ValueError(
                f'output_stride={output_stride!r}: {variant.network.__name__} cannot be dilated: omit output_stride, '
                'or use FCViT, DWNet or Swin'
            )
        options['output_stride'] = output_stride
    if 'img_size' in options and 'img_size' not in inspect.signature(variant.network.__init__).parameters:
        raise ValueError(
            f'img_size={options["img_size"]!r}: {variant.network.__name__} takes images of any size: omit img_size'
        )
    backbone = variant.build(**options)
    model = model_class(variant)
    global_pool = model.default_pool if global_pool is None else global_pool
    classifier = model(backbone, num_classes, in_chans, global_pool, drop_rate)
    # The weights of timm.create_model(checkpoint_path=...) pass here.
    classifier._register_load_state_dict_pre_hook(_rename_published, with_module=True)
    return classifier


def _entrypoint(variant: Variant) -> Callable[..., nn.Module]:
    """Return the function that timm calls by the model's name."""
    name = variant.name

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        sources = {**_sources(kwargs.get('pretrained_cfg')), **_sources(kwargs.get('pretrained_cfg_overlay'))}
        if pretrained and not sources:
            weights = published_classifier(variant)
            if weights is None:
                raise RuntimeError(
                    f'{name} has no published weights. Load a file: timm.create_model({name!r}, checkpoint_path=FILE), '
                    'published or of this project; or, to change num_classes or in_chans, pretrained=True with '
                    'pretrained_cfg_overlay=dict(file=FILE)'
                )
            # A placeholder instead of the weights, because timm keeps two copies of this value.
            overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
            kwargs['pretrained_cfg_overlay'] = {**overlay, 'state_dict': {PUBLISHED_KEY: f'{SCHEME}{weights.name}'}}

        def build(device: Any = None, dtype: Optional[torch.dtype] = None, **options: Any) -> Classifier:
            with nullcontext() if device is None else torch.device(device):
                return _build(variant, **options).to(dtype=dtype)

        return build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=model_class(variant).feature_indices, feature_cls='getter'),
            **kwargs,
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f'{variant.network.__name__}({dict(variant.options)}), {variant.paper}.'
    return create


def _sources(cfg: Any) -> Dict[str, Any]:
    """Return the source of the weights that a ``pretrained_cfg`` names."""
    places = ('file', 'url', 'hf_hub_id', 'state_dict')
    if cfg is None or isinstance(cfg, str):
        return {}
    return {
        place: value
        for place in places
        if (value := cfg.get(place) if isinstance(cfg, dict) else getattr(cfg, place, None))
    }


def __getattr__(name: str) -> Any:
    if name == 'VARIANTS':
        warn_deprecated('fcvit_mm.timm.VARIANTS', 'fcvit_mm.models.variants.VARIANTS')
        return variants.VARIANTS
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = ['Classifier', 'TokenClassifier', 'Variant', 'checkpoint_filter_fn', 'model_class']


def _register(variant: Variant) -> None:
    default_cfgs.update(generate_default_cfgs({variant.name: _default_cfg(variant)}))
    globals()[variant.name] = register_model(_entrypoint(variant))


for_each_variant(_register)
