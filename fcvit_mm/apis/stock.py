"""Replacing the backbone of stock configs by a network of :data:`~fcvit_mm.models.variants.VARIANTS`.

The libraries are mmdet, mmseg, and others whose models have a backbone, except mmpretrain.

The stock backbone is run to find channels and strides of its outputs. A training step of the new model
(:mod:`fcvit_mm.apis.step`) shows which outputs neck and heads use: unused outputs are not computed.
"""

import copy
import importlib.util
import inspect
import os.path as osp
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from ..dependencies import require
from ..engine.config import TASKS, check_scope, library_of, read_config, set_pretrained, type_name, walk
from ..engine.wrapped import backbone_config, find_inner_model
from ..errors import UserError, advice_for, origin
from ..models.variants import Variant, find_variant
from .rewiring import INSTEAD, StockConfigError, follow_neck, readers, rewire
from .step import Step, StepError, try_step

#: Libraries whose configs are supported.
LIBRARIES = ('mmdet', 'mmseg')
#: Normalization of images (RGB) that all classifiers of this package are trained with.
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
#: The libraries' constructors of layer-wise learning rates, which only know their own backbones.
LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
#: Prefix of types for MMAction2: its recognizers, whose own backbones return one map, unpack the tuple of such types.
UNPACKED = 'mmpretrain.'
#: Configs of classifiers, as examples.
CLASSIFIERS = 'configs/classification/_base_/models/*.py'
#: Side of the image that a stock backbone is run on to find its outputs.
SIDE = 256


class Output(NamedTuple):
    """One of a backbone's outputs: channels, and the stride with respect to the image in pixels."""

    channels: int
    stride: int


class Stock(NamedTuple):
    """The backbone of a stock config: its outputs, whether it is dilated, and whether it returns its one map bare."""

    outputs: List[Output]
    dilated: bool
    bare: bool


def replace_backbone(
    config: Union[str, Config],
    network: str,
    pretrained: Optional[str] = None,
    options: Optional[Mapping[str, Any]] = None,
) -> Config:
    """Return a config with another backbone, and adapt everything that depends on it.

    These entries change:

    - the backbone: ``out_indices`` of the stages in use and, if the original is dilated, ``output_stride``,
    - the first neck or, if there is none, all heads, including auxiliary ones: channels (``in_channels``,
      ``c1_in_channels``), levels (``start_level``, ``end_level``) and indices (``in_index``),
    - weights of the stock backbone (``pretrained``, ``init_cfg``, ``load_from``), which are removed,
    - the images' normalization, which becomes that of the classifiers,
    - a constructor of layer-wise learning rates, which is replaced by one that knows the network,
    - ``custom_imports``.

    The optimizer, its learning rate and the schedule stay those of the stock config.

    The new model then takes a training step on random images on the CPU, which checks that all components fit and that
    every parameter gets a gradient.

    Args:
        config (str | Config): A config of the installed library (``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``,
            with or without the suffix), a file, or a loaded config, which is not changed.
        network (str): Name of a variant, such as ``'fcvit_b12'``.
        pretrained (str, optional): A checkpoint that the backbone starts from; ``None``: random weights.
        options (Mapping, optional): Further arguments of the backbone, such as ``dict(drop_path_rate=0.1)``.

    Returns:
        Config: Complete; ``Config.dump(path)`` writes it as a file.

    Raises:
        StockConfigError: A component does not fit another backbone; the error names it.
        UserError: No such config or variant.

    Example:
        >>> from fcvit_mm.apis.stock import replace_backbone
        >>> cfg = replace_backbone('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'fcvit_b12')  # doctest: +SKIP
        >>> cfg.model.backbone.out_indices, cfg.model.neck.in_channels  # doctest: +SKIP
        ((1, 2, 3), [128, 320, 512])
    """
    variant = find_variant(network)
    outer = _with_student(read_stock(config))
    place, inner = find_inner_model(outer.model)
    cfg = outer if inner is outer.model else _alone(outer, inner)
    stock, kind = describe_backbone(cfg), type_name(cfg.model.backbone)
    backbone, outputs = _match(cfg, stock, variant, dict(options or {}))
    before = _neck_channels(cfg, stock.outputs)
    cfg.model.backbone = ConfigDict(backbone)
    try:
        rewire(cfg.model, [output.channels for output in stock.outputs], [output.channels for output in outputs])
    except StockConfigError as error:
        raise StockConfigError(f'{_name(cfg)}: {error}') from error
    after = _neck_channels(cfg, outputs)
    neck = cfg.model.get('neck')
    if before and not after and isinstance(neck, dict) and isinstance(neck.get('out_channels'), list):
        neck['out_channels'] = list(neck['in_channels'])  # YOLOv8's neck requires equal channels
        after = _neck_channels(cfg, outputs)
    follow_neck(cfg.model, before, after)
    _remove_pretrained_weights(cfg, pretrained)
    _adapt_other_settings(cfg, variant)
    if stock.bare:
        cfg.model.backbone.type = f'{UNPACKED}{cfg.model.backbone.type}'
    step = _check(cfg, network)
    if None in step.used_channels:
        rewire(cfg.model, step.channels, step.used_channels)
        cfg.model.backbone.out_indices = step.used_indices
        step = _check(cfg, network)
        if None in step.used_channels:
            raise StockConfigError(
                f'{_name(cfg)}: {_parts(cfg)} uses only the outputs {step.used_indices} of '
                f'out_indices={step.out_indices} of {network}, and this choice cannot be configured. {INSTEAD}'
            )
    _check_depth(cfg, variant, stock, kind)
    return cfg if cfg is outer else _put_back(outer, place, cfg)


