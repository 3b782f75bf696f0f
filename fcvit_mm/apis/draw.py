"""Drawing predictions on images and videos, with the inferencer and visualizer of the task's library."""

import copy
import os.path as osp
import warnings
from collections import Counter
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..checkpoints import fetch_checkpoint, load_complete
from ..engine.config import TASKS, leaf_datasets, set_pretrained, task_of
from ..engine.machine import adapt_to_machine
from ..engine.wrapped import backbone_config
from ..errors import library_errors
from ..files import atomic_path, write_atomic
from ..images import (
    ImageError,
    display,
    log_once,
    open_video,
    read_image,
    reduce_image,
    report_lost_frames,
    swap_channels,
)
from .load import Meta, input_channels, meta_of, read_trained
from .normalization import report_other_normalization
from .preprocessing import NetworkError, check_channels, check_has_pipeline, image_reader, split_pipeline

#: Larger images are reduced to this many pixels, because drawing takes more than 100 bytes per pixel.
MAX_PIXELS = 50_000_000
#: Small images are enlarged to at most this many pixels; otherwise an image of 2x6000 would get 150 million.
MAX_ENLARGED = 4_000_000
ADVICE = 'Check the config, and that the images are of its kind'
#: Function from an image, as loaded by a loading step, to the drawn image, ``(H, W, 3)`` uint8 BGR.
Drawer = Callable[[np.ndarray], np.ndarray]


