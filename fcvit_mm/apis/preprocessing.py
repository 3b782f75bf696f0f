"""Preprocessing of images: the steps of a config's test pipeline, resizing, cropping and padding."""

import os
from typing import Any, List, NamedTuple, Optional, Sequence, Union

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from ..engine.config import leaf_datasets, type_name
from ..errors import UserError
from ..images import ImageReader, PathLike, swap_channels

#: Value of padded pixels: about the mean color, which normalization maps to 0.
PADDING = 114
#: Parts of the names of steps that load something other than an image.
NOT_OF_IMAGES = ('Annotation', 'Depth', 'Proposals', 'Segmentation')
#: An image file, or its pixels.
ImageLike = Union[PathLike, np.ndarray]


class NetworkError(UserError):
    """The network cannot be built from the arguments, or does not accept the image."""


class Pipeline(NamedTuple):
    """The steps of a config's test pipeline, by purpose.

    Attributes:
        loading (list): Steps that load an image; may be empty.
        geometry (list, optional): Steps between loading and packing; ``None`` without a pipeline.
        packing (list): Steps that pack the inputs of the model.
    """

    loading: List[Any]
    geometry: Optional[List[Any]]
    packing: List[Any]


def check_has_pipeline(cfg: Config) -> None:
    """Check that a config has a test pipeline.

    Raises:
        NetworkError: It has no ``test_dataloader``, or one without a data set.
    """
    if not (cfg.get('test_dataloader') or {}).get('dataset'):
        raise NetworkError(
            f'{cfg.filename} has no test_dataloader, whose pipeline prepares the images: add one to the config, such '
            'as test_dataloader = val_dataloader'
        )


def split_pipeline(cfg: Config) -> Pipeline:
    """Return the steps of a config's test pipeline, without those that load annotations."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    dataset = next(leaf_datasets(dataset)) if dataset else None
    if not dataset or 'pipeline' not in dataset:
        return Pipeline([], None, [])
    loading, geometry, packing = [], [], []
    for step in dataset['pipeline']:
        name = type_name(step)
        if name.startswith('Pack'):
            packing.append(step)
        elif not name.startswith('Load'):
            geometry.append(step)
        elif not any(word in name for word in NOT_OF_IMAGES):
            loading.append(step)
    return Pipeline(loading, geometry, packing)


def image_reader(cfg: Config) -> ImageReader:
    """Build a reader that loads local image files as a config's test pipeline does."""
    steps = [dict(step) for step in split_pipeline(cfg).loading if type_name(step) != 'LoadImageFromNDArray']
    if not steps:
        return ImageReader()
    for step in steps:
        # Only the training data may be on remote storage; these files are local.
        for key in ('backend_args', 'file_client_args'):
            step.pop(key, None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        load = Compose(steps)
    return ImageReader(load, any(str(step.get('color_type', '')).startswith('grayscale') for step in steps))


def read_pixels(image: ImageLike, read: ImageReader, channels: int) -> np.ndarray:
    """Return the pixels of a file, or of an image already read, as ``read`` returns them."""
    if isinstance(image, np.ndarray):
        return check_channels(read.convert(image), channels)
    return check_channels(read(image), channels, os.fspath(image))


def check_channels(pixels: np.ndarray, channels: int, where: str = 'the image') -> np.ndarray:
    """Return the image if it has the number of channels that the network takes.

    Raises:
        NetworkError: It has more or fewer.
    """
    found = 1 if pixels.ndim == 2 else pixels.shape[2]
    if found != channels:
        raise NetworkError(
            f'{where} has {found} channel{"s" if found > 1 else ""}, but the network takes {channels}: give images of '
            'the kind it was trained on, or change the number of channels that the loading step of the test pipeline '
            'reads (color_type, imdecode_backend)'
        )
    return pixels


def run_pipeline(pipeline: Compose, pixels: np.ndarray) -> np.ndarray:
    """Apply the geometric steps of a test pipeline to an image, RGB if it has three channels.

    Raises:
        NetworkError: The pipeline does not return one image.
    """
    shape = pixels.shape[:2]
    # OpenCV's order, as the pipelines load images.
    results = pipeline(dict(img=swap_channels(pixels), img_shape=shape, ori_shape=shape))
    if 'img' not in results:  # TestTimeAug returns several images
        raise NetworkError(
            f'the test pipeline ends with {type(pipeline.transforms[-1]).__name__}, which does not return one image: '
            'give the test pipeline without test-time augmentation (tools/test.py and tools/predict.py have --tta)'
        )
    return swap_channels(results['img'])


def fit_image(pixels: np.ndarray, size: Sequence[int], crop_ratio: float = 1.0) -> np.ndarray:
    """Resize an image to cover ``size`` (height, width) and crop the centre, keeping its aspect ratio.

    Args:
        pixels (np.ndarray): ``(H, W)`` or ``(H, W, C)``; values other than uint8 become float32.
        size (Sequence[int]): Height and width wanted.
        crop_ratio (float): Fraction of the covering square that the crop keeps, as in evaluation on ImageNet.
    """
    from PIL import Image, ImageOps

    height, width = size
    if height < 1 or width < 1:
        raise NetworkError(f'size is {height}x{width}, expected a height and width of at least 1 pixel')
    pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    # Pillow resizes images of three channels only if they have 8 bits.
    channels = [pixels] if pixels.ndim == 2 or _is_rgb(pixels) else list(np.moveaxis(pixels, 2, 0))
    fitted = [
        np.array(
            ImageOps.fit(
                Image.fromarray(np.ascontiguousarray(channel)),
                (width, height),
                Image.Resampling.BICUBIC,
                bleed=(1 - crop_ratio) / 2,
            )
        )
        for channel in channels
    ]
    return fitted[0] if channels[0] is pixels else np.stack(fitted, 2)


def _is_rgb(pixels: np.ndarray) -> bool:
    return pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


def pad_image(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pad an image to ``size`` (height, width) on the right and below, as data preprocessors do."""
    rows, columns = size[0] - pixels.shape[0], size[1] - pixels.shape[1]
    if rows < 0 or columns < 0:
        raise NetworkError(
            f'the data preprocessor changed the image from {pixels.shape[:2]} to {tuple(size)} pixels (height, '
            'width), expected no reduction: give a size that it does not change'
        )
    return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), constant_values=PADDING)
