"""Predicting many images and writing the results, with the model and test pipeline used for evaluation.

The images are divided into shards that do not depend on the number of processes. Each process predicts some shards and
writes each to a file; the first process merges them at the end. An interrupted run continues after its last shard.
"""

import hashlib
import json
import os
import os.path as osp
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import autocast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..checkpoints import check_fits, weights_of
from ..dependencies import MissingPackageError
from ..engine.config import adapt_to_machine, enable_tta, task_of, type_name, walk
from ..engine.distributed import lost_process, rendezvous_env
from ..errors import library_errors
from ..files import remove_temporaries, write_atomic
from ..images import ImageError, ImageReader, swap_channels
from ..inference import optimize_for_inference
from ..options import TABLES, check_device, check_fraction
from .draw import draw_classes, draw_sample
from .inputs import Work, find_work
from .load import NetworkError, build_model, check_channels, image_reader, input_channels, read_trained, split_pipeline
from .results import (
    Classes,
    Coco,
    Detections,
    LabelMaps,
    Meta,
    Parts,
    PredictionError,
    Record,
    coco_ids,
    meta_of,
)
from .tiles import merge, stitch, tile_boxes

#: About so many images are a part: so many are predicted again after a process was killed.
PART = 64
#: Where a run's settings stand, so that another one does not continue it.
RUN = 'run.json'
#: Options that results do not depend on: another run may continue with other values.
HOW_TO_RUN = ('batch_size', 'workers', 'device', 'launcher')
#: Options of one task alone.
OF_TASK = dict(
    score_thr='detection', draw_score_thr='detection', coco='detection', top='classification', table='classification'
)
#: Options that have no effect without another one.
WITHOUT_EFFECT = dict(overlap='tile', draw_score_thr='draw')
#: What to try where a library fails and its error tells nothing better.
ADVICE = 'Check the config, and that the images are of its kind'
#: Seconds between two lines of progress where no terminal shows a bar.
PROGRESS_SECONDS = 10.0
#: Processes wait so long for the slowest one; the end of one is noticed at once.
WAIT = timedelta(days=14)
Result = TypeVar('Result')


class Options(NamedTuple):
    """Options of a prediction run.

    Attributes:
        batch_size (int): Maximum number of images, or tiles, per forward pass.
        workers (int): Number of processes that read images; may be 0.
        amp (bool): Mixed precision.
        optimize (bool): Predict with the model after :func:`~fcvit_mm.optimize_for_inference`.
        tta (bool): Test-time augmentation as defined in the config.
        tile (int, optional): Side of the tiles in pixels; ``None``: predict complete images.
        overlap (float): Overlap of neighbouring tiles, as a fraction of their size.
        score_thr (float): Minimum detection score to write.
        top (int): Number of classes written per image, for classification; 0 for all.
        table (str): File format of classification results: ``'csv'`` or ``'parquet'``.
        coco (str, optional): COCO file with the image and category ids, for detection.
        features (bool): Also write the backbone's last output, averaged over its positions.
        draw (bool): Also write images with the predictions drawn on them.
        draw_score_thr (float): Minimum detection score to draw.
        device (str, optional): Default: a GPU if there is one.
        launcher (str): Launcher that started the processes.
    """

    batch_size: int = 1
    workers: int = 2
    amp: bool = False
    optimize: bool = False
    tta: bool = False
    tile: Optional[int] = None
    overlap: float = 0.2
    score_thr: float = 0.0
    top: int = 5
    table: str = 'csv'
    coco: Optional[str] = None
    features: bool = False
    draw: bool = False
    draw_score_thr: float = 0.3
    device: Optional[str] = None
    launcher: str = 'none'


class Summary(NamedTuple):
    """The outcome of a run.

    Attributes:
        images (int): Number of images; frames of videos count as images.
        skipped (int): Number of images that are corrupt, missing, or not accepted by the model.
        written (list[str]): Paths of the results.
        resumed (int): Number of images predicted by an earlier run.
        first (bool): Whether this process merged the results.
    """

    images: int
    skipped: int
    written: List[str]
    resumed: int
    first: bool


