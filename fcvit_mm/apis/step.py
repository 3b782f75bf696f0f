"""A training step on random images that shows which backbone outputs and parameters a model uses.

Necks and heads differ in which outputs they read (``start_level``, ``in_index``, only the last, ...). The gradients of
the loss show it without rules for each of them.
"""

import copy
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor

from ..engine.config import library_of, type_name, walk
from ..errors import UserError, origin
from .failing_part import failing_part, named_in_config, part_in_building
from .load import build_model, input_channels, tensor_forward
from .random_batch import BATCH, collated, random_batch

#: Sides of the images in pixels, the smallest first: some models need more positions than small images have.
SIZES = (128, 256)
#: Maximum number of proposals and queries per image; few are enough for small images.
PROPOSALS = 50


@dataclass
class WatchedOutput:
    """One output of a backbone: its channels, and whether a loss depends on it."""

    channels: int
    used: bool = False


class Step(NamedTuple):
    """Results of a training step.

    Attributes:
        outputs (list[WatchedOutput]): Outputs of the backbone; empty without ``backbone``, or if all of it is frozen.
        out_indices (tuple[int], optional): ``out_indices`` of the backbone; ``None`` unless it has one per output.
        without_gradient (list[str]): Names of the trainable parameters that got no gradient.
        losses (dict[str, float]): Losses by name; empty for a model of another library.
    """

    outputs: List[WatchedOutput]
    out_indices: Optional[Tuple[int, ...]]
    without_gradient: List[str]
    losses: Dict[str, float]

    @property
    def used_indices(self) -> Optional[Tuple[int, ...]]:
        """The ``out_indices`` of the outputs that the loss depends on; ``None`` without ``out_indices``."""
        if self.out_indices is None:
            return None
        return tuple(index for index, output in zip(self.out_indices, self.outputs) if output.used)

    @property
    def channels(self) -> List[int]:
        """Channels of the outputs."""
        return [output.channels for output in self.outputs]

    @property
    def used_channels(self) -> List[Optional[int]]:
        """Channels of the outputs, ``None`` for one that the loss does not depend on."""
        return [output.channels if output.used else None for output in self.outputs]


class StepError(UserError):
    """A model could not take a training step.

    Attributes:
        part (str, optional): The component of the config that failed, such as ``'model.roi_head.shared_head'``;
            ``None`` if the model could not be built.
    """

    def __init__(self, message: str, part: Optional[str]) -> None:
        super().__init__(message)
        self.part = part