def read_stock(config: Union[str, Config]) -> Config:
    """Return a copy of a config, given by name (``'mmdet::FOLDER/NAME'``, ``'mmseg::...'``), as a file or loaded.

    MMEngine's own ``'mmseg::'`` finds the configs of the original distribution only.

    Raises:
        StockConfigError: It does not exist, or is not a config of mmdet or mmseg with a backbone.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        path = find_stock(config) if '::' in config else config
        if not osp.isfile(path):
            raise StockConfigError(
                f'config {path} does not exist: give a file, or LIBRARY::FOLDER/NAME for a config of a library'
            )
        cfg = read_config(path)
    check_scope(cfg, _name(cfg))
    if library_of(cfg) == 'mmpretrain' or not type_name(cfg.get('model') or {}):
        raise StockConfigError(
            f'{_name(cfg)} has default_scope={cfg.get("default_scope")!r}, expected one of {list(LIBRARIES)}, or '
            'another library than mmpretrain: give such a config. In a config of mmpretrain set '
            f'model.backbone=dict(_delete_=True, type=...) and model.head.in_channels, as {CLASSIFIERS} do'
        )
    if not backbone_config(find_inner_model(_with_student(cfg).model)[1]):
        raise StockConfigError(f'{_name(cfg)} has no model.backbone to replace. {INSTEAD}')
    return cfg


def _with_student(cfg: Config) -> Config:
    """Return a config that contains the model to train, where a wrapper of MMRazor only names its config."""
    student = cfg.model.get('architecture')
    if not isinstance(student, dict) or student.get('type') or '::' not in str(student.get('cfg_path')):
        return cfg
    stock = read_stock(student['cfg_path'])
    cfg = copy.deepcopy(cfg)
    cfg.model.architecture = ConfigDict(stock.model, _scope_=stock.default_scope)
    return cfg


def _alone(outer: Config, inner: ConfigDict) -> Config:
    """Return a config whose model is the wrapped one (of semi-supervised training or distillation)."""
    cfg = copy.deepcopy(outer)
    cfg.model = copy.deepcopy(inner)
    cfg.default_scope = cfg.model.get('_scope_', outer.default_scope)
    return cfg


def _put_back(outer: Config, place: str, cfg: Config) -> Config:
    """Return the config of a wrapping model, after the backbone of the one inside was replaced.

    Args:
        outer (Config): The original config.
        place (str): Dotted name of the model inside.
        cfg (Config): Config of the model inside, with the new backbone.
    """
    cfg = copy.deepcopy(cfg)
    inner, cfg.model, cfg.default_scope = cfg.model, copy.deepcopy(outer.model), outer.default_scope
    for node in walk(cfg.model.get('data_preprocessor')):
        if 'mean' in node:
            _normalize(node, cfg.default_scope)
    *parents, name = place.split('.')[1:]
    node = cfg.model
    for parent in parents:
        node = node[parent]
    node[name] = inner
    return cfg


def find_stock(name: str) -> str:
    """Return the path of a config in an installed library.

    Args:
        name (str): ``'LIBRARY::FOLDER/NAME'``, with or without ``.py``.

    Raises:
        StockConfigError: It does not exist; the error lists the configs of its folder.
    """
    library, _, path = name.partition('::')
    if library in TASKS:
        require(library)
    spec = importlib.util.find_spec(library) if library.isidentifier() else None
    if spec is None:
        raise StockConfigError(
            f'config is {name}, expected a name that begins with {" or ".join(f"{each}::" for each in LIBRARIES)}, or '
            'with the name of another installed library'
        )
    root = osp.join(osp.dirname(str(spec and spec.origin)), '.mim', 'configs')
    found = osp.join(root, path if path.endswith('.py') else f'{path}.py')
    if osp.isfile(found):
        return found
    near = sorted(path.stem for path in Path(found).parent.glob('*.py'))
    raise StockConfigError(
        f'{name} is not a config of the installed {library}'
        + (f'; {osp.dirname(path)} has {", ".join(near)}' if near else f'; its folders are in {root}')
    )


def describe_backbone(cfg: Config, devices: Sequence[str] = ('meta', 'cpu')) -> Stock:
    """Run the backbone of a config with random weights to find its outputs.

    Args:
        cfg (Config): A config with ``model.backbone``.
        devices (Sequence[str]): Devices to try, one after the other: not every backbone runs on ``meta``.

    Raises:
        StockConfigError: It cannot be built or run, or does not return feature maps.
    """
    node = copy.deepcopy(cfg.model.backbone)
    for key in ('init_cfg', 'pretrained'):
        if key in node:
            node[key] = None  # not removed, because some classes read it
    kind = type_name(node)
    if node.get('num_segments'):  # TSM, TIN and TANet of MMAction2
        raise StockConfigError(
            f'{_name(cfg)}: model.backbone ({kind}) mixes the frames of a clip in its blocks '
            f'(num_segments={node["num_segments"]}), which no network of fcvit_mm does. {INSTEAD}'
        )
    for last, device in enumerate(devices, 1 - len(devices)):
        try:
            backbone, outputs = _run_backbone(cfg, node, device)
            break
        except Exception as error:
            # Broad, because the config chooses the code.
            if last == 0:
                found = origin(error)
                raise StockConfigError(
                    f'{_name(cfg)}: model.backbone ({kind}), which is to be replaced, cannot be run, so its outputs '
                    f'for neck and heads are unknown: {found.kind}: {found.message}. '
                    f'{advice_for(error, INSTEAD)}'
                ) from error
    bare = isinstance(outputs, Tensor)
    outputs = [outputs] if bare else outputs
    if not isinstance(outputs, (tuple, list)) or not all(isinstance(x, Tensor) and x.ndim == 4 for x in outputs):
        raise StockConfigError(
            f'{_name(cfg)}: model.backbone ({kind}) does not return a list of feature maps, as all networks of '
            f'fcvit_mm do. {INSTEAD}'
        )
    dilated = any(
        max(module.dilation) > 1 and max(module.kernel_size) > 1
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d)
    )
    return Stock([Output(x.shape[1], round(SIDE / x.shape[2])) for x in outputs], dilated, bare)


def _run_backbone(cfg: Config, node: ConfigDict, device: str) -> Tuple[nn.Module, Any]:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device), torch.no_grad():
        backbone = MODELS.build(node)
        backbone.eval()  # not chained: in mmdet's backbones it returns None
        channels = node.get('in_channels', 3)
        return backbone, backbone(torch.zeros(1, channels if isinstance(channels, int) else 3, SIDE, SIDE))


def _match(cfg: Config, stock: Stock, variant: Variant, options: Dict[str, Any]) -> Tuple[Dict[str, Any], List[Output]]:
    """Return the config of a variant's backbone that matches the stock outputs, and its outputs."""
    chosen = sorted({'type', 'out_indices', 'init_cfg'} & set(options))
    if chosen:
        raise UserError(
            f'options contains {", ".join(chosen)}, which are set automatically (out_indices from the inputs of neck '
            'and heads, init_cfg from pretrained, type from the network): remove them from options'
        )
    node = {**variant.options, **variant.dense, **options}
    node.pop('out_indices', None)
    in_channels = cfg.model.backbone.get('in_channels', 3)
    if in_channels != 3:
        node['in_channels'] = in_channels
    wanted = [output.stride for output in stock.outputs]
    levels = _levels(variant, node)
    strides = [level.stride for level in levels]
    picked = None
    takes_stride = 'output_stride' in inspect.signature(variant.network.__init__).parameters
    if stock.dilated and takes_stride and max(wanted) in strides:
        dilated = dict(node, output_stride=max(wanted))
        dilated_levels = _levels(variant, dilated)
        picked = _pick(wanted, [level.stride for level in dilated_levels])
        if picked is not None:
            node, levels = dilated, dilated_levels
    if picked is None:
        picked = _pick(wanted, strides)
    if picked is None and library_of(cfg) == 'mmseg' and len(levels) == len(wanted):
        # Heads of segmentors resize maps to one size, so the levels are used in order, whatever their strides.
        picked = list(range(len(levels)))
    if picked is None:
        raise StockConfigError(
            f'{_name(cfg)}: model.backbone ({type_name(cfg.model.backbone)}) returns feature maps with strides '
            f'{wanted}, {variant.name} with strides {strides}. {INSTEAD}'
        )
    backbone = dict(type=variant.network.__name__, **node, out_indices=tuple(picked))
    return backbone, [levels[index] for index in picked]


