"""Data set of images to predict: read as in training, and prepared by the test pipeline."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from ...engine.config import type_name
from ...images import ImageError, ImageReader, open_video, swap_channels
from ..preprocessing import NetworkError, check_channels
from .inputs import ImageList


class Loaded(NamedTuple):
    """An image loaded by a worker.

    Attributes:
        number (int): Index in :class:`ImageList`.
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


class ImagesToPredict(Dataset):
    """Data set that reads images as training does, and prepares them by the test pipeline."""

    def __init__(
        self, listed: ImageList, reader: ImageReader, pipeline: Compose, channels: int, tiled: bool, keep: bool
    ) -> None:
        self.listed, self.reader, self.pipeline, self.channels = listed, reader, pipeline, channels
        self.tiled, self.keep = tiled, keep
        self.video: Tuple[str, Any, int] = ('', None, 0)

    def __getitem__(self, number: int) -> Loaded:
        path, frame = self.listed[number]
        try:
            pixels = self.reader(path) if frame is None else self._frame(path, frame)
            check_channels(pixels, self.channels, path)
            data = None if self.tiled else prepare(self.pipeline, pixels, self.listed.name(number), number)
        except (ImageError, NetworkError) as error:
            return Loaded(number, problem=str(error))
        size = (pixels.shape[0], pixels.shape[1])
        return Loaded(number, size, data, pixels if self.keep or self.tiled else None)

    def _frame(self, path: str, frame: int) -> np.ndarray:
        """Decode a frame; frames are requested in ascending order, and those in between are skipped."""
        opened, video, position = self.video
        if opened != path or position > frame:
            video, position = open_video(path), 0
        while position < frame and video.grab():
            position += 1
        found, image = video.read()
        self.video = (path, video, position + 1)
        if not found:
            raise ImageError(f'{path}: frame {frame} cannot be decoded: convert the video to MP4 (H.264)')
        return self.reader.convert(swap_channels(image))


def prepare(pipeline: Compose, pixels: np.ndarray, name: str, number: int) -> Dict[str, Any]:
    """Preprocess a loaded image with the test pipeline.

    Args:
        pipeline (Compose): Test pipeline without its loading steps.
        pixels (np.ndarray): An image as :class:`~fcvit_mm.images.ImageReader` reads it.
        name (str): Name of the image.
        number (int): Number of the image, used as its id.

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
        # Broad, because steps raise any kind of error.
        raise ImageError(
            f'{name} ({shape[1]}x{shape[0]} pixels) cannot be prepared by the test pipeline ({type(error).__name__}: '
            f'{str(error).strip()}): check the test pipeline of the config, or remove this image from the input'
        ) from error


def without_loading_steps(steps: Any) -> Any:
    """Return a pipeline without its loading steps: images are loaded before, and have no annotations."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            inner = without_loading_steps(step)
            if inner:
                kept.append(inner)
        elif isinstance(step, dict) and 'transforms' in step:
            kept.append(ConfigDict(step, transforms=without_loading_steps(step['transforms'])))
        elif not type_name(step).startswith('Load'):
            kept.append(step)
    return kept