class Loaded(NamedTuple):
    """An image loaded by a worker.

    Attributes:
        number (int): Index in :class:`Work`.
        size (tuple[int, int]): Height and width.
        data (dict, optional): Output of the pipeline; ``None`` for a skipped image, or if tiles are predicted.
        pixels (np.ndarray, optional): The image, if needed for drawing or tiles.
        problem (str): Reason why the image is skipped.
    """

    number: int
    size: Tuple[int, int] = (0, 0)
    data: Optional[Dict[str, Any]] = None
    pixels: Optional[np.ndarray] = None
    problem: str = ''


class _Images(Dataset):
    """Reads images as training does, and prepares them by the test pipeline."""

    def __init__(
        self, work: Work, reader: ImageReader, pipeline: Compose, channels: int, tiled: bool, keep: bool
    ) -> None:
        self.work, self.reader, self.pipeline, self.channels = work, reader, pipeline, channels
        self.tiled, self.keep = tiled, keep
        self.video: Tuple[str, Any, int] = ('', None, 0)

    def __getitem__(self, number: int) -> Loaded:
        path, frame = self.work[number]
        try:
            pixels = self.reader(path) if frame is None else self._frame(path, frame)
            check_channels(pixels, self.channels, path)
            data = None if self.tiled else prepare(self.pipeline, pixels, self.work.name(number), number)
        except (ImageError, NetworkError) as error:
            return Loaded(number, problem=str(error))
        size = (pixels.shape[0], pixels.shape[1])
        return Loaded(number, size, data, pixels if self.keep or self.tiled else None)

    def _frame(self, path: str, frame: int) -> np.ndarray:
        """Decode a frame; frames are requested in order, and those between are skipped."""
        import cv2

        opened, video, position = self.video
        if opened != path or position > frame:
            video, position = cv2.VideoCapture(path), 0
        while position < frame and video.grab():
            position += 1
        found, image = video.read()
        self.video = (path, video, position + 1)
        if not found:
            raise ImageError(f'{path}: frame {frame} cannot be decoded')
        return self.reader.convert(swap_channels(image))


def prepare(pipeline: Compose, pixels: np.ndarray, name: str, number: int) -> Dict[str, Any]:
    """Preprocess a loaded image with the test pipeline.

    Args:
        pipeline (Compose): Without the steps that load.
        pixels (np.ndarray): As :class:`~fcvit_mm.images.ImageReader` reads it.
        name (str): What the sample is called.
        number (int): Its id.

    Returns:
        dict: ``inputs`` and ``data_samples``.

    Raises:
        ImageError: A step fails on this image, for example because it would be resized to a height of 0.
    """
    shape = pixels.shape[:2]
    sample = dict(
        img=swap_channels(pixels), img_shape=shape, ori_shape=shape, img_path=name, img_id=number, sample_idx=number
    )
    try:
        prepared = pipeline(sample)
        if prepared is None:
            raise ValueError('a step returns nothing')
        return prepared
    except Exception as error:
        # Broad, because steps fail in any way there is.
        raise ImageError(
            f'{name} ({shape[1]}x{shape[0]} pixels) cannot be prepared by the test pipeline ({type(error).__name__}: '
            f'{str(error).strip()}): check the test pipeline of the config, or remove this image from the input'
        ) from error