def _levels(variant: Variant, node: Dict[str, Any]) -> List[Output]:
    """Return all output levels of a variant's network in dense prediction."""
    try:
        with torch.device('meta'):
            network = variant.network(**node)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{variant.name} cannot be built with {node}: {error}. Correct or omit the options of the backbone'
        ) from error
    return [Output(*level) for level in zip(network.out_channels, network.out_strides)]


def _pick(wanted: Sequence[int], strides: Sequence[int]) -> Optional[List[int]]:
    """Choose an output for each requested stride, the deepest unused ones; ``None`` if there are too few."""
    picked: List[int] = []
    left = list(range(len(strides)))
    for stride in reversed(wanted):
        found = [index for index in left if strides[index] == stride]
        if not found:
            return None
        picked.insert(0, found[-1])
        left = left[: left.index(found[-1])]
    return picked


def _neck_channels(cfg: Config, outputs: Sequence[Output]) -> Optional[List[int]]:
    """Return the channels of the outputs of a config's neck; ``None`` without a neck, or if it cannot be run."""
    nodes = cfg.model.get('neck')
    maps: Any = tuple(torch.zeros(1, each.channels, SIDE // each.stride, SIDE // each.stride) for each in outputs)
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
            for node in nodes if isinstance(nodes, (list, tuple)) else [nodes]:
                neck = MODELS.build(copy.deepcopy(node))
                neck.eval()  # not chained: MMYOLO's return None from it
                maps = neck(maps)
        return [each.shape[1] for each in maps]
    except Exception:
        # Broad, because the config may name any code; the training step reports the error.
        return None


def _remove_pretrained_weights(cfg: Config, pretrained: Optional[str]) -> None:
    """Remove the pretrained weights of the stock backbone; initialize the new one from ``pretrained``."""
    if pretrained is not None:
        set_pretrained(cfg, pretrained)
    if cfg.model.get('pretrained') is not None:  # mmseg passes it to the backbone
        cfg.model['pretrained'] = None
    if type_name(cfg.model.get('init_cfg') or {}) == 'Pretrained':
        cfg.model['init_cfg'] = None
    if cfg.get('load_from'):
        cfg.load_from = None


def _normalize(preprocessor: ConfigDict, scope: Optional[str]) -> None:
    """Set the normalization of images, and the channel order if the preprocessor has it (not in MMAction2)."""
    kind = preprocessor.get('type')
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    arguments = inspect.signature(kind).parameters if callable(kind) else {}
    fixed = arguments and not {'bgr_to_rgb', 'kwargs'} & set(arguments)
    preprocessor.pop('rgb_to_bgr', None)
    preprocessor.update(copy.deepcopy(NORMALIZATION))
    if fixed:
        preprocessor.pop('bgr_to_rgb')


def _adapt_other_settings(cfg: Config, variant: Variant) -> None:
    """Set the images' normalization, imports, and a constructor of layer-wise learning rates."""
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor:
        _normalize(preprocessor, cfg.default_scope)
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    modules = ['fcvit_mm', variant.network.__module__.partition('.')[0]]
    imports = list(dict.fromkeys([*imports, *modules]))
    cfg.custom_imports = dict(imports=imports, allow_failed_imports=False)
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper.get('constructor') or '') in LAYER_DECAY:
        settings = dict(wrapper.get('paramwise_cfg') or {})
        rate = settings.get('decay_rate', settings.get('layer_decay_rate'))
        kept = {key: settings[key] for key in settings if key not in ('decay_rate', 'decay_type', 'num_layers')}
        wrapper['constructor'] = 'BackboneLayerDecayConstructor'
        wrapper['paramwise_cfg'] = dict(kept, layer_decay_rate=rate)


def _check(cfg: Config, network: str) -> Step:
    """Run a training step of the model.

    Raises:
        StockConfigError: The step fails; the error names the part of the config.
    """
    try:
        return try_step(cfg)
    except StepError as error:
        one = str(cfg.model.backbone.type).startswith(UNPACKED)
        why = 'the original backbone returns one map, this network a tuple of maps, which does not fit: ' if one else ''
        way_out = INSTEAD if error.part else advice_for(error, INSTEAD)
        raise StockConfigError(f'{_name(cfg)} with {network}: {why}{error}. {way_out}') from error


def _check_depth(cfg: Config, variant: Variant, stock: Stock, kind: str) -> None:
    """Reject a backbone whose last stages would be unused, as in place of HRNet with a single output of stride 4.

    Raises:
        StockConfigError: They would be unused.
    """
    node = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'out_indices', 'init_cfg')}
    last, number = max(cfg.model.backbone.out_indices), len(_levels(variant, node))
    if last < number - 1:
        raise StockConfigError(
            f'{_name(cfg)}: model.backbone ({kind}) returns feature maps with strides '
            f'{[output.stride for output in stock.outputs]}, which {variant.name} has up to stage {last + 1} of '
            f'{number}, so that the later stages would be unused. {INSTEAD}'
        )


def _name(cfg: Config) -> str:
    return cfg.filename or 'the config'


def _parts(cfg: Config) -> str:
    return ', '.join(f'model.{name} ({type_name(node)})' for name, node in readers(cfg.model))
