"""Checking batches before a run: loaded samples go through the collation of the loader and the model's preprocessor."""

import copy
import math
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..apis.step import StepError, try_step
from ..engine.config import library_of, type_name, walk
from ..engine.machine import adapt_to_machine
from ..errors import origin
from .contexts import quiet
from .data.dataset import Leaf
from .data.kinds import is_segmentation
from .gradients import is_distributed
from .log import log_warning, shorten

#: Sides of random images in pixels; a step on larger images takes longer and shows nothing more.
LARGEST_SIDE = 512
#: Part of PyTorch's error message for a BatchNorm that gets one value per channel.
ONE_VALUE = 'Expected more than 1 value per channel'
#: The end of a message to users of Hybrid Task Cascade and the like.
WITHOUT_SEMANTIC_HEAD = (
    ', or train without it: model.roi_head.semantic_head=None and model.roi_head.semantic_roi_extractor=None'
)
#: Maximum number of pixels of padding that is not reported, as of small images to a multiple of 32 or 64.
SMALL_PADDING = 64
#: Ranges of the values of normalized images, in standard deviations, beyond which mean and std are in another unit.
SMALLEST_RANGE, LARGEST_RANGE = 0.1, 255
#: Label that mmseg's heads ignore by default.
IGNORED = 255


class Batches:
    """A data loader without its data set, and the preprocessor of the model.

    Args:
        cfg (Config): The config; loader and preprocessor are built in the current scope.
        name (str): Name of the data loader.
        number (int): Number of samples of its data set.

    Raises:
        Exception: Loader or preprocessor cannot be built.
    """

    def __init__(self, cfg: Config, name: str, number: int) -> None:
        self.cfg, self.name, self.training = cfg, name, name.startswith('train')
        ready = copy.deepcopy(cfg)
        with quiet():
            adapt_to_machine(ready)
            options = {key: value for key, value in ready[name].items() if key not in ('dataset', 'prefetch_factor')}
            options.update(dataset=range(number), num_workers=0, persistent_workers=False, pin_memory=False)
            self.loader: Any = Runner.build_dataloader(ConfigDict(options))
            model = ready.get('model') or {}
            node = model.get('data_preprocessor') or ready.get('data_preprocessor')
            # mmpretrain gives the type later; its batches are of one size.
            self.preprocessor: Any = MODELS.build(node) if node and node.get('type') else None

    @property
    def batch_size(self) -> int:
        """Images of a batch, in each process."""
        return int(self.loader.batch_size or getattr(self.loader.batch_sampler, 'batch_size', 1))

    @property
    def last(self) -> int:
        """Number of images of the last batch of an epoch, which may be incomplete."""
        size, sampler = self.batch_size, self.loader.sampler
        endless = any('Infinite' in base.__name__ for base in type(sampler).__mro__)
        sampler = getattr(self.loader.batch_sampler, 'sampler', sampler)
        if endless or getattr(self.loader.batch_sampler, 'drop_last', False) or is_distributed(self.cfg):
            return size
        return len(sampler) % size or size

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.loader.sampler) / self.batch_size)

    def make(self, samples: Sequence[Any]) -> Any:
        """Make a batch, as the model gets it; the samples stay as they are."""
        data = self.loader.collate_fn(copy.deepcopy(list(samples)))
        with torch.no_grad():
            return self.preprocessor(data, self.training) if self.preprocessor is not None else data

    def can_make(self, samples: Sequence[Any]) -> bool:
        """Check whether a batch of some samples can be made."""
        try:
            self.make(samples)
        except Exception:
            # Broad, because collation and preprocessing may be any code.
            return False
        return True


def batch_problems(cfg: Config, name: str, number: int, packed: Dict[int, Any], leaves: Sequence[Leaf]) -> List[str]:
    """Check the batches of a data loader: sizes of images, a last batch of one image, masks, ignored labels.

    Args:
        cfg (Config): The config.
        name (str): Name of the data loader.
        number (int): Number of samples of its data set.
        packed (dict): Index -> sample that went through the pipeline.
        leaves (sequence of Leaf): The data sets.
    """
    samples = [
        sample
        for sample in packed.values()
        if isinstance(sample, dict) and isinstance(sample.get('inputs'), torch.Tensor) and sample['inputs'].ndim == 3
    ]
    unpacked = packing_problems(cfg, name, packed, leaves)
    if unpacked:
        return unpacked
    if not samples:  # several views of one image, videos, or samples of an unknown library
        return []
    of_channels = mean_problem(cfg, samples[0]['inputs'].shape[0])
    if of_channels:
        return [of_channels]
    report_values(cfg, name, [sample['inputs'] for sample in samples])
    try:
        batches = Batches(cfg, name, number)
    except Exception:
        # Broad, because anything may be configured; the run says so, before it starts.
        return []
    problems = size_problems(batches, samples)
    if problems or not batches.training:
        return problems
    report_padding(batches, samples)
    problems = mask_problems(batches, samples) + ignored_problems(batches, samples, leaves)
    return problems + single_image_batch_problems(batches, samples)


