"""Predictions of many images as data, by the model and the test pipeline that the library itself evaluates with.

The images are divided into parts, the same whatever the number of processes. Each process predicts its share of the
parts and writes each as a file; the first one merges them at the end. What was killed continues behind its last part.
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
from ..files import write_atomic
from ..images import ImageError, ImageReader, swap_channels
from ..models import optimize_for_inference
from ..options import TABLES
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
#: Seconds between two lines of progress where no terminal shows a bar.
PROGRESS_SECONDS = 10.0
#: Processes wait so long for the slowest one; the end of one is noticed at once.
WAIT = timedelta(days=14)
Result = TypeVar('Result')


class Options(NamedTuple):
    """How images are predicted, and what is written.

    Attributes:
        batch_size (int): Images, or tiles, that the model gets at a time.
        workers (int): Processes that read images; 0 for none.
        amp (bool): Mixed precision.
        optimize (bool): Predict with what :func:`~fcvit_mm.optimize_for_inference` makes of the model.
        tta (bool): Test-time augmentation as the config describes it.
        tile (int, optional): Predict tiles of so many pixels, high and wide, in place of the image.
        overlap (float): Of neighbouring tiles, as a part of their size.
        score_thr (float): Detection: least score of what is written.
        top (int): Classification: how many classes are written; 0 for all.
        table (str): Classification: ``'csv'`` or ``'parquet'``.
        coco (str, optional): Detection: annotations whose ids results get.
        features (bool): Also write the backbone's last output, averaged over its positions.
        draw (bool): Also write drawn images.
        draw_score_thr (float): Detection: least score of what is drawn.
        device (str, optional): Default: a GPU if there is one.
        launcher (str): What started the processes.
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
        images (int): All of them; a video's frames count as images.
        skipped (int): That are corrupt, missing, or not what the model takes.
        written (list[str]): Paths of the results.
        resumed (int): Images that an earlier run had predicted.
        first (bool): Whether this process merged the results.
    """

    images: int
    skipped: int
    written: List[str]
    resumed: int
    first: bool


class Loaded(NamedTuple):
    """An image as a worker hands it over.

    Attributes:
        number (int): In :class:`Work`.
        size (tuple[int, int]): Height and width.
        data (dict, optional): As the pipeline packs it; ``None`` for a skipped image, or where tiles are predicted.
        pixels (np.ndarray, optional): Where they are needed, to draw on or to cut tiles from.
        problem (str): Why the image is skipped.
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
        except (ImageError, NetworkError) as error:
            return Loaded(number, problem=str(error))
        size = (pixels.shape[0], pixels.shape[1])
        data = None if self.tiled else prepare(self.pipeline, pixels, self.work.name(number), number)
        return Loaded(number, size, data, pixels if self.keep or self.tiled else None)

    def _frame(self, path: str, frame: int) -> np.ndarray:
        """Decode a frame; frames are asked for in their order, so that those between are skipped."""
        import cv2

        opened, video, position = self.video
        if opened != path or position > frame:
            video, position = cv2.VideoCapture(path), 0
        while position < frame and video.grab():
            position += 1
        found, image = video.read()
        self.video = (path, video, position + 1)
        if not found:
            raise ImageError(f'{path}: frame {frame} does not decode')
        return self.reader.convert(swap_channels(image))


def prepare(pipeline: Compose, pixels: np.ndarray, name: str, number: int) -> Dict[str, Any]:
    """Prepare an image that was read, as the test pipeline does.

    Args:
        pipeline (Compose): Without the steps that load.
        pixels (np.ndarray): As :class:`~fcvit_mm.images.ImageReader` reads it.
        name (str): What the sample is called.
        number (int): Its id.

    Returns:
        dict: ``inputs`` and ``data_samples``.
    """
    shape = pixels.shape[:2]
    return pipeline(
        dict(
            img=swap_channels(pixels), img_shape=shape, ori_shape=shape, img_path=name, img_id=number, sample_idx=number
        )
    )


