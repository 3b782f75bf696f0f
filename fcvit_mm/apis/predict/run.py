"""Predicting many images and writing the results, with the model and test pipeline used for evaluation.

The images are divided into shards that do not depend on the number of processes. Each process predicts some shards and
writes each to a file; the first process merges them at the end. An interrupted run continues after its last shard.
"""

import os
import os.path as osp
from contextlib import ExitStack, suppress
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from ...engine.config import task_of
from ...errors import library_errors
from ...files import write_atomic
from ...images import ImageError, swap_channels
from ..draw import draw_classes, draw_sample
from .folder import (
    RUN,
    Shards,
    check_folder,
    compare_settings,
    lock_results,
    read_run,
    settings_of,
    shard_size,
    stamps_of,
    store_or_compare_settings,
    write_run,
)
from .inputs import ImageList, list_inputs
from .options import Options, check_options
from .predictor import ADVICE, BatchPredictor
from .preparation import ImagesToPredict
from .processes import from_first, joined_processes, progress
from .results import Classes, Coco, Detections, LabelMaps, PredictionError, Record, coco_ids


class Summary(NamedTuple):
    """The outcome of a run.

    Attributes:
        images (int): Number of images; frames of videos count as images.
        skipped (int): Number of images that are corrupt, missing, or not accepted by the model.
        written (list[str]): Paths of the results; empty if an earlier run wrote all of them.
        resumed (int): Number of images predicted by an earlier run.
        first (bool): Whether this process merged the results.
    """

    images: int
    skipped: int
    written: List[str]
    resumed: int
    first: bool


def predict(
    cfg: Config, checkpoint: str, inputs: Sequence[str], out: str, options: Optional[Options] = None
) -> Summary:
    """Predict images and write the results to files.

    Args:
        cfg (Config): A config of any of the three tasks, from :func:`~fcvit_mm.engine.config.load_config`; it is
            changed.
        checkpoint (str): A checkpoint trained with this config, or ``published:NAME``.
        inputs (Sequence[str]): See :func:`list_inputs`.
        out (str): Folder for the results. An earlier run with the same settings is continued.
        options (Options): Options of the run.

    Returns:
        Summary: The outcome of the run.

    Raises:
        UserError: An argument cannot be used; nothing was written.
    """
    options = options or Options()
    check_options(options, task_of(cfg))
    with library_errors(f'predicting with {cfg.filename}', ADVICE), joined_processes(options.launcher):
        return _predict(cfg, checkpoint, inputs, out, options)


def _predict(cfg: Config, checkpoint: str, inputs: Sequence[str], out: str, options: Options) -> Summary:
    first = not dist.is_initialized() or dist.get_rank() == 0
    predictor = BatchPredictor(cfg, checkpoint, options)
    with ExitStack() as stack:

        def plan() -> Tuple[ImageList, Coco, Shards, List[int]]:
            listed = list_inputs(inputs)
            check_folder(listed.folders, out)
            coco = coco_ids(options.coco, predictor.meta, predictor.classes)
            coco.check_images(map(listed.name, range(len(listed))))
            settings = settings_of(predictor, listed, coco, options)
            compare_settings(out, settings)  # before the lock file is written
            stack.enter_context(lock_results(out))
            size = store_or_compare_settings(out, settings, shard_size(options))
            shards = Shards(out, size, len(listed), stamps_of(listed, size))
            run = read_run(osp.join(out, RUN))
            if run.get('complete', False) and run.get('images_state') != shards.state:
                raise PredictionError(
                    f'--out {out} contains the results of all images, but some images have changed since (size or time '
                    'of modification): give another folder, or delete this one'
                )
            # Left by a run that was killed before it removed them, or of images that have changed since.
            shards.remove(() if run.get('complete', False) else range(len(shards)))
            return listed, coco, shards, shards.missing()

        listed, coco, shards, missing = from_first(plan)
        return _predict_missing(predictor, listed, coco, shards, missing, first)


