"""Predictions drawn on images and videos, with the inferencer and visualizer of the task's library."""

import os
import os.path as osp
from typing import Callable, List, Optional, Tuple

import numpy as np
from mmengine.config import Config

from ..engine.config import set_pretrained, task_of
from ..images import ImageError, image_problem


def build_drawer(
    cfg: Config, checkpoint: str, device: Optional[str] = None, score_thr: float = 0.3, opacity: float = 0.5
) -> Callable[[np.ndarray], np.ndarray]:
    """What predicts and draws.

    Args:
        cfg (Config): Of any of the three tasks.
        checkpoint (str): One that was trained with it.
        device (str, optional): Default: a GPU if there is one.
        score_thr (float): Detection: least score of what is drawn.
        opacity (float): Segmentation: of the colours over the image.

    Returns:
        callable: Takes an image and returns the drawn one, both ``(H, W, 3)`` uint8 in OpenCV's order (BGR).
    """
    task = task_of(cfg)
    # The checkpoint has the backbone's weights too.
    if cfg.model.get('backbone', {}).get('init_cfg'):
        set_pretrained(cfg, None)
    if task == 'classification':
        return _classification_artist(cfg, checkpoint, device)
    if task == 'detection':
        return _detection_artist(cfg, checkpoint, device, score_thr)
    return _segmentation_artist(cfg, checkpoint, device, opacity)


def _classification_artist(cfg, checkpoint, device):
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
    visualizer = UniversalVisualizer()

    def draw(image):
        (result,) = inferencer([image], return_datasamples=True)
        # The library writes letters of 7 pixels on an image of 224: smaller ones are enlarged to be legible.
        factor = max(1, 224 / min(image.shape[:2]))
        return visualizer.visualize_cls(
            image[..., ::-1],
            result,
            classes=inferencer.classes,
            draw_gt=False,
            rescale_factor=factor if factor > 1 else None,
        )[..., ::-1]

    return draw


def _detection_artist(cfg, checkpoint, device, score_thr):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(cfg, weights=checkpoint, device=device, show_progress=False)

    def draw(image):
        results = inferencer(image.copy(), return_datasamples=True, no_save_vis=True)
        inferencer.visualizer.add_datasample(
            'image', image[..., ::-1].copy(), results['predictions'][0], draw_gt=False, pred_score_thr=score_thr
        )
        return inferencer.visualizer.get_image()[..., ::-1]

    return draw


def _segmentation_artist(cfg, checkpoint, device, opacity):
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, weights=checkpoint, device=device)
    # Not an argument in mmseg 1.2.
    inferencer.show_progress = False
    inferencer.visualizer.set_dataset_meta(**inferencer.model.dataset_meta)
    inferencer.visualizer.alpha = opacity

    def draw(image):
        result = inferencer(image.copy(), return_datasamples=True)
        inferencer.visualizer.add_datasample('image', image[..., ::-1].copy(), result, draw_gt=False)
        return inferencer.visualizer.get_image()[..., ::-1]

    return draw


def draw_images(draw: Callable, sources: List[str], out_dir: str) -> Tuple[List[str], List[str]]:
    """Draw on each image and write ``<name>.png`` into a folder; what does not decode is left out.

    Returns:
        tuple[list[str], list[str]]: Paths written, and one line for each image left out.

    Raises:
        ImageError: ``out_dir`` holds the images themselves.
    """
    import cv2

    if any(osp.realpath(osp.dirname(source) or '.') == osp.realpath(out_dir) for source in sources):
        raise ImageError(
            f'--out-dir {out_dir} is the folder of the images, which drawn ones could overwrite: name another'
        )
    os.makedirs(out_dir, exist_ok=True)
    stems = [osp.splitext(osp.basename(source))[0] for source in sources]
    written, problems = [], []
    for source, stem in zip(sources, stems):
        problem = image_problem(source)
        image = None if problem else cv2.imread(source)
        if image is None:
            problems.append(problem or f'{source} does not decode: convert it to PNG or JPEG')
            continue
        # a.png and a.jpg keep apart.
        name = stem if stems.count(stem) == 1 else osp.basename(source)
        path = osp.join(out_dir, f'{name}.png')
        _, data = cv2.imencode('.png', np.ascontiguousarray(draw(image)))
        _write(path, data.tobytes())
        written.append(path)
    return written, problems


def _write(path: str, data: bytes) -> None:
    with open(f'{path}.partial', 'wb') as file:
        file.write(data)
    os.replace(f'{path}.partial', path)


def draw_video(draw: Callable, video: str, out_dir: str) -> str:
    """Draw on each frame and write ``<name>.mp4`` into a folder, at the same speed.

    Returns:
        str: The path written.

    Raises:
        ImageError: The video does not decode.
    """
    import cv2

    source = cv2.VideoCapture(video)
    path = osp.join(out_dir, osp.splitext(osp.basename(video))[0] + '.mp4')
    if osp.realpath(path) == osp.realpath(video):
        raise ImageError(f'--out-dir {out_dir} is the folder of {video}, which would be overwritten: name another')
    os.makedirs(out_dir, exist_ok=True)
    # OpenCV tells the format by the name.
    partial = path[: -len('.mp4')] + '.partial.mp4'
    writer = None
    try:
        while True:
            found, image = source.read()
            if not found:
                break
            drawn = np.ascontiguousarray(draw(image))
            if writer is None:
                writer = cv2.VideoWriter(
                    partial, cv2.VideoWriter_fourcc(*'mp4v'), source.get(cv2.CAP_PROP_FPS) or 25, drawn.shape[1::-1]
                )
                if not writer.isOpened():
                    raise ImageError(f'this OpenCV cannot write {path} (MPEG-4): give the frames as images')
            writer.write(drawn)
    finally:
        source.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise ImageError(f'{video} ({osp.getsize(video)} bytes) has no frame that decodes: convert it to MP4 (H.264)')
    os.replace(partial, path)
    return path
