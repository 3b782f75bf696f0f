"""Predictions drawn on pictures and videos, with the inferencer and visualizer of the task's library."""
import os
import os.path as osp
from typing import Callable, List, Optional, Tuple

import numpy as np
from mmengine.config import Config

from .config import set_pretrained, task_of
from .errors import UserError
from .pictures import PICTURE_SUFFIXES, picture_problem

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


class InputError(UserError):
    """Nothing that can be drawn on."""


def find_inputs(path: str) -> Tuple[List[str], Optional[str]]:
    """Pictures that a path stands for, or a video.

    Args:
        path (str): A picture, a video, or a folder of pictures.

    Returns:
        tuple[list[str], str | None]: Paths of pictures, and that of a video; one of them is empty.

    Raises:
        InputError: It does not exist, is neither, or a folder without pictures.
    """
    if osp.isdir(path):
        pictures = [entry.path for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
                    if entry.is_file() and entry.name.lower().endswith(PICTURE_SUFFIXES)]
        if not pictures:
            raise InputError(f'no pictures ({", ".join(PICTURE_SUFFIXES)}) in {path}')
        return pictures, None
    if not osp.isfile(path):
        raise InputError(f'{path} does not exist: give a picture, a folder of pictures or a video')
    suffix = osp.splitext(path)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return [], path
    if suffix in PICTURE_SUFFIXES:
        return [path], None
    raise InputError(f'{path} is neither a picture ({", ".join(PICTURE_SUFFIXES)}) nor a video '
                     f'({", ".join(VIDEO_SUFFIXES)}) by its name')


def build_artist(cfg: Config, checkpoint: str, device: Optional[str] = None, score_thr: float = 0.3,
                 opacity: float = 0.5) -> Callable[[np.ndarray], np.ndarray]:
    """What predicts and draws.

    Args:
        cfg (Config): Of any of the three tasks.
        checkpoint (str): One that was trained with it.
        device (str, optional): Default: a GPU if there is one.
        score_thr (float): Detection: least score of what is drawn.
        opacity (float): Segmentation: of the colours over the picture.

    Returns:
        callable: Takes a picture and returns the drawn one, both ``(H, W, 3)`` uint8 in OpenCV's order (BGR).
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
        result, = inferencer([image], return_datasamples=True)
        # The library writes letters of 7 pixels on a picture of 224: smaller ones are enlarged to be legible.
        factor = max(1, 224 / min(image.shape[:2]))
        return visualizer.visualize_cls(image[..., ::-1], result, classes=inferencer.classes, draw_gt=False,
                                        rescale_factor=factor if factor > 1 else None)[..., ::-1]

    return draw


def _detection_artist(cfg, checkpoint, device, score_thr):
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(cfg, weights=checkpoint, device=device, show_progress=False)

    def draw(image):
        results = inferencer(image.copy(), return_datasamples=True, no_save_vis=True)
        inferencer.visualizer.add_datasample('picture', image[..., ::-1].copy(), results['predictions'][0],
                                             draw_gt=False, pred_score_thr=score_thr)
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
        inferencer.visualizer.add_datasample('picture', image[..., ::-1].copy(), result, draw_gt=False)
        return inferencer.visualizer.get_image()[..., ::-1]

    return draw


def draw_pictures(draw: Callable, pictures: List[str], out_dir: str) -> Tuple[List[str], List[str]]:
    """Draw on each picture and write ``<name>.png`` into a folder; what does not decode is left out.

    Returns:
        tuple[list[str], list[str]]: Paths written, and one line for each picture left out.

    Raises:
        InputError: ``out_dir`` holds the pictures themselves.
    """
    import cv2
    if any(osp.realpath(osp.dirname(picture) or '.') == osp.realpath(out_dir) for picture in pictures):
        raise InputError(f'--out-dir {out_dir} is the folder of the pictures, which drawn ones could overwrite: name '
                         'another')
    os.makedirs(out_dir, exist_ok=True)
    stems = [osp.splitext(osp.basename(picture))[0] for picture in pictures]
    written, problems = [], []
    for picture, stem in zip(pictures, stems):
        problem = picture_problem(picture)
        image = None if problem else cv2.imread(picture)
        if image is None:
            problems.append(problem or f'{picture} does not decode: convert it to PNG or JPEG')
            continue
        # a.png and a.jpg keep apart.
        name = stem if stems.count(stem) == 1 else osp.basename(picture)
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
        InputError: The video does not decode.
    """
    import cv2
    source = cv2.VideoCapture(video)
    path = osp.join(out_dir, osp.splitext(osp.basename(video))[0] + '.mp4')
    if osp.realpath(path) == osp.realpath(video):
        raise InputError(f'--out-dir {out_dir} is the folder of {video}, which would be overwritten: name another')
    os.makedirs(out_dir, exist_ok=True)
    # OpenCV tells the format by the name.
    partial = path[:-len('.mp4')] + '.partial.mp4'
    writer = None
    try:
        while True:
            found, image = source.read()
            if not found:
                break
            drawn = np.ascontiguousarray(draw(image))
            if writer is None:
                writer = cv2.VideoWriter(partial, cv2.VideoWriter_fourcc(*'mp4v'), source.get(cv2.CAP_PROP_FPS) or 25,
                                         drawn.shape[1::-1])
                if not writer.isOpened():
                    raise InputError(f'this OpenCV cannot write {path} (MPEG-4): give the frames as pictures')
            writer.write(drawn)
    finally:
        source.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise InputError(f'{video} ({osp.getsize(video)} bytes) has no frame that decodes: convert it to MP4 (H.264)')
    os.replace(partial, path)
    return path