def build_drawer(
    cfg: Config, checkpoint: str, device: Optional[str] = None, score_thr: float = 0.3, opacity: float = 0.5
) -> Drawer:
    """Build a function that draws predictions on an image.

    Args:
        cfg (Config): A config of any of the three tasks, from :func:`~fcvit_mm.engine.config.load_config`; it is
            adapted to this machine and its pretrained backbone is removed.
        checkpoint (str): A checkpoint trained with this config.
        device (str, optional): Default: a GPU if there is one.
        score_thr (float): Minimum detection score to draw.
        opacity (float): Opacity of the segmentation overlay.

    Returns:
        callable: Takes an image as loaded by the config's loading steps (three channels are BGR), and returns the drawn
        image, ``(H, W, 3)`` uint8 BGR.

    Raises:
        CheckpointError: The checkpoint cannot be used, or belongs to another model.
        NetworkError: The config has no test pipeline. Raised by the function if the image has the wrong number of
            channels.
    """
    task = task_of(cfg)
    check_has_pipeline(cfg)
    checkpoint = fetch_checkpoint(checkpoint)
    content = read_trained(checkpoint)
    report_other_normalization(cfg, content, checkpoint)
    adapt_to_machine(cfg)
    if backbone_config(cfg.model).get('init_cfg'):  # the checkpoint contains the backbone's weights, too
        set_pretrained(cfg, None)
    reader = image_reader(cfg)
    stored: Any = content.get('meta')
    lacks = not isinstance(stored, dict) or not {'dataset_meta', 'CLASSES'} & set(stored)
    classes = meta_of(cfg, content) if lacks else Meta()
    cfg = _for_loaded_images(cfg)
    # Models of several libraries may be in use at the same time, so each runs in its own scope.
    errors = library_errors(f'building the model of {cfg.filename or "the config"}', 'Correct the config')
    with errors, DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
        if classes.names:
            warnings.filterwarnings('ignore', 'dataset_meta or class names are not saved')
        if task == 'classification':
            inferencer, draw_in_scope = _classification(cfg, checkpoint, device)
        elif task == 'detection':
            inferencer, draw_in_scope = _detection(cfg, checkpoint, device, score_thr)
        else:
            inferencer, draw_in_scope = _segmentation(cfg, checkpoint, device, opacity)
    _set_classes(inferencer, classes)
    load_complete(inferencer.model, checkpoint)  # the inferencer loads nothing from some containers
    channels = input_channels(inferencer.model, cfg)

    def draw(image: np.ndarray) -> np.ndarray:
        image = swap_channels(check_channels(reader.convert(swap_channels(image)), channels))
        factor = (MAX_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5
        if factor < 1:
            log_once(f'Images of more than {MAX_PIXELS / 1e6:.0f} million pixels are reduced to that to be drawn on.')
            image = reduce_image(image, factor)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return draw_in_scope(image)

    return draw


def _set_classes(inferencer: Any, meta: Meta) -> None:
    """Set the classes of the config: without any in the checkpoint, mmdet takes those of COCO, mmseg of Cityscapes."""
    if not meta.names:
        return
    inferencer.classes = meta.names  # of mmpretrain's inferencer
    palette = meta.palette
    if len(palette) < len(meta.names):
        palette = tuple(map(tuple, np.random.RandomState(42).randint(0, 256, (len(meta.names), 3)).tolist()))
    inferencer.visualizer.dataset_meta = dict(classes=meta.names, palette=palette)


def _for_loaded_images(cfg: Config) -> Config:
    """Return a config for the libraries' inferencers, whose images are loaded beforehand."""
    cfg = copy.deepcopy(cfg)
    _, geometry, packing = split_pipeline(cfg)
    if cfg.default_scope not in TASKS:
        # mmpretrain's and mmseg's inferencers build everything in their own scope.
        for node in [cfg.model, *(geometry or ()), *packing]:
            node['_scope_'] = cfg.default_scope
    if geometry is not None:
        # The inferencers read the pipeline here, not in data sets inside others.
        dataset = cfg.test_dataloader.dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
        dataset['pipeline'] = [dict(type='LoadImageFromFile'), *geometry, *packing]
    return cfg


def _classification(cfg: Config, checkpoint: str, device: Optional[str]) -> Tuple[Any, Drawer]:
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
    visualizer = UniversalVisualizer()

    def draw(image: np.ndarray) -> np.ndarray:
        (result,) = inferencer([image], return_datasamples=True)
        return draw_classes(visualizer, swap_channels(image), result, inferencer.classes)[..., ::-1]

    return inferencer, draw


def draw_classes(visualizer: Any, pixels: np.ndarray, sample: Any, classes: Optional[Sequence[str]]) -> np.ndarray:
    """Draw the predicted classes on an image.

    Args:
        visualizer (UniversalVisualizer): Visualizer of mmpretrain.
        pixels (np.ndarray): An image as :class:`~fcvit_mm.images.ImageReader` reads it.
        sample (DataSample): The prediction.
        classes (Sequence[str], optional): Class names.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB, enlarged if it is small.
    """
    # The library writes letters of 7 pixels on an image of 224; smaller images are enlarged, so that text is legible.
    height, width = pixels.shape[:2]
    factor = max(1, min(224 / min(height, width), (MAX_ENLARGED / (height * width)) ** 0.5))
    return visualizer.visualize_cls(
        display(pixels), sample, classes=classes, draw_gt=False, rescale_factor=factor if factor > 1 else None
    )


def draw_sample(visualizer: Any, pixels: np.ndarray, sample: Any, **options: Any) -> np.ndarray:
    """Draw boxes, masks or a segmentation map on an image.

    Args:
        visualizer (DetLocalVisualizer | SegLocalVisualizer): mmdet's or mmseg's, which knows the classes.
        pixels (np.ndarray): An image as :class:`~fcvit_mm.images.ImageReader` reads it.
        sample (DetDataSample | SegDataSample): The prediction.
        **options: Arguments of its ``add_datasample``.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB.
    """
    if 'pred_sem_seg' in sample:
        # As arrays, because the comparison of a one-pixel tensor returns a tensor that NumPy would treat as an index.
        sample = sample.numpy()
    if 'pred_panoptic_seg' in sample:
        classes = len(visualizer.dataset_meta['classes'])
        if (sample.pred_panoptic_seg.sem_seg == classes).all():  # no segment, with which mmdet's visualizer fails
            sample = sample.clone()
            del sample.pred_panoptic_seg
    visualizer.add_datasample('image', display(pixels), sample, draw_gt=False, **options)
    return visualizer.get_image()


def _detection(cfg: Config, checkpoint: str, device: Optional[str], score_thr: float) -> Tuple[Any, Drawer]:
    from mmdet.apis import DetInferencer

    # In the config's own scope, otherwise models of libraries built on mmdet are not found.
    inferencer = DetInferencer(cfg, weights=checkpoint, device=device, scope=cfg.default_scope, show_progress=False)

    def draw(image: np.ndarray) -> np.ndarray:
        results = inferencer(image.copy(), return_datasamples=True, no_save_vis=True)
        (sample,) = results['predictions']
        return draw_sample(inferencer.visualizer, swap_channels(image), sample, pred_score_thr=score_thr)[..., ::-1]

    return inferencer, draw


def _segmentation(cfg: Config, checkpoint: str, device: Optional[str], opacity: float) -> Tuple[Any, Drawer]:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, weights=checkpoint, device=device)
    # Not an argument in mmseg 1.2.
    inferencer.show_progress = False
    inferencer.visualizer.set_dataset_meta(**inferencer.model.dataset_meta)
    inferencer.visualizer.alpha = opacity

    def draw(image: np.ndarray) -> np.ndarray:
        result = inferencer(image.copy(), return_datasamples=True)
        return draw_sample(inferencer.visualizer, swap_channels(image), result)[..., ::-1]

    return inferencer, draw