def mean_problem(cfg: Config, channels: int) -> str:
    """Describe means of another number of channels than the images have, which would change their number."""
    node = preprocessor_of(cfg)
    for key in ('mean', 'std'):
        values = node.get(key)
        if isinstance(values, (list, tuple)) and len(values) not in (1, channels):
            plural = 's' if channels != 1 else ''
            return (
                f'images have {channels} channel{plural}, but data_preprocessor.{key} has {len(values)} values: give '
                'one value per channel, or correct color_type of LoadImageFromFile'
            )
    return ''


def report_values(cfg: Config, name: str, images: Sequence[torch.Tensor]) -> None:
    """Report that ``mean`` and ``std`` of the preprocessor are in another unit than the values of the images.

    Normalized twice, or scaled to 0..1 before, images are almost constant. With the values of torchvision, which are
    for 0..1, their contrast is hundreds of times that of the images that pretrained weights were trained on.
    """
    node = preprocessor_of(cfg)
    std = [float(value) for value in np.ravel(node.get('std') or ()) if value]
    if not std or node.get('mean') is None or not all(image.numel() for image in images):
        return
    # Not of all pixels, which takes gigabytes for very large images; PyTorch has no minimum of 16-bit integers.
    thinned = [
        image[:, :: 1 + image.shape[1] // LARGEST_SIDE, :: 1 + image.shape[2] // LARGEST_SIDE] for image in images
    ]
    low = min(float(image.float().min()) for image in thinned)
    high = max(float(image.float().max()) for image in thinned)
    if not math.isfinite(high - low) or high == low:
        return
    given = f'data_preprocessor has mean={node["mean"]} and std={node["std"]}'
    if images[0].is_floating_point() and (high - low) / min(std) < SMALLEST_RANGE:
        log_warning(
            f'{name}: the values of the images are {low:.3g} to {high:.3g} after the pipeline, but {given}, so that the'
            ' model gets almost constant images. Normalize and scale images only once: remove Normalize (or the step '
            'that scales to 0..1) from the pipelines, or set mean and std in the unit of these values'
        )
    elif max(std) < 1 and (high - low) / max(std) > LARGEST_RANGE:
        log_warning(
            f'{name}: the values of the images are {low:.3g} to {high:.3g} after the pipeline, but {given}, as for '
            'images of 0..1: multiply mean and std by 255'
        )


def preprocessor_of(cfg: Config) -> dict:
    """Return the config of the data preprocessor; empty if there is none."""
    return (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}


def packing_problems(cfg: Config, name: str, packed: Dict[int, Any], leaves: Sequence[Leaf]) -> List[str]:
    """Check that samples are packed for the model, those to train a segmentor or detector with their ground truth."""
    samples = [sample for sample in packed.values() if isinstance(sample, dict)]
    if samples and not any('inputs' in sample for sample in samples):
        return [
            f'samples have no inputs ({shorten(samples[0])}): end the pipeline with PackInputs, PackDetInputs or '
            'PackSegInputs'
        ]
    annotated = any(is_segmentation(leaf.dataset) or hasattr(leaf.dataset, 'proposal_file') for leaf in leaves)
    found: List[Any] = [sample.get('data_samples') for sample in samples]
    if name != 'train_dataloader' or not found or not all(isinstance(each, BaseDataElement) for each in found):
        return []
    if type_name(cfg.get('model') or {}) == 'ImageClassifier' and not annotated:
        if any('gt_label' in each or 'gt_score' in each for each in found):
            return []
        return ['no sample has a label: set with_label=True of the data set, or an ann_file with labels']
    if not annotated:
        return []
    truth = [value for each in found for key, value in each.items() if key.startswith('gt_')]
    if any(list(value.keys()) if isinstance(value, BaseDataElement) else True for value in truth):
        return []
    return ['no sample has annotations: add LoadAnnotations to the pipeline, behind LoadImageFromFile']


def size_problems(batches: Batches, samples: Sequence[dict]) -> List[str]:
    """Check that images of several sizes, as the pipeline returns them, can be in one batch."""
    first = samples[0]
    other = next((each for each in samples if each['inputs'].shape != first['inputs'].shape), None)
    if batches.batch_size == 1 or other is None:
        return []
    try:
        batches.make([first, other])
        return []
    except Exception as error:
        # Broad, because collation and preprocessing may be any code.
        kind, message, _ = origin(error)
    if not batches.can_make([first]) or not batches.can_make([other]):
        return []
    sizes = ' and '.join(str(tuple(each['inputs'].shape)) for each in (first, other))
    single = '' if batches.training else f'set {batches.name}.batch_size=1, or '
    return [
        f'images of different sizes ({sizes}) are in one batch (batch_size={batches.batch_size}), but the model needs '
        f'them in one size ({kind}: {message}): {single}let the pipeline resize or crop all images to the same size'
    ]


def report_padding(batches: Batches, samples: Sequence[dict]) -> None:
    """Report that the preprocessor pads images to more than twice their area.

    mmseg's losses are averages over all pixels, so they become smaller by the part that is padding.
    """
    largest = max((sample['inputs'] for sample in samples), key=lambda image: image.shape[-2] * image.shape[-1])
    sample = next(sample for sample in samples if sample['inputs'] is largest)
    try:
        padded = batches.make([sample])['inputs']
    except Exception:
        # Broad, because collation and preprocessing may be any code.
        return
    if not isinstance(padded, torch.Tensor):
        return
    (height, width), (bottom, right) = largest.shape[-2:], padded.shape[-2:]
    part = 1 - height * width / (bottom * right)
    if part > 0.5 and max(bottom - height, right - width) > SMALL_PADDING:
        log_warning(
            f'{batches.name}: the largest of {len(samples)} images is {width}x{height} (width x height) after the '
            f'pipeline and is padded to {right}x{bottom}, so {part:.0%} of a batch is padding: set '
            'model.data_preprocessor.size (or its batch_augments) to the size of the images, unless this is intended'
        )


def single_image_batch_problems(batches: Batches, samples: Sequence[dict]) -> List[str]:
    """Check that BatchNorm can train on the smallest batch of an epoch, if that is a single image.

    In such a batch, a map that is pooled to one position has one value per channel. A training step on a random image
    shows it. Detectors are not checked, because their BatchNorms get several positions or RoIs of an image.
    """
    cfg, size = batches.cfg, batches.batch_size
    if library_of(cfg) == 'mmdet' or batches.last != 1:
        return []
    if is_distributed(cfg) and any(type_name(node) == 'SyncBN' for node in walk(cfg.model)):
        return []  # it sees the images of all processes
    loop = cfg.get('train_cfg') or {}
    if size > 1 and not loop.get('max_epochs') and (loop.get('max_iters') or 0) < batches.batches:
        return []  # the run ends before
    side = min(max(samples[0]['inputs'].shape[-2:]), LARGEST_SIDE)
    try:
        try_step(cfg, [math.ceil(side / 32) * 32], images=1)
        return []
    except StepError as error:
        if ONE_VALUE not in str(error):
            return []
        part = error.part
    if size == 1:
        return [
            f'batch_size is 1, but BatchNorm in {part} gets one value per channel of a single image and cannot train: '
            f'set {batches.name}.batch_size to 2 or more'
        ]
    sampler = 'batch_sampler.' if batches.cfg[batches.name].get('batch_sampler') else ''
    return [
        f'{len(batches.loader.sampler)} samples in batches of {size} leave a last batch of one image, of which '
        f'BatchNorm in {part} gets one value per channel and cannot train: set '
        f'{batches.name}.{sampler}drop_last=True, or another batch_size'
    ]


def mask_problems(batches: Batches, samples: Sequence[dict]) -> List[str]:
    """Check that a detector gets what its heads learn: masks, and semantic segmentation maps."""
    model = batches.cfg.get('model') or {}
    if library_of(batches.cfg) != 'mmdet':
        return []
    heads = {
        f'{name}.{part}': node[part]
        for name, node in (('model', model), ('model.roi_head', model.get('roi_head')))
        for part in ('mask_head', 'panoptic_head', 'semantic_head')
        if isinstance(node, dict) and node.get(part)
    }
    of_maps = [name for name, head in heads.items() if name.endswith('.semantic_head') or learns_stuff(head)]
    of_masks = [name for name in heads if not name.endswith('.semantic_head')]
    try:
        made = batches.make(samples[:1])['data_samples'] if heads else []
    except Exception:
        # Broad, because collation and preprocessing may be any code.
        return []
    problems = []
    if of_masks and not all('masks' in sample.gt_instances for sample in made):
        problems.append(
            f'the model has a mask head ({of_masks[0]}), but the pipeline returns no masks: set '
            'LoadAnnotations(with_mask=True), and use steps that keep masks (CachedMosaic and CachedMixUp instead of '
            f'Mosaic and MixUp), or set {of_masks[0]}=None'
        )
    if of_maps and not all('gt_sem_seg' in sample for sample in made):
        problems.append(
            f'the model has a semantic head ({of_maps[0]}), but the pipeline returns no semantic segmentation map: set '
            "LoadAnnotations(with_seg=True) and the folder of the maps, data_prefix=dict(seg='...') of the data set"
            + WITHOUT_SEMANTIC_HEAD
            * of_maps[0].startswith('model.roi_head.')
        )
    return problems


def learns_stuff(head: Any) -> bool:
    """Check whether a panoptic head of mmdet learns classes that have no instances."""
    return isinstance(head, dict) and bool(head.get('num_stuff_classes'))


def segmentation_heads(model: dict) -> Iterator[Tuple[str, dict]]:
    """Yield dotted name and config of each head of a segmentor."""
    for key in ('decode_head', 'auxiliary_head'):
        node = model.get(key)
        if isinstance(node, dict):
            yield f'model.{key}', node
        elif isinstance(node, (list, tuple)):
            yield from ((f'model.{key}.{number}', each) for number, each in enumerate(node) if isinstance(each, dict))


def ignored_problems(batches: Batches, samples: Sequence[dict], leaves: Sequence[Leaf]) -> List[str]:
    """Check that heads of segmentors ignore every label of the data and of padding that is not a class."""
    if not any(is_segmentation(leaf.dataset) for leaf in leaves):
        return []
    loaded = set().union(*(leaf.labels for leaf in leaves))
    made: Optional[Set[int]] = None
    try:
        data_samples = batches.make(samples)['data_samples']
        made = {label for each in data_samples for label in each.gt_sem_seg.data.unique().tolist()}
    except Exception:
        # Broad, because collation and preprocessing may be any code, and samples need not have a map.
        made = set()
    padding = getattr(batches.preprocessor, 'seg_pad_val', None)
    problems = []
    for name, head in segmentation_heads(batches.cfg.get('model') or {}):
        number, ignored = head.get('num_classes'), head.get('ignore_index', IGNORED)
        if not isinstance(number, int):
            continue
        if (
            ignored in loaded | made
            and 0 <= ignored < number
            and not any(getattr(leaf.dataset, 'ignore_index', None) == ignored for leaf in leaves)
        ):
            log_warning(
                f'{name}.ignore_index is {ignored}, which is a class in the segmentation maps: the head does not learn '
                f'it. Set {name}.ignore_index={IGNORED}, unless this is intended'
            )
        wrong = {label for label in loaded | made if label >= number and label != ignored}
        if padding in wrong and padding not in loaded:
            wrong.remove(padding)
            problems.append(
                f'model.data_preprocessor pads segmentation maps with {padding}, but {name} ignores the label '
                f'{ignored}: set model.data_preprocessor.seg_pad_val={ignored}'
            )
        if wrong:
            advice = (
                f'set {name}.ignore_index={min(wrong)}, or correct the maps and the steps that pad them (seg_pad_val)'
            )
            if len(wrong) > 1:
                advice = 'correct the maps and the steps that pad (seg_pad_val) or interpolate them (RandomRotFlip)'
            problems.append(
                f'segmentation maps contain the labels {shorten(sorted(wrong))} after the pipeline, but {name} has '
                f'{number} classes (0 to {number - 1}) and ignores the label {ignored}: '
                f'{advice}'
            )
    return problems