def _predict_missing(
    predictor: BatchPredictor, listed: ImageList, coco: Coco, shards: Shards, missing: List[int], first: bool
) -> Summary:
    """Predict the missing shards and merge all of them."""
    out, options = shards.out, predictor.options
    done = read_run(osp.join(out, RUN)).get('complete', False)
    writer: Any
    if predictor.task == 'classification':
        writer = Classes(out, predictor.meta, options.top, options.table)
    elif predictor.task == 'detection':
        writer = Detections(out, predictor.meta, predictor.classes, coco, options.score_thr)
    else:
        writer = LabelMaps(out, predictor.meta, predictor.classes, listed.file_name)
    if done:
        return Summary(len(listed), read_run(osp.join(out, RUN)).get('skipped', 0), [], len(listed), first)
    resumed = len(listed) - sum(len(shards.numbers(shard)) for shard in missing)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _predict_shards(predictor, listed, coco, shards, missing[rank::world], writer, out, first)

    def finish() -> Tuple[int, List[str]]:
        missing = shards.missing()
        if missing:
            raise PredictionError(
                f'{out} lacks {len(missing)} shards that were written: another run with the same --out removed them, '
                'so start one at a time; or --out is not the same folder for all processes, on a file system shared by '
                'all nodes'
            )
        skipped, path = shards.finish_skipped()
        written = [] if path is None else [path]
        if skipped == len(listed):
            reason = next(iter(shards.records()))['skipped']
            shards.remove()
            raise PredictionError(f'all {skipped} images were skipped; first reason: {reason}')
        written = [*writer.finish(shards.records), *(shards.finish_features() if options.features else []), *written]
        if options.draw:
            written.append(osp.join(out, 'drawn'))
        write_run(out, dict(read_run(osp.join(out, RUN)), complete=True, skipped=skipped, images_state=shards.state))
        shards.remove()
        return skipped, written

    if dist.is_initialized():
        dist.barrier()
    skipped, written = from_first(finish)
    return Summary(len(listed), skipped, written, resumed, first)


def _predict_shards(
    predictor: BatchPredictor,
    listed: ImageList,
    coco: Coco,
    shards: Shards,
    mine: Sequence[int],
    writer: Any,
    out: str,
    shown: bool,
) -> None:
    """Predict the images of some shards, and write each shard as soon as it is complete."""
    options = predictor.options
    size = options.batch_size if options.tile is None else 1
    batches = [
        list(shards.numbers(shard)[start : start + size])
        for shard in mine
        for start in range(0, len(shards.numbers(shard)), size)
    ]
    images = ImagesToPredict(
        listed, predictor.reader, predictor.pipeline, predictor.channels, options.tile is not None, options.draw
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
    with progress(sum(map(len, batches)), shown) as advance:
        for batch in loader:
            usable = [loaded for loaded in batch if not loaded.problem]
            try:
                samples = iter(predictor(usable, [listed.name(each.number) for each in usable]) if usable else [])
            except ImageError as error:  # a tile of the image cannot be prepared; the batch is this image
                batch, usable = [each._replace(problem=str(error)) for each in usable], []
            features += predictor.features() if usable else []
            for loaded in batch:
                name = listed.name(loaded.number)
                if loaded.problem:
                    records.append(dict(name=name, skipped=loaded.problem))
                    for folder in ('labels', 'drawn'):  # of an earlier content of the image
                        with suppress(FileNotFoundError):
                            os.remove(osp.join(out, folder, f'{listed.file_name(name)}.png'))
                    continue
                sample = next(samples)
                records.append(
                    dict(
                        id=coco.image_id(loaded.number, name),
                        name=name,
                        width=loaded.size[1],
                        height=loaded.size[0],
                        found=writer.result_of(sample, name),
                    )
                )
                if draw is not None:
                    with library_errors(f'drawing the predictions of {name}', 'Omit --draw, or remove this image'):
                        drawn = draw(loaded.pixels, sample)
                    _write_drawn(osp.join(out, 'drawn', f'{listed.file_name(name)}.png'), drawn)
            shard = batch[-1].number // shards.size
            if batch[-1].number == shards.numbers(shard)[-1]:
                shards.write(shard, records, features)
                records, features = [], []
            advance(len(batch))


def _begin_worker(number: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers share the cores


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
    names = tuple(map(meta.name, range(max(predictor.classes, len(meta.names)))))
    if predictor.task != 'classification':
        palette = [tuple(color) for color in LabelMaps('', meta, predictor.classes, str).palette.tolist()]
        palette = (palette * (1 + len(names) // len(palette)))[: len(names)]
        visualizer.dataset_meta = dict(classes=names, palette=palette)

    def draw(pixels: np.ndarray, sample: Any) -> np.ndarray:
        with DefaultScope.overwrite_default_scope(scope):
            if predictor.task == 'classification':
                return draw_classes(visualizer, pixels, sample, names or None)
            if 'masks' in sample.get('pred_instances', {}) and isinstance(sample.pred_instances.masks, list):
                from pycocotools import mask as coder

                sample = sample.clone()
                encoded = sample.pred_instances.pop('masks')
                masks = [coder.decode(each) for each in encoded] or [np.zeros((0, *pixels.shape[:2]), np.uint8)]
                sample.pred_instances.masks = torch.from_numpy(np.stack(masks).astype(bool)) if encoded else masks[0]
            return draw_sample(visualizer, pixels, sample, **options)

    return draw


def _write_drawn(path: str, drawn: np.ndarray) -> None:
    import cv2

    write_atomic(path, cv2.imencode('.png', swap_channels(drawn))[1].tobytes())