def _without_annotations(steps: Any) -> Any:
    """Return the steps that do not load: images are loaded before, and there are no annotations."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            inner = _without_annotations(step)
            if inner:
                kept.append(inner)
        elif isinstance(step, dict) and 'transforms' in step:
            kept.append(ConfigDict(step, transforms=_without_annotations(step['transforms'])))
        elif not type_name(step).startswith('Load'):
            kept.append(step)
    return kept


class BatchPredictor:
    """A trained model that predicts images with the test step of its library.

    Args:
        cfg (Config): From :func:`~fcvit_mm.engine.config.load_config`; it is changed.
        checkpoint (str): A checkpoint trained with this config.
        options (Options): Options of the run.

    Raises:
        ConfigError, CheckpointError: The config or the checkpoint cannot be used.
        PredictionError: The options cannot be combined.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: Options) -> None:
        self.task, self.options = task_of(cfg), options
        self.scope, self.file = cfg.default_scope, cfg.filename
        check_options(options, self.task)
        adapt_to_machine(cfg)
        if not (cfg.get('test_dataloader') or {}).get('dataset'):
            raise PredictionError(
                f'{cfg.filename} has no test_dataloader, whose pipeline prepares the images: add one to the config'
            )
        content = read_trained(checkpoint)
        model = build_model(cfg)
        check_fits(model, checkpoint)
        model.load_state_dict(weights_of(content), strict=False)
        self.meta: Meta = meta_of(cfg, content)
        self.classes = max([int(n) for n in _numbers_of_classes(cfg.model)] or [len(self.meta.names)])
        self.channels = input_channels(model, cfg)
        self.reader = image_reader(cfg)
        self._weights = _hash_of(model)
        self.device = torch.device(options.device or _default_device())
        if options.optimize:
            try:
                model = optimize_for_inference(model.to(self.device))
            except ValueError as error:
                raise PredictionError(f'--optimize: {error}. Omit --optimize') from error
        self.network = model
        if options.tta:
            enable_tta(cfg)
            wrapper = {key: value for key, value in cfg.model.items() if key != 'module'}
            with DefaultScope.overwrite_default_scope(self.scope):
                model = MODELS.build(ConfigDict(wrapper, module=model))
        steps = split_pipeline(cfg)
        self.steps = _without_annotations([*(steps.geometry or []), *steps.packing])
        with DefaultScope.overwrite_default_scope(self.scope):
            self.pipeline = Compose(self.steps)
        self.described = repr((self.steps, cfg.model, self.meta))
        self.model: Any = model.to(self.device).eval()
        self._features: List[Tensor] = []
        if options.features:
            backbone: Any = self.network.backbone
            backbone.register_forward_hook(self._keep_features)

    def _keep_features(self, module: nn.Module, inputs: Any, output: Any) -> None:
        last = output[-1] if isinstance(output, (tuple, list)) else output
        axes = {4: (2, 3), 3: (1,)}.get(last.ndim)
        self._features = list((last if axes is None else last.mean(axes)).float().cpu())

    def fingerprint(self) -> Dict[str, str]:
        """Return a fingerprint of the model and its use, which distinguishes results of different models."""
        return {'weights': self._weights, 'config': hashlib.sha256(self.described.encode()).hexdigest()}

    def _predict(self, data: Sequence[Dict[str, Any]], names: Sequence[str]) -> List[Any]:
        """Predict prepared images, those of equal size together.

        Others cannot share a batch: mmseg refuses them, and padding, as in the other libraries, changes predictions.

        Args:
            data (Sequence[dict]): From :func:`prepare`.
            names (Sequence[str]): What the images are called, for messages.

        Returns:
            list[BaseDataElement]: In the order of ``data``.

        Raises:
            LibraryError: The model fails; names the images.
        """
        groups: Dict[Any, List[int]] = {}
        for index, each in enumerate(data):
            groups.setdefault(_sizes(each['inputs']), []).append(index)
        order: List[int] = []
        samples: List[Any] = []
        features: List[Tensor] = []
        for group in groups.values():
            order += group
            with library_errors(f'predicting {_some([names[index] for index in group])} with {self.file}', ADVICE):
                samples += self._step([data[index] for index in group])
            features += self._features
        places = np.argsort(order).tolist()
        self._features = [features[place] for place in places] if features else []
        return [samples[place] for place in places]

    def _step(self, data: List[Dict[str, Any]]) -> List[Any]:
        precision: ContextManager[Any] = autocast(device_type=self.device.type) if self.options.amp else nullcontext()
        with torch.no_grad(), precision, DefaultScope.overwrite_default_scope(self.scope):
            return [sample.cpu() for sample in self.model.test_step(pseudo_collate(data))]

    def __call__(self, batch: Sequence[Loaded], names: Sequence[str]) -> List[Any]:
        """Predict images.

        Args:
            batch (Sequence[Loaded]): Images that are not skipped.
            names (Sequence[str]): Their names.

        Returns:
            list[BaseDataElement]: A data sample of the library for each.
        """
        if self.options.tile is None:
            return self._predict([loaded.data for loaded in batch if loaded.data is not None], names)
        return [self._predict_tiles(loaded, name) for loaded, name in zip(batch, names)]

    def features(self) -> List[np.ndarray]:
        """Return the features of the images predicted last, ``(channels,)`` float32 each."""
        return [each.numpy() for each in self._features]

    def _predict_tiles(self, loaded: Loaded, name: str) -> Any:
        assert loaded.pixels is not None
        boxes = tile_boxes(loaded.size, self.options.tile or 0, self.options.overlap)
        samples: List[Any] = []
        for start in range(0, len(boxes), self.options.batch_size):
            data = [
                prepare(self.pipeline, loaded.pixels[top:bottom, left:right], name, loaded.number)
                for left, top, right, bottom in boxes[start : start + self.options.batch_size]
            ]
            samples += [self._reduced(sample) for sample in self._predict(data, [name] * len(data))]
        if self.task == 'segmentation':
            return stitch(samples, boxes, loaded.size)
        return merge(samples, boxes, loaded.size)

    def _reduced(self, sample: Any) -> Any:
        """Reduce the prediction of a tile to what is used: no per-pixel scores, and encoded masks."""
        if self.task == 'segmentation':
            labels = sample.pred_sem_seg.data
            # Memory: one byte a pixel, where 256 classes are enough.
            sample.pred_sem_seg.data = labels.to(torch.uint8 if self.classes <= 256 else torch.int32)
            for key in ('seg_logits', 'i_seg_logits'):
                sample.pop(key, None)
        elif 'masks' in sample.pred_instances:
            from mmdet.structures.mask import encode_mask_results

            masks = sample.pred_instances.pop('masks')
            sample.pred_instances.masks = encode_mask_results([np.asarray(mask) for mask in masks])
        return sample