def _without_annotations(steps: Any) -> Any:
    """Return steps without those that load: images are loaded before, and annotations there are none."""
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
    """A trained model that predicts images by its library's own test step.

    Args:
        cfg (Config): From :func:`~fcvit_mm.engine.config.load_config`; it is changed.
        checkpoint (str): One that was trained with it.
        options (Options): How.

    Raises:
        ConfigError, CheckpointError: The config or the checkpoint cannot be used.
        PredictionError: The options do not go together.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: Options) -> None:
        self.task, self.options = task_of(cfg), options
        self.scope = cfg.default_scope
        check_options(options, self.task)
        adapt_to_machine(cfg)
        if not (cfg.get('test_dataloader') or {}).get('dataset'):
            raise PredictionError(f'{cfg.filename} has no test_dataloader, whose pipeline says how images are prepared')
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
                raise PredictionError(f'--optimize: {error}: leave it out') from error
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
        """Return what stands for the model and how it is used, so that results of two are told apart."""
        return {'weights': self._weights, 'config': hashlib.sha256(self.described.encode()).hexdigest()}

    def _step(self, data: List[Dict[str, Any]]) -> List[Any]:
        precision: ContextManager[Any] = autocast(device_type=self.device.type) if self.options.amp else nullcontext()
        with torch.no_grad(), precision, DefaultScope.overwrite_default_scope(self.scope):
            return [sample.cpu() for sample in self.model.test_step(pseudo_collate(data))]

    def __call__(self, batch: Sequence[Loaded], names: Sequence[str]) -> List[Any]:
        """Predict images.

        Args:
            batch (Sequence[Loaded]): None of them skipped.
            names (Sequence[str]): Theirs.

        Returns:
            list[BaseDataElement]: A data sample of the library for each.
        """
        if self.options.tile is None:
            return self._step([loaded.data for loaded in batch if loaded.data is not None])
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
            samples += [self._reduced(sample) for sample in self._step(data)]
        if self.task == 'segmentation':
            return stitch(samples, boxes, loaded.size)
        return merge(samples, boxes, loaded.size)

    def _reduced(self, sample: Any) -> Any:
        """Keep of a tile's prediction what is used of it: no scores of each pixel, and masks encoded."""
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
    """Yield the numbers of classes that a model's heads have, but for those of a region proposal network."""
    for name, head in model.items():
        if name not in ('rpn_head', 'auxiliary_head', 'train_cfg', 'test_cfg', 'backbone'):
            for node in walk(head):
                if isinstance(node.get('num_classes'), int):
                    yield node['num_classes']


def check_options(options: Options, task: str) -> None:
    """Refuse options that do not go together, before anything is loaded.

    Raises:
        PredictionError: Says which, and what to do.
        MissingPackageError: They need a package that is not installed.
    """
    if options.batch_size < 1 or options.workers < 0:
        raise PredictionError(
            f'--batch-size {options.batch_size} --workers {options.workers}: expected at least 1 and at least 0'
        )
    if options.tile is not None:
        if task == 'classification':
            raise PredictionError('--tile: a classifier says one thing of an image; cut it before, or leave --tile out')
        if options.tile < 32 or not 0 <= options.overlap < 1:
            raise PredictionError(
                f'--tile {options.tile} --overlap {options.overlap}: expected at least 32 pixels, and from 0 to below 1'
            )
        if options.features or options.tta:
            raise PredictionError('--tile with --features or --tta: leave one of them out')
        _require('sahi', '--tile')
    if options.features and options.tta:
        raise PredictionError('--features with --tta, which runs the backbone several times: leave one of them out')
    if options.table not in TABLES:
        raise PredictionError(f'--format {options.table}: expected one of {", ".join(TABLES)}')
    if options.table == 'parquet' and task == 'classification':
        _require('pyarrow', '--format parquet')
    if options.coco and task != 'detection':
        raise PredictionError(f'--coco is for detection, the config is for {task}: leave it out')


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
    """Predict images and write what was found as data.

    Args:
        cfg (Config): Of any of the three tasks, from :func:`~fcvit_mm.engine.config.load_config`; it is changed.
        checkpoint (str): One that was trained with it, or ``published:NAME``.
        inputs (Sequence[str]): See :func:`find_work`.
        out (str): Folder of the results. What an earlier run of the same settings left there is continued.
        options (Options): How.

    Returns:
        Summary: What was done.

    Raises:
        UserError: Something that was given cannot be used: nothing was written.
    """
    options = options or Options()
    check_options(options, task_of(cfg))
    advice = 'Check the config, and that the images are of its kind'
    with library_errors(f'predicting with {cfg.filename}', advice), _joined(options.launcher):
        return _predict(cfg, checkpoint, inputs, out, options)