@contextmanager
def watched_outputs(model: nn.Module) -> Iterator[List[WatchedOutput]]:
    """Record which outputs of a model's backbone receive gradients.

    Args:
        model (nn.Module): A model whose attribute ``backbone`` returns a tuple or list of tensors.

    Yields:
        list[WatchedOutput]: Filled by each forward and backward pass inside. Empty without a backbone, and if nothing
            in it learns.
    """
    found: List[WatchedOutput] = []
    backbone = getattr(model, 'backbone', None)

    def watch(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not isinstance(outputs, (tuple, list)) or not all(isinstance(x, Tensor) for x in outputs):
            return
        if not any(output.requires_grad for output in outputs):
            return
        found.extend(WatchedOutput(output.shape[1]) for output in outputs[len(found) :])
        for watched, output in zip(found, outputs):
            if output.requires_grad:
                output.register_hook(partial(_note, watched))
            else:  # from a frozen stage, which has no gradient that shows whether the output is used
                watched.used = True

    handle = backbone.register_forward_hook(watch) if isinstance(backbone, nn.Module) else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()


def _note(watched: WatchedOutput, gradient: Tensor) -> None:
    watched.used = True


def observed(
    model: nn.Module, outputs: List[WatchedOutput], without_gradient: List[str], losses: Dict[str, float]
) -> Step:
    """Return the results of a training step, from :func:`watched_outputs` and the gradients."""
    indices = getattr(getattr(model, 'backbone', None), 'out_indices', None)
    known = isinstance(indices, (tuple, list)) and len(indices) == len(outputs)
    return Step(outputs, tuple(indices) if known and indices is not None else None, without_gradient, losses)


def parameters_without_gradient(model: nn.Module) -> List[str]:
    """Return the names of the trainable parameters that have no gradient, after a backward pass."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def without_downloads(cfg: Config, size: Optional[int] = None) -> Config:
    """Return a copy of a config whose model has random weights and accepts small images.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        size (int, optional): Side of the images in pixels; images are padded and resized to it, and the numbers of
            proposals, samples of them, queries and detections are limited to :data:`PROPOSALS`. ``None``: as in the
            config.
    """
    cfg = copy.deepcopy(cfg)
    for node in walk(cfg.model):
        given = node.get('init_cfg')
        inits = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
        if any(type_name(init) == 'Pretrained' for init in inits):
            node['init_cfg'] = [init for init in inits if type_name(init) != 'Pretrained'] or None
        if node.get('pretrained') is not None:
            node['pretrained'] = None
    if size is None:
        return cfg
    for node in walk(cfg.model):
        for key in ('max_per_img', 'nms_pre', 'num_queries', *(['num'] if type_name(node).endswith('Sampler') else [])):
            if isinstance(node.get(key), int):
                node[key] = min(node[key], PROPOSALS)
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor:
        augments = preprocessor.get('batch_augments') or []
        for node in [preprocessor, *augments]:
            for key in ('size', 'random_size_range'):
                if node.get(key) is not None:
                    node[key] = (size, size)
        # Other batch augmentations may enlarge images.
        preprocessor['batch_augments'] = [node for node in augments if 'size' in node or 'random_size_range' in node]
        if not preprocessor['batch_augments']:
            preprocessor.pop('batch_augments')
    return cfg


@contextmanager
def scope_of_library(cfg: Config) -> Iterator[None]:
    """Set the state that models read during a run: the library's scope, and the first iteration (TOOD)."""
    name = f'{__name__}.scope_of_library'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        hub = MessageHub.get_instance(name)  # the newest instance is the current one
        for key in ('epoch', 'iter'):
            hub.update_info(key, 0)
        try:
            yield
        finally:
            MessageHub._instance_dict.pop(name, None)


def try_step(cfg: Config, sizes: Sequence[int] = (), images: int = BATCH) -> Step:
    """Let a config's model, with random weights, take a training step on random images, on the CPU.

    The ground truth of other libraries is unknown. Their models run in the mode ``'tensor'``, and the gradients are
    those of the sum of the outputs; the size that a component asks for (``input_size``) is tried, too.

    Args:
        cfg (Config): Config of a model; it is not changed.
        sizes (Sequence[int]): Sides of the images in pixels; the next one is tried if a step fails. Empty: ``SIZES``.
        images (int): Images per batch.

    Returns:
        Step: Results of the step.

    Raises:
        StepError: The model cannot be built, or no step can be taken; names the component.
    """
    foreign = library_of(cfg) is None
    shapes: List[Any] = list(sizes or [*SIZES, *(expected_sizes(cfg) if foreign else ())])
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the libraries list every parameter that they initialize
    try:
        with torch.random.fork_rng(devices=[]), scope_of_library(cfg):
            for last, size in enumerate(shapes, 1 - len(shapes)):
                torch.manual_seed(0)
                try:
                    model: Any = build_model(without_downloads(cfg, None if foreign else size))
                    model.init_weights()
                except Exception as error:
                    # Broad, as below, because the config chooses the code.
                    part = part_in_building(cfg.model, error)
                    where = f'{part} cannot' if part else 'the model cannot'
                    raise StepError(f'{where} be built: {_describe_error(error)}', None) from error
                try:
                    if foreign:
                        return _take_step_of_outputs(model, size, input_channels(model, cfg), images)
                    batch = random_batch(cfg, size, input_channels(model, cfg), images)
                    return _take_step(model, collated(cfg, batch))
                except Exception as error:
                    if last == 0:
                        part, kind = named_in_config(cfg.model, failing_part(model, error))
                        raise StepError(f'{part} ({kind}): {_describe_error(error)}', part) from error
        raise AssertionError('the last size returns or raises')
    finally:
        logger.setLevel(level)


def _take_step(model: nn.Module, batch: Any) -> Step:
    library: Any = model
    library.train()
    with watched_outputs(model) as outputs, torch.enable_grad():
        data = library.data_preprocessor(batch, True)
        loss, losses = library.parse_losses(library(**data, mode='loss'))
        loss.backward()
    return observed(
        model,
        outputs,
        parameters_without_gradient(model),
        {name: torch.as_tensor(value).item() for name, value in losses.items()},
    )


def expected_sizes(cfg: Config) -> List[Tuple[int, int]]:
    """Return heights and widths of images that components of a model expect (``input_size``: width, height)."""
    given = [node.get('input_size') for node in walk(cfg.model)]
    pairs = [tuple(each) for each in given if isinstance(each, (tuple, list)) and len(each) == 2]
    return [(height, width) for width, height in dict.fromkeys(pairs)]


def _take_step_of_outputs(model: nn.Module, size: Any, channels: int, images: int) -> Step:
    shape = (size, size) if isinstance(size, int) else size
    inputs = torch.randn(images, channels, *shape)
    model.train()
    with torch.enable_grad():
        run = tensor_forward(model, inputs)
        with watched_outputs(model) as outputs:
            found = [each.float().sum() for each in run(inputs) if each.requires_grad]
            torch.stack(found).sum().backward()
    return observed(model, outputs, parameters_without_gradient(model), {})


def _describe_error(error: BaseException) -> str:
    kind, message, _ = origin(error)
    return f'{kind}: {message}'.rstrip(': ')