def _sizes(inputs: Any) -> Any:
    """Return the shape of a prepared image, or those of its augmentations."""
    return tuple(map(_sizes, inputs)) if isinstance(inputs, (list, tuple)) else tuple(inputs.shape)


def _some(names: Sequence[str]) -> str:
    """Return the first of these names, and how many more there are."""
    names = list(dict.fromkeys(names))
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _hash_of(model: torch.nn.Module) -> str:
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def _default_device() -> str:
    device = get_device()
    return f'{device}:{int(os.environ.get("LOCAL_RANK", 0))}' if device != 'cpu' and dist.is_initialized() else device


def _numbers_of_classes(model: Any) -> Iterator[int]:
    """Yield the number of classes of each head of a model, except region proposal networks."""
    for name, head in model.items():
        if name not in ('rpn_head', 'auxiliary_head', 'train_cfg', 'test_cfg', 'backbone'):
            for node in walk(head):
                if isinstance(node.get('num_classes'), int):
                    yield node['num_classes']


def check_options(options: Options, task: str) -> None:
    """Reject options that cannot be used or combined, before anything is loaded.

    Raises:
        UserError: Names the options and the way out.
        MissingPackageError: They need a package that is not installed.
    """
    for name, owner in OF_TASK.items():
        if _is_set(options, name) and task != owner:
            raise PredictionError(f'{_option(name)} is for {owner}, but the config is for {task}: omit {_option(name)}')
    for name, other in WITHOUT_EFFECT.items():
        if _is_set(options, name) and not _is_set(options, other):
            raise PredictionError(
                f'{_option(name)} has no effect without {_option(other)}: add {_option(other)}, or omit {_option(name)}'
            )
    if options.batch_size < 1 or options.workers < 0:
        raise PredictionError(
            f'--batch-size {options.batch_size} --workers {options.workers}: expected a batch size of at least 1 and '
            'at least 0 workers'
        )
    if options.top < 0:
        raise PredictionError(f'--top {options.top}: expected a number of classes, or 0 for all')
    check_fraction('--score-thr', options.score_thr)
    check_fraction('--draw-score-thr', options.draw_score_thr)
    check_device(options.device)
    if options.tile is not None:
        if task == 'classification':
            raise PredictionError(
                '--tile: a classifier makes one prediction per image: cut the images first, or omit --tile'
            )
        if options.tile < 32 or not 0 <= options.overlap < 1:
            raise PredictionError(
                f'--tile {options.tile} --overlap {options.overlap}: expected a tile of at least 32 pixels and an '
                'overlap from 0 to below 1'
            )
        if options.features or options.tta:
            raise PredictionError('--tile cannot be combined with --features or --tta: omit one of them')
        _require('sahi', '--tile')
    if options.features and options.tta:
        raise PredictionError(
            '--features cannot be combined with --tta, which runs the backbone several times: omit one of them'
        )
    if options.table not in TABLES:
        raise PredictionError(f'--format {options.table}: expected one of {", ".join(TABLES)}')
    if options.table == 'parquet':
        _require('pyarrow', '--format parquet')