def draw_images(
    draw: Drawer, sources: Sequence[str], out_dir: str, read: Callable[[str], np.ndarray] = read_image
) -> Tuple[List[str], List[str]]:
    """Draw on each image and write ``<name>.png`` into a folder; images that cannot be decoded are skipped.

    Args:
        draw (callable): Result of :func:`build_drawer`.
        sources (Sequence[str]): The images.
        out_dir (str): The folder.
        read (callable): Function that reads an image file, see :func:`~fcvit_mm.apis.preprocessing.image_reader`.

    Returns:
        tuple[list[str], list[str]]: Paths written, and one line for each skipped image.

    Raises:
        ImageError: ``out_dir`` is the folder of the input images.
        LibraryError: The model does not run on an image.
        WriteError: The disk is full, ...
    """
    import cv2

    if any(osp.realpath(osp.dirname(source) or '.') == osp.realpath(out_dir) for source in sources):
        raise ImageError(
            f'--out-dir {out_dir} is the folder of the input images, which the output could overwrite: give another '
            'folder'
        )
    stems = [osp.splitext(osp.basename(source))[0] for source in sources]
    taken = Counter([*stems, *map(osp.basename, sources)])
    written, problems = [], []
    for source, stem in zip(sources, stems):
        try:
            with library_errors(f'predicting {source}', ADVICE):
                drawn = draw(swap_channels(read(source)))
        except (ImageError, NetworkError) as error:
            problems.append(str(error) if source in str(error) else f'{source}: {error}')
            continue
        # Different names for a.png, a.jpg and a.png.bmp.
        name = stem if taken[stem] == 1 else osp.basename(source)
        path = osp.join(out_dir, f'{name}.png')
        write_atomic(path, cv2.imencode('.png', np.ascontiguousarray(drawn))[1].tobytes())
        written.append(path)
    return written, problems


def draw_video(draw: Drawer, video: str, out_dir: str) -> str:
    """Draw on each frame and write ``<name>.mp4`` into a folder, at the same speed.

    Returns:
        str: The path written.

    Raises:
        ImageError: The video does not decode, or would be overwritten.
        LibraryError: The model does not run on a frame.
        WriteError: The disk is full, ...
    """
    import cv2

    path = osp.join(out_dir, osp.splitext(osp.basename(video))[0] + '.mp4')
    if osp.realpath(path) == osp.realpath(video):
        raise ImageError(
            f'--out-dir {out_dir} is the folder of {video}, which would be overwritten: give another folder'
        )
    source = open_video(video)
    number, expected = 0, int(source.get(cv2.CAP_PROP_FRAME_COUNT))
    with atomic_path(path, suffix='.mp4') as temporary:  # OpenCV infers the format from the suffix
        writer = None
        try:
            while True:
                found, image = source.read()
                if not found:
                    break
                with library_errors(f'predicting a frame of {video}', ADVICE):
                    drawn = np.ascontiguousarray(draw(image))
                if writer is None:
                    writer = cv2.VideoWriter(
                        temporary,
                        cv2.VideoWriter.fourcc(*'mp4v'),
                        source.get(cv2.CAP_PROP_FPS) or 25,
                        drawn.shape[1::-1],
                    )
                    if not writer.isOpened():
                        raise ImageError(f'this OpenCV build cannot write {path} (MPEG-4): give the frames as images')
                writer.write(drawn)
                number += 1
        finally:
            source.release()
            if writer is not None:
                writer.release()
        if writer is None:
            raise ImageError(
                f'{video} ({osp.getsize(video)} bytes) has no frame that can be decoded: convert it to MP4 (H.264)'
            )
    report_lost_frames(video, number, expected)
    return path
