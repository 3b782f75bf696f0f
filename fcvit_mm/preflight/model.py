"""Checking a model's config before a run: components that do not fit each other, and heads that cannot learn."""

import copy
from difflib import get_close_matches
from typing import Any, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..apis.load import build_model
from ..apis.rewiring import StockConfigError, channel_mismatches
from ..apis.step import StepError, try_step
from ..apis.stock import describe_backbone
from ..checkpoints.names import some
from ..engine.config import library_of, type_name, walk
from ..engine.wrapped import backbone_config, find_inner_model, unwrap_model
from .batches import segmentation_heads
from .contexts import quiet
from .log import log_warning
from .messages import parameters_of
from .misspelt_arguments import nodes_of

#: Library -> argument of a head with its losses, and shapes of scores and labels for these losses with one class.
LOSSES = {'mmseg': ('loss_decode', (2, 1, 4, 4), (2, 4, 4)), 'mmpretrain': ('loss', (2, 1), (2,))}
#: Minimum similarity to a part of a name at which a key counts as misspelt.
MISSPELT = 0.8


def built_model(cfg: Config, device: str = 'cpu') -> Optional[nn.Module]:
    """Build the model of a config; ``None`` if that fails, which :mod:`.building` reports.

    Args:
        cfg (Config): The config.
        device (str): ``'meta'`` for a model whose weights have names and shapes, but no values.
    """
    try:
        with torch.device(device), quiet():
            return build_model(cfg)
    except Exception:
        # Broad, because the model may be any code; the runner reports what is wrong with it.
        return None


def channel_problems(cfg: Config) -> List[str]:
    """Check that neck or heads expect the channels that the backbone returns.

    Different numbers alone prove nothing, because a head may use them in its own way. If they differ, a training step
    on random images decides.
    """
    place, model = find_inner_model(cfg.get('model') or {})
    if not backbone_config(model):
        return []
    cfg = unwrap_model(cfg)
    try:
        channels = [output.channels for output in describe_backbone(cfg, ('meta',)).outputs]
    except StockConfigError:  # it cannot be run on the meta device, or returns no maps
        return []
    suspected = list(channel_mismatches(model, channels))
    if not suspected:
        return []
    try:
        try_step(cfg)
        return []
    except StepError as error:
        failing = error.part
    if not any(f'{failing}.'.startswith(f'{each.part}.') for each in suspected):
        return []
    for each in suspected:
        indices = node_at(model, each.part.split('.')[1:]).get('in_index')
        indices = indices if isinstance(indices, (list, tuple)) else [indices]
        beyond = [index for index in indices if isinstance(index, int) and not -len(channels) <= index < len(channels)]
        if beyond:
            return [
                f'{place}{each.part[len("model") :]}.in_index has {beyond[0]}, but {place}.backbone '
                f'({type_name(model["backbone"])}) has {len(channels)} outputs: give numbers from 0 to '
                f'{len(channels) - 1}'
            ]
        if isinstance(each.value, (list, tuple)) and list(each.value) == (each.expected or [])[::-1]:
            name = f'{place}{each.part[len("model") :]}'
            return [
                f'{name}.in_index={indices} is in reverse of {name}.{each.key}={list(each.value)}: give in_index in '
                'the order of the channels'
            ]
    backbone = f'{place}.backbone ({type_name(model["backbone"])}) returns {channels} channels'
    return [
        f'{name} is {each.value}, but {backbone}: set {name}={"..." if each.expected is None else each.expected}. '
        'tools/replace_backbone.py adapts stock configs of mmdet and mmseg to a backbone'
        for each in suspected
        for name in [f'{place}{each.part[len("model") :]}.{each.key}']
    ]


def node_at(node: Any, names: Sequence[str]) -> dict:
    """Return the dict at a dotted name in a tree of dicts and lists; empty if there is none."""
    for name in names:
        node = node[int(name)] if isinstance(node, (list, tuple)) else (node or {}).get(name)
    return node if isinstance(node, dict) else {}


def one_class_problems(cfg: Config) -> List[str]:
    """Check that heads with a single class can learn: a softmax of one score is always 1.

    To find out, the losses are built and applied to random scores of the single class.
    """
    model, library = cfg.get('model') or {}, library_of(cfg)
    steps = {type_name(step) for step in walk((cfg.get('train_dataloader') or {}).get('dataset'))}
    if library not in LOSSES or 'LoadDepthAnnotation' in steps:  # depths are no classes
        return []
    heads = segmentation_heads(model) if library == 'mmseg' else [('model.head', model.get('head'))]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        found = [
            name
            for name, head in heads
            if isinstance(head, dict) and head.get('num_classes') == 1 and not can_learn(head, library)
        ]
    ways_out = 'use num_classes=2, with a class for the background'
    if library == 'mmseg':
        ways_out += ', and optionally out_channels=1 with CrossEntropyLoss(use_sigmoid=True)'
    return [
        f'{name}.num_classes is 1, whose softmax is always 1, so that the loss is always 0: nothing '
        f'can be learned. For one class and background, {ways_out}'
        for name in found
    ]


def report_order_of_outputs(cfg: Config) -> None:
    """Log a warning if a segmentation head takes the backbone's outputs in another order than from fine to coarse."""
    for name, head in segmentation_heads(cfg.get('model') or {}):
        index = head.get('in_index')
        if not isinstance(index, (list, tuple)) or not all(isinstance(each, int) for each in index):
            continue
        ordered = sorted(index)
        if list(index) != ordered:
            log_warning(
                f'{name}.in_index={list(index)} is not in ascending order, but heads of mmseg expect the outputs from '
                f'fine to coarse: give {ordered} and in_channels in the same order, unless this is intended'
            )