def _predict(cfg: Config, checkpoint: str, inputs: Sequence[str], out: str, options: Options) -> Summary:
    first = not dist.is_initialized() or dist.get_rank() == 0
    predictor = BatchPredictor(cfg, checkpoint, options)

    def plan() -> Tuple[Work, Coco, List[int]]:
        _check_folder(inputs, out)
        work = find_work(inputs)
        coco = coco_ids(options.coco, predictor.meta)
        for number in range(len(work)) if options.coco else ():
            coco.image_id(number, work.name(number))
        _claim(out, _settings(predictor, work, options))
        return work, coco, Parts(out, _part_size(options), len(work)).missing()

    work, coco, missing = _from_first(plan)
    parts = Parts(out, _part_size(options), len(work))
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
                f'{out} lacks {len(missing)} parts that other processes wrote: it must be the same folder for all of '
                'them, on a file system that the nodes share'
            )
        skipped, path = parts.finish_skipped()
        written = [] if path is None else [path]
        if skipped == len(work):
            reason = next(iter(parts.records()))['skipped']
            parts.remove()
            raise PredictionError(f'all {skipped} images were skipped, the first since {reason}')
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
    """Predict the images of parts, and write each part as soon as its images are done."""
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
                    _write_drawn(osp.join(out, 'drawn', f'{work.file_name(name)}.png'), draw(loaded.pixels, sample))
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
    """Return how many images a part has: batches are the same whatever the number of processes."""
    return options.batch_size * max(1, PART // options.batch_size) if options.tile is None else 1


def _check_folder(inputs: Sequence[str], out: str) -> None:
    if osp.exists(out) and not osp.isdir(out):
        raise PredictionError(f'--out {out} is a file: name a folder')
    folder = osp.realpath(out)
    for given in inputs:
        if osp.isdir(given) and (folder + os.sep).startswith(osp.realpath(given) + os.sep):
            raise PredictionError(
                f'--out {out} lies in {given}, whose images are predicted, so that results would be taken for images: '
                'name another folder'
            )


def _settings(predictor: BatchPredictor, work: Work, options: Options) -> Dict[str, Any]:
    """Return what results depend on."""
    images = hashlib.sha256()
    for path in work.paths:
        images.update(f'{osp.abspath(path)}\n{work.frames.get(path, 1)}\n'.encode(errors='surrogateescape'))
    kept = {key: value for key, value in options._asdict().items() if key not in ('workers', 'device', 'launcher')}
    return dict(kept, **predictor.fingerprint(), images=f'{len(work)} ({images.hexdigest()})')


def json_of(path: str) -> Dict[str, Any]:
    """Read a run's settings; none if there are none.

    Raises:
        PredictionError: The file is of something else.
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
        raise PredictionError(f'{path} is not of a run of this command ({error}): name another folder') from error


def _claim(out: str, settings: Dict[str, Any]) -> None:
    """Write a run's settings into the folder of its results, or compare them with what stands there.

    Raises:
        PredictionError: It holds the results of another run.
    """
    settings = json.loads(json.dumps(settings))
    found = json_of(osp.join(out, RUN))
    if not found:
        _write_run(out, dict(settings, complete=False))
        return
    differ = [key for key in settings if found.get(key) != settings[key]]
    if differ:
        raise PredictionError(
            f'--out {out} holds results of another run, which differs in {", ".join(differ)}: name another folder, or '
            'remove this one'
        )


def _write_run(out: str, settings: Dict[str, Any]) -> None:
    write_atomic(osp.join(out, RUN), (json.dumps(settings, indent=1) + '\n').encode())


def _from_first(action: Callable[[], Result]) -> Result:
    """Return what an action gives in the first process; its error ends all of them."""
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
    """Join the processes that a launcher started. They say little to each other, so gloo does on GPUs, too."""
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
                f'process {dist.get_rank()} lost another process, which ended, was killed or cannot be reached '
                f"({str(error).strip().splitlines()[0]}): the reason is in that process's output. The same command "
                'continues from what is done'
            ) from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show how many images this process has done, how fast, and the time left; in a terminal as a bar."""
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
