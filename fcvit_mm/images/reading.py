"""Reading images as the loading steps of a config do, also those of unknown origin, and preparing them for display."""

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
from mmengine.logging import print_log

from .checking import image_problem, truncation_problem
from .opening import ImageError, PathLike, open_image

#: A step that loads images: takes a sample with ``img_path`` and returns it with ``img``.
Load = Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]
#: Fraction of a video's frames that must be decoded, otherwise a message says how many were.
MIN_FRAMES = 0.9
#: Formats, by Pillow's names, in which images of unknown origin are decoded. Pillow starts programs for others (EPS).
FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'TIFF', 'WEBP')


class ImageReader:
    """Reader of images, by the loading steps of a config: any number of channels, of any kind.

    Args:
        load (callable, optional): The loading steps. Default: three channels of 8 bits by OpenCV, as
            ``LoadImageFromFile`` without arguments reads them.
        grey (bool): Whether the loading steps convert colors to one grey channel.
    """

    def __init__(self, load: Optional[Load] = None, grey: bool = False) -> None:
        self.load = load
        self.grey = grey

    def __call__(self, path: PathLike) -> np.ndarray:
        """Read an image.

        Args:
            path (str | os.PathLike): The file.

        Returns:
            np.ndarray: ``(H, W, 3)`` RGB if it has three channels; else ``(H, W)`` or ``(H, W, C)`` as loaded.

        Raises:
            ImageError: It is missing, empty, truncated, or cannot be loaded by these steps.
        """
        problem = truncation_problem(path)
        if problem:
            raise ImageError(problem)
        try:
            pixels = _decode(path) if self.load is None else (self.load(sample_of(path)) or {}).get('img')
        except Exception as error:
            # Broad, because decoders raise any kind of error.
            raise ImageError(
                image_problem(path)
                or f'{path} cannot be read by the loading steps of the config ({type(error).__name__}: {error}): '
                'give images of the kind it was trained on'
            ) from error
        if pixels is None:
            raise ImageError(
                image_problem(path)
                or f'{path} cannot be decoded by OpenCV, which training uses: convert it to PNG or JPEG, or load it '
                'with LoadImageFromFile(imdecode_backend="tifffile") or LoadImageFromNpyFile'
            )
        return swap_channels(pixels)

    def convert(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels as read from a file: converted to grey if images are read as grey."""
        if not self.grey or pixels.ndim < 3 or pixels.shape[2] != 3:
            return pixels
        import cv2

        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def read_image(path: PathLike) -> np.ndarray:
    """Read an image as the default loading step of mmpretrain, mmdet and mmseg does.

    Args:
        path (str | os.PathLike): The file.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB, rotated according to its EXIF data.

    Raises:
        ImageError: It is missing, empty, truncated, or not an image.
    """
    return ImageReader()(path)


def _decode(path: PathLike) -> Optional[np.ndarray]:
    """Decode a file as the default loading step of the libraries does, in BGR; ``None`` if OpenCV cannot."""
    import mmcv

    return mmcv.imfrombytes(Path(path).read_bytes(), flag='color', backend='cv2')


def sample_of(path: PathLike) -> Dict[str, Any]:
    """Return a sample of one image, as a data set gives it to its pipeline."""
    return dict(img_path=os.fspath(path), img_id=0, sample_idx=0)


def read_untrusted_image(
    path: PathLike, name: str, max_bytes: int, max_pixels: int, read: Optional[ImageReader] = None
) -> np.ndarray:
    """Read an image of unknown origin within limits.

    Args:
        path (str | os.PathLike): The file. It is decoded according to its content, not its name.
        name (str): Its name in messages, which are shown to the person who sent it.
        max_bytes (int): Maximum size of the file.
        max_pixels (int): Maximum size of the image; checked before decoding.
        read (ImageReader, optional): Reads it. Default: as :func:`read_image` does.

    Returns:
        np.ndarray: As ``read`` returns it, by default ``(H, W, 3)`` uint8 RGB, rotated according to its EXIF data.

    Raises:
        ImageError: Too large, truncated, or not an image of :data:`FORMATS`.
    """
    size = os.path.getsize(path)
    if size > max_bytes:
        raise ImageError(
            f'{name} has {size / 2**20:.1f} MiB, expected at most {max_bytes / 2**20:.0f} MiB. Save it smaller.'
        )
    if not size:
        raise ImageError(f'{name} is empty.')
    try:
        # Independent of Pillow's own limit, which may have been lifted.
        with open_image(path, FORMATS) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.load()
    except Exception as error:
        # Broad, because decoders raise any kind of error for corrupt files.
        raise ImageError(
            f'{name} cannot be opened as an image: it is corrupt, truncated, or not one of {", ".join(FORMATS[:-1])} '
            f'or {FORMATS[-1]}. Convert it.'
        ) from error
    if width * height > 10 * max_pixels:
        raise ImageError(
            f'{name} decodes to far more than the accepted {max_pixels / 1e6:.0f} million pixels. Save it smaller.'
        )
    if width * height > max_pixels:
        raise ImageError(
            f'{name} has {width}x{height} pixels, expected at most {max_pixels / 1e6:.0f} million. Save it smaller.'
        )
    try:
        return (read or ImageReader())(path)
    except ImageError as error:
        # The path is this machine's.
        raise ImageError(str(error).replace(os.fspath(path), name)) from error


def swap_channels(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB to BGR, or BGR to RGB, ``(H, W, 3)``; images of other than three channels stay unchanged."""
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels


def reduce_image(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply height and width of an image ``(H, W[, C])`` by ``factor``; for 1 or more it is returned unchanged."""
    import cv2

    if factor >= 1:
        return pixels
    height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
    # OpenCV resizes no integers of 32 bits, and at most 4 channels.
    pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    if pixels.ndim == 2 or pixels.shape[2] <= 4:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    channels = np.moveaxis(pixels, 2, 0)
    return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA) for each in channels], 2)


def display(pixels: np.ndarray) -> np.ndarray:
    """Convert an image with any channels and dtype to displayable RGB.

    Args:
        pixels (np.ndarray): From :class:`ImageReader`.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB. With more than three channels, the first three are shown as blue, green and
        red; with fewer, the first one is shown. Values that are not 8-bit are scaled to the range of the image.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in (1, 3):
        log_once(f'Images have {channels} channels: {"the first three are" if channels > 3 else "the first is"} shown.')
    if channels > 3:
        pixels = pixels[..., 2::-1]
    elif channels < 3:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, axis=2)
    if pixels.dtype != np.uint8:
        pixels = np.nan_to_num(pixels.astype(np.float32))
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 255 or high <= 1:
            pixels = (pixels - low) * (255 / max(high - low, 1e-12))
        pixels = pixels.round().astype(np.uint8)
    return np.ascontiguousarray(pixels)


@lru_cache(maxsize=None)
def log_once(text: str) -> None:
    """Log a line once."""
    print_log(text, logger='current', level=logging.INFO)


def report_lost_frames(video: str, number: int, expected: int) -> None:
    """Log how many frames of a video were decoded if many are missing, because it is truncated or corrupt.

    Not an error, because some containers only allow an estimate of the number.

    Args:
        video (str): Path of the video.
        number (int): Number of frames that were decoded.
        expected (int): Number of frames according to its header.
    """
    if number < expected * MIN_FRAMES:
        log_once(
            f'{video} is truncated or corrupt: {number} of about {expected} frames were decoded. Copy it again. OpenCV '
            'does not count lost frames, so later ones have smaller numbers'
        )