def report_unsummed_losses(cfg: Config) -> None:
    """Log a warning if a loss has a name without ``loss``: MMEngine logs it, but does not add it to the sum."""
    names = [node['loss_name'] for node in walk(cfg.get('model')) if isinstance(node.get('loss_name'), str)]
    for name in dict.fromkeys(name for name in names if 'loss' not in name):
        log_warning(
            f'model: loss_name={name!r} does not contain "loss", so this loss is logged but not trained: give '
            f"loss_name='loss_{name}'"
        )


def report_replaced_settings(cfg: Config) -> None:
    """Log a warning for ``train_cfg`` and ``test_cfg`` of a component where the model's own settings replace them.

    mmdet's detectors do so. What was given is not even read, so its mistakes go unnoticed.
    """
    place, model = find_inner_model(cfg.get('model') or {})
    given = [
        (name, key, node[key])
        for name, registry, node in nodes_of(cfg)
        for key in ('train_cfg', 'test_cfg')
        if registry is MODELS and name.startswith(f'{place}.') and isinstance(node.get(key), dict)
    ]
    built = built_model(cfg, 'meta') if given else None
    if built is None:
        return
    for name, key, settings in given:
        try:
            used = getattr(built.get_submodule(name.partition('.')[2]), key, settings)
        except AttributeError:
            continue
        replaced = [each for each in differing(settings, used) if any(each in part for part in walk(model.get(key)))]
        if replaced:
            names = ', '.join(f'{name}.{key}.{each}' for each in replaced)
            log_warning(f'{names}: the settings in {place}.{key} replace these. Set them there')


def differing(given: dict, used: Any) -> List[str]:
    """Return the keys of settings whose values are others in the built model."""
    return [key for key, value in given.items() if not isinstance(used, dict) or used.get(key) != value]


def class_weight_problems(cfg: Config) -> List[str]:
    """Check that ``class_weight`` of each loss has one weight per class, with or without the background."""
    problems = []

    def visit(node: Any, name: str, numbers: Tuple[int, ...]) -> None:
        if isinstance(node, dict):
            given = [node[key] for key in ('num_classes', 'out_channels') if isinstance(node.get(key), int)]
            if isinstance(node.get('num_classes'), int):
                numbers = tuple(given)
            elif isinstance(node.get('num_things_classes'), int):  # of Mask2Former in mmdet
                numbers = (node['num_things_classes'] + (node.get('num_stuff_classes') or 0),)
            weights = node.get('class_weight')
            fitting = {number + more for number in numbers for more in (0, 1)}
            if isinstance(weights, (list, tuple)) and numbers and len(weights) not in fitting:
                problems.append(
                    f'{name}.class_weight has {len(weights)} weights, but the head has {numbers[0]} classes: give one '
                    'for each class'
                )
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(child, (dict, list, tuple)):
                visit(child, f'{name}.{key}', numbers)

    visit(cfg.get('model') or {}, 'model', ())
    return problems


def optimizer_problems(cfg: Config) -> List[str]:
    """Check the optimizer's settings for single parameters (``custom_keys``), and report those that have no effect.

    A key without effect is reported only if it is similar to a parameter's name, because stock configs have keys for
    options that the backbone is built without; or if no key has an effect.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    if not keys and not wrapper.get('constructor'):
        return []
    model = built_model(cfg, 'meta')
    if model is None:
        return []
    names = [name for name, _ in model.named_parameters()]
    parts = sorted({part for name in names for part in (*name.split('.'), name)})
    unused = [key for key in keys if not any(key in name for name in names)]
    all_unused = len(unused) == len(keys) and any('lr_mult' in (value or {}) for value in keys.values())
    for key in unused:
        near = get_close_matches(key.strip('.').rpartition('.')[2], parts, 1, MISSPELT)
        if near or all_unused:
            log_warning(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is part of no name of a parameter '
                f'({some(names)}) and has no effect' + (f': did you mean {near[0]!r}?' if near else '')
            )
    try:
        with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            build_optim_wrapper(model, copy.deepcopy(wrapper))
    except NotImplementedError:
        return [
            f'optim_wrapper.constructor={wrapper["constructor"]!r} does not know the layers of '
            f'{type(getattr(model, "backbone", model)).__name__}: use constructor="BackboneLayerDecayConstructor" with '
            'paramwise_cfg=dict(layer_decay_rate=...)'
        ]
    except Exception:
        # Broad, because optimizers may be any code and may not support parameters on the meta device.
        return []
    return []


def can_learn(head: dict, library: str) -> bool:
    """Check whether a loss of a head with one class has a gradient; ``True`` if that cannot be found out."""
    key, scores_shape, labels_shape = LOSSES[library]
    try:
        given = head.get(key) or default_of(head, key)
        losses = [MODELS.build(each) for each in (given if isinstance(given, (list, tuple)) else [given])]
        for loss in losses:
            scores = torch.linspace(-2, 2, torch.Size(scores_shape).numel()).reshape(scores_shape).requires_grad_()
            loss(scores, torch.zeros(labels_shape, dtype=torch.long)).sum().backward()
            if scores.grad is None or scores.grad.abs().max() != 0:
                return True
    except Exception:
        # Broad, because losses may be any code.
        return True
    return bool(not losses)


def default_of(head: dict, key: str) -> Any:
    """Return the default of an argument of a head's class."""
    head_type = head['type']
    if isinstance(head_type, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            head_type = registry.get(head_type)
    return next(value.default for value in parameters_of(head_type) if value.name == key)
