"""A training step on random images that shows which backbone outputs and parameters a model uses.

Necks and heads differ in which outputs they read (``start_level``, ``in_index``, only the last, ...). The gradients of
the loss show it without rules for each of them.
"""

import copy
import logging
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from ..engine.config import library_of, task_of, type_name, walk
from ..errors import UserError, origin
from .load import build_model, input_channels, tensor_forward

#: Sides of the images in pixels, the smallest first: some models need more positions than small images have.
SIZES = (128, 256)
#: Images per batch: BatchNorm needs two if a map is pooled to one position.
BATCH = 2
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


def random_batch(cfg: Config, size: int, channels: int = 3, images: int = BATCH) -> Dict[str, list]:
    """Make random images with ground truth, as a data loader of the config would.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        size (int): Side of the images, in pixels.
        channels (int): Number of channels of the images.
        images (int): Number of images.

    Returns:
        dict: ``inputs``, a list of uint8 tensors ``(channels, size, size)``, and ``data_samples``: in detection two
            boxes of label 0, and masks and a segmentation map of label 0 if the training pipeline loads them; in
            segmentation a map with labels 0 and 1, and edge and depth maps if the pipeline makes them.
    """
    rng = np.random.RandomState(0)
    inputs = [torch.from_numpy(rng.randint(0, 255, (channels, size, size), dtype=np.uint8)) for _ in range(images)]
    samples = [SAMPLES[task_of(cfg)](cfg, size, number) for number in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def collated(cfg: Config, batch: Dict[str, list]) -> Any:
    """Return a batch in the format of the collate function of the training data loader, such as MMYOLO's."""
    collate = (cfg.get('train_dataloader') or {}).get('collate_fn')
    if collate is None:
        return batch
    samples = [dict(zip(batch, values)) for values in zip(*batch.values())]
    sampler = dict(type='DefaultSampler', shuffle=False)
    options = dict(dataset=samples, batch_size=len(samples), sampler=sampler, collate_fn=copy.deepcopy(collate))
    return next(iter(Runner.build_dataloader(ConfigDict(options, num_workers=0))))


def _described(size: int, number: int) -> Dict[str, Any]:
    shape = (size, size)
    return dict(
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        scale_factor=(1.0, 1.0),
        flip=False,
        img_id=number,
        border=(0.0, size, 0.0, size),  # borders of the image within its frame, which CenterNet's pipeline sets
    )


def _classified(cfg: Config, size: int, number: int) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_described(size, number)).set_gt_label(0)


def _detected(cfg: Config, size: int, number: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = [[size // 8, size // 8, size // 2, size // 2], [size // 4, size // 4, size - 8, size - 16]]
    masks = np.zeros((len(boxes), size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = 1
    # Only what the training pipeline loads, because some models behave differently if there is more.
    steps = list(walk((cfg.get('train_dataloader') or {}).get('dataset')))
    kinds = [step['box_type'] for step in steps if step.get('box_type')]
    kinds += [
        step['box_type_mapping']['gt_bboxes'] for step in steps if 'gt_bboxes' in step.get('box_type_mapping', {})
    ]
    sample = DetDataSample(metainfo=_described(size, number))
    sample.gt_instances, sample.ignored_instances = (
        InstanceData(
            bboxes=HorizontalBoxes(torch.tensor(each, dtype=torch.float32).view(-1, 4)).convert_to(
                (kinds or ['hbox'])[-1]
            ),
            labels=torch.zeros(len(each), dtype=torch.long),
        )
        for each in (boxes, [])
    )
    panoptic = any(type_name(step) == 'LoadPanopticAnnotations' for step in steps)
    if panoptic or any(step.get('with_mask') for step in steps):
        sample.gt_instances.masks = BitmapMasks(masks, size, size)
    if panoptic or any(step.get('with_seg') for step in steps):
        # If the pipeline reduces the map, as HTC's does, the head expects the reduced size.
        scales = [step.get('scale_factor', 1) for step in steps if type_name(step) == 'SegRescale']
        side = int(size * (scales[0] if scales else 1))
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, side, side, dtype=torch.long))
    return sample


def _segmented(cfg: Config, size: int, number: int) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, size, size, dtype=torch.long)
    labels[:, : size // 2] = 1
    sample = SegDataSample(metainfo=_described(size, number), gt_sem_seg=PixelData(data=labels))
    # Further ground truth from the training pipeline, for heads of PIDNet and of depth estimators.
    steps = {type_name(step) for step in walk((cfg.get('train_dataloader') or {}).get('dataset'))}
    if 'GenerateEdge' in steps:
        edge = torch.zeros_like(labels)
        edge[:, size // 2] = 1
        sample.set_data(dict(gt_edge_map=PixelData(data=edge)))
    if 'LoadDepthAnnotation' in steps:
        sample.set_data(dict(gt_depth_map=PixelData(data=torch.ones(1, size, size))))
    return sample


#: Task -> function that generates the ground truth of an image.
SAMPLES = dict(classification=_classified, detection=_detected, segmentation=_segmented)


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
    shapes: List[Any] = list(sizes or [*SIZES, *(asked_sizes(cfg) if foreign else ())])
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


def asked_sizes(cfg: Config) -> List[Tuple[int, int]]:
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


def failing_part(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost model component in an error's traceback; empty for the model itself.

    Components are modules whose class is from a library or the user, not from PyTorch.
    """
    names = {id(module): name for name, module in model.named_modules()}
    part = ''
    for module in _passed_through(error):
        part = names.get(id(module), part)
    return part


def named_in_config(model: Any, part: str) -> Tuple[str, str]:
    """Return dotted name and type of the innermost component of a config that contains a module.

    Args:
        model (dict): The config.
        part (str): Name of the module.
    """
    node, name, found = model, 'model', ('model', type_name(model))
    for key in filter(None, part.split('.')):
        index: Any = int(key) if isinstance(node, (list, tuple)) else key
        try:
            node = node[index]
        except (KeyError, IndexError, TypeError):
            break
        name = f'{name}.{key}'
        if isinstance(node, dict):
            found = (name, type_name(node))
    return found


def part_in_building(model: Any, error: BaseException) -> str:
    """Return dotted name and type of the config component whose constructor failed; empty if unknown.

    Args:
        model (dict): The config.
        error (BaseException): The error that building the model raised.
    """
    part = ''
    for module in _passed_through(error):
        kind = type(module).__name__
        found = [name for name, node in _named_nodes(model, 'model') if type_name(node) == kind]
        part = f'{found[0]} ({kind})' if found else part
    return part


def _passed_through(error: BaseException) -> Iterator[nn.Module]:
    """Yield the modules whose methods an error passed through, outermost first; also those of its ``__cause__``."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for each in chain:
        for frame, _ in traceback.walk_tb(each.__traceback__):
            module = frame.f_locals.get('self')
            foreign = ('torch.', 'mmcv.', 'mmengine.')
            if isinstance(module, nn.Module) and not type(module).__module__.startswith(foreign):
                yield module


def _named_nodes(node: Any, name: str) -> Iterator[Tuple[str, dict]]:
    if isinstance(node, dict):
        yield name, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in items:
        yield from _named_nodes(child, f'{name}.{key}')