def _is_set(options: Options, name: str) -> bool:
    return getattr(options, name) != Options._field_defaults[name]


def _option(name: str) -> str:
    """Return the name of an option of the command."""
    return '--format' if name == 'table' else f'--{name.replace("_", "-")}'


def _require(package: str, option: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise MissingPackageError(f"{option} needs {package}: pip install 'fcvit_mm[predict]'") from error


def build_drawing(predictor: BatchPredictor) -> Callable[[np.ndarray, Any], np.ndarray]:
    """Build a function that draws a prediction: ``draw(pixels, sample)``, RGB, ``(H, W, 3)`` uint8."""
    meta, scope = predictor.meta, predictor.scope
    visualizer: Any
    options: Dict[str, Any] = {}
    if predictor.task == 'classification':
        from mmpretrain.visualization import UniversalVisualizer

        visualizer = UniversalVisualizer()
    elif predictor.task == 'detection':
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer()
        options['pred_score_thr'] = predictor.options.draw_score_thr
    else:
        from mmseg.visualization import SegLocalVisualizer

        visualizer = SegLocalVisualizer(alpha=0.5)
    if predictor.task != 'classification':
        names = meta.names or tuple(map(str, range(predictor.classes)))
        palette = [tuple(color) for color in LabelMaps('', meta, predictor.classes, str).palette.tolist()]
        palette = (palette * (1 + len(names) // len(palette)))[: len(names)]
        visualizer.dataset_meta = dict(classes=names, palette=palette)

    def draw(pixels: np.ndarray, sample: Any) -> np.ndarray:
        with DefaultScope.overwrite_default_scope(scope):
            if predictor.task == 'classification':
                return draw_classes(visualizer, pixels, sample, meta.names or None)
            if 'masks' in sample.get('pred_instances', {}) and isinstance(sample.pred_instances.masks, list):
                from pycocotools import mask as coder

                sample = sample.clone()
                encoded = sample.pred_instances.pop('masks')
                masks = [coder.decode(each) for each in encoded] or [np.zeros((0, *pixels.shape[:2]), np.uint8)]
                sample.pred_instances.masks = torch.from_numpy(np.stack(masks).astype(bool)) if encoded else masks[0]
            return draw_sample(visualizer, pixels, sample, **options)

    return draw


def predict(
    cfg: Config, checkpoint: str, inputs: Sequence[str], out: str, options: Optional[Options] = None
) -> Summary:
    """Predict images and write the results to files.

    Args:
        cfg (Config): A config of any of the three tasks, from :func:`~fcvit_mm.engine.config.load_config`; it is
            changed.
        checkpoint (str): A checkpoint trained with this config, or ``published:NAME``.
        inputs (Sequence[str]): See :func:`find_work`.
        out (str): Folder for the results. An earlier run with the same settings is continued.
        options (Options): Options of the run.

    Returns:
        Summary: The outcome of the run.

    Raises:
        UserError: An argument cannot be used; nothing was written.
    """
    options = options or Options()
    check_options(options, task_of(cfg))
    with library_errors(f'predicting with {cfg.filename}', ADVICE), _joined(options.launcher):
        return _predict(cfg, checkpoint, inputs, out, options)


def _predict(cfg: Config, checkpoint: str, inputs: Sequence[str], out: str, options: Options) -> Summary:
    first = not dist.is_initialized() or dist.get_rank() == 0
    predictor = BatchPredictor(cfg, checkpoint, options)

    def plan() -> Tuple[Work, Coco, Parts, List[int]]:
        work = find_work(inputs)
        _check_folder(work.folders, out)
        coco = coco_ids(options.coco, predictor.meta)
        for number in range(len(work)) if options.coco else ():
            coco.image_id(number, work.name(number))
        parts = Parts(out, _claim(out, _settings(predictor, work, options), _part_size(options)), len(work))
        if json_of(osp.join(out, RUN)).get('complete', False):
            parts.remove()  # by a run that was killed before it did
        return work, coco, parts, parts.missing()

    work, coco, parts, missing = _from_first(plan)
    done = json_of(osp.join(out, RUN)).get('complete', False)
    writer: Any
    if predictor.task == 'classification':
        writer = Classes(out, predictor.meta, options.top, options.table)
    elif predictor.task == 'detection':
        writer = Detections(out, predictor.meta, predictor.classes, coco, options.score_thr)
    else:
        writer = LabelMaps(out, predictor.meta, predictor.classes, work.file_name)
    if done:
        return Summary(len(work), 0, [], len(work), first)
    resumed = len(work) - sum(len(parts.numbers(part)) for part in missing)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _predict_parts(predictor, work, coco, parts, missing[rank::world], writer, out, first)

    def finish() -> Tuple[int, List[str]]:
        missing = parts.missing()
        if missing:
            raise PredictionError(
                f'{out} lacks {len(missing)} shards that other processes wrote: --out must be the same folder for all '
                'processes, on a file system shared by all nodes'
            )
        skipped, path = parts.finish_skipped()
        written = [] if path is None else [path]
        if skipped == len(work):
            reason = next(iter(parts.records()))['skipped']
            parts.remove()
            raise PredictionError(f'all {skipped} images were skipped; first reason: {reason}')
        written = [*writer.finish(parts.records), *(parts.finish_features() if options.features else []), *written]
        if options.draw:
            written.append(osp.join(out, 'drawn'))
        _write_run(out, dict(json_of(osp.join(out, RUN)), complete=True))
        parts.remove()
        return skipped, written

    if dist.is_initialized():
        dist.barrier()
    skipped, written = _from_first(finish)
    return Summary(len(work), skipped, written, resumed, first)


def _predict_parts(
    predictor: BatchPredictor,
    work: Work,
    coco: Coco,
    parts: Parts,
    mine: Sequence[int],
    writer: Any,
    out: str,
    shown: bool,
) -> None:
    """Predict the images of some shards, and write each shard as soon as it is complete."""
    options = predictor.options
    size = options.batch_size if options.tile is None else 1
    batches = [
        list(parts.numbers(part)[start : start + size])
        for part in mine
        for start in range(0, len(parts.numbers(part)), size)
    ]
    images = _Images(
        work, predictor.reader, predictor.pipeline, predictor.channels, options.tile is not None, options.draw
    )
    draw = build_drawing(predictor) if options.draw else None
    workers = min(options.workers, len(batches))
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_begin_worker if workers else None,
    )
    records: List[Record] = []
    features: List[np.ndarray] = []
    with _progress(sum(map(len, batches)), shown) as advance:
        for batch in loader:
            usable = [loaded for loaded in batch if not loaded.problem]
            samples = iter(predictor(usable, [work.name(each.number) for each in usable]) if usable else [])
            features += predictor.features() if usable else []
            for loaded in batch:
                name = work.name(loaded.number)
                if loaded.problem:
                    records.append(dict(name=name, skipped=loaded.problem))
                    continue
                sample = next(samples)
                records.append(
                    dict(
                        id=coco.image_id(loaded.number, name),
                        name=name,
                        width=loaded.size[1],
                        height=loaded.size[0],
                        found=writer.found(sample, name),
                    )
                )
                if draw is not None:
                    with library_errors(f'drawing the predictions of {name}', 'Omit --draw, or remove this image'):
                        drawn = draw(loaded.pixels, sample)
                    _write_drawn(osp.join(out, 'drawn', f'{work.file_name(name)}.png'), drawn)
            part = batch[-1].number // parts.size
            if batch[-1].number == parts.numbers(part)[-1]:
                parts.write(part, records, features)
                records, features = [], []
            advance(len(batch))


def _begin_worker(number: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers share the cores


def _write_drawn(path: str, drawn: np.ndarray) -> None:
    import cv2

    write_atomic(path, cv2.imencode('.png', swap_channels(drawn))[1].tobytes())


def _part_size(options: Options) -> int:
    """Return the number of images per shard; batches do not depend on the number of processes."""
    return options.batch_size * max(1, PART // options.batch_size) if options.tile is None else 1


def _check_folder(searched: Sequence[str], out: str) -> None:
    """Reject a folder for results that is a file, or inside a folder searched for images."""
    if osp.exists(out) and not osp.isdir(out):
        raise PredictionError(f'--out {out} is a file: give a folder')
    folder = osp.realpath(out)
    for given in searched:
        if (folder + os.sep).startswith(osp.realpath(given) + os.sep):
            raise PredictionError(
                f'--out {out} is inside {given}, whose images are predicted, so the results would be read as input '
                'images: give another folder'
            )


def _settings(predictor: BatchPredictor, work: Work, options: Options) -> Dict[str, Any]:
    """Return the settings that results depend on; the batch size is none of them."""
    images = hashlib.sha256()
    for path in work.paths:
        images.update(f'{osp.abspath(path)}\n{work.frames.get(path, 1)}\n'.encode(errors='surrogateescape'))
    kept = {key: value for key, value in options._asdict().items() if key not in HOW_TO_RUN}
    return dict(kept, **predictor.fingerprint(), images=f'{len(work)} ({images.hexdigest()})')


def json_of(path: str) -> Dict[str, Any]:
    """Read the settings of a run; empty without a file.

    Raises:
        PredictionError: The file was not written by this command.
    """
    if not osp.exists(path):
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('no settings')
        return content
    except ValueError as error:
        raise PredictionError(f'{path} was not written by this command ({error}): give another folder') from error


def _claim(out: str, settings: Dict[str, Any], shard_size: int) -> int:
    """Write the settings of a run to its results folder, or compare them with those stored there.

    Temporary files of an earlier run that was killed are removed.

    Args:
        out (str): Folder of the results.
        settings (dict): From :func:`_settings`.
        shard_size (int): Number of images per shard, for a new run.

    Returns:
        int: Number of images per shard; an earlier run that is continued keeps its own.

    Raises:
        PredictionError: The folder contains the results of another run.
    """
    settings = json.loads(json.dumps(settings))
    found = json_of(osp.join(out, RUN))
    if not found:
        _write_run(out, dict(settings, shard_size=shard_size, complete=False))
        return shard_size
    differ = [key for key in settings if found.get(key) != settings[key]]
    if not isinstance(found.get('shard_size'), int):
        differ.append('shard_size')
    if differ:
        raise PredictionError(
            f'--out {out} contains results of another run, with different {", ".join(differ)}: give another folder, '
            'or delete this one'
        )
    remove_temporaries(out, recursive=True)
    return found['shard_size']


def _write_run(out: str, settings: Dict[str, Any]) -> None:
    write_atomic(osp.join(out, RUN), (json.dumps(settings, indent=1) + '\n').encode())


def _from_first(action: Callable[[], Result]) -> Result:
    """Run an action in the first process and return its result to all; an error ends all processes."""
    if not dist.is_initialized():
        return action()
    outcome: List[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
            dist.broadcast_object_list([None, str(error)])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise PredictionError(f'the first process stopped: {outcome[1]}')
    return outcome[0]


@contextmanager
def _joined(launcher: str) -> Iterator[None]:
    """Join the processes started by a launcher. They exchange little, so gloo suffices on GPUs, too."""
    if launcher == 'none':
        yield
        return
    os.environ.update(rendezvous_env(launcher, dict(os.environ)))
    with library_errors('joining the processes', 'Check MASTER_ADDR, the port and the number of processes'):
        dist.init_process_group('gloo', timeout=WAIT)
    try:
        yield
    except RuntimeError as error:
        if lost_process(error):
            raise PredictionError(
                f'process {dist.get_rank()} lost the connection to another process, which ended, was killed or is '
                f'unreachable ({str(error).strip().splitlines()[0]}): see the output of that process for the reason. '
                'Run the same command again to continue with the remaining images'
            ) from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show the progress, speed and remaining time of this process; in a terminal as a bar."""
    if not shown or not total:
        yield lambda number: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task('', total=total, rate='')
            begin, done = time.monotonic(), 0

            def advance_bar(number: int) -> None:
                nonlocal done
                done += number
                progress.update(task, advance=number, rate=_rate(done, time.monotonic() - begin))

            yield advance_bar
    else:
        begin, done, last = time.monotonic(), 0, time.monotonic()

        def advance(number: int) -> None:
            nonlocal done, last
            done += number
            now = time.monotonic()
            if now - last >= PROGRESS_SECONDS or done == total:
                last = now
                left = timedelta(seconds=round((total - done) * (now - begin) / done))
                print(f'{done} of {total} images, {_rate(done, now - begin)}, {left} left', flush=True)

        yield advance


def _rate(done: int, seconds: float) -> str:
    return f'{done / max(seconds, 1e-9):.1f} images a second'
