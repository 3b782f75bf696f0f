"""Finding, checking and reading image files: the one reader, which gives what training sees."""

import os
import warnings
from pathlib import Path
from typing import Iterable, List, Optional, Tuple, Union

import numpy as np

from .errors import UserError

PathLike = Union[str, 'os.PathLike[str]']

#: Endings of what the inferencers of the three libraries take for an image.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
#: Endings of videos.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
#: Kinds, by Pillow's names, that are decoded of unknown origin. Others (EPS, ...) would start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'TIFF', 'WEBP')
#: The entry of EXIF data that says how to turn an image; from 5 on width and height change places.
EXIF_ORIENTATION = 274
#: How files of a kind begin and, when nothing is missing, end.
ENDINGS = ((b'\xff\xd8', b'\xff\xd9'), (b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'))


class ImageError(UserError):
    """An image that is missing or cannot be read, or a path that stands for none."""


def read_image(path: PathLike) -> np.ndarray:
    """Read an image as the default loading step of mmpretrain, mmdet and mmseg does.

    Args:
        path (str | os.PathLike): The file.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB, turned as its EXIF data says.

    Raises:
        ImageError: It is missing, empty, truncated, or no image.
    """
    problem = image_problem(path)
    if problem:
        raise ImageError(problem)
    pixels = _decode(path)
    if pixels is None:
        raise ImageError(
            f'{path} is not decoded by OpenCV, which training reads images with: convert it to PNG or JPEG'
        )
    return pixels


def read_untrusted_image(path: PathLike, name: str, max_bytes: int, max_pixels: int) -> np.ndarray:
    """Read an image of unknown origin, as :func:`read_image` does, within limits.

    Args:
        path (str | os.PathLike): The file. It is decoded as what it contains, whatever it is called.
        name (str): What messages call it: they are for the person who sent it.
        max_bytes (int): Of the file.
        max_pixels (int): Of the image; checked before anything is decoded.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB, turned as its EXIF data says.

    Raises:
        ImageError: Too large, truncated, or no image of a kind in :data:`FORMATS`.
    """
    from PIL import Image

    size = os.path.getsize(path)
    if size > max_bytes:
        raise ImageError(
            f'{name} has {size / 2**20:.1f} MiB, expected at most {max_bytes / 2**20:.0f} MiB. Save it smaller.'
        )
    if not size:
        raise ImageError(f'{name} is empty.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's own, lower limit
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height <= max_pixels:
                    image.load()
    except Image.DecompressionBombError:
        raise ImageError(
            f'{name} decodes to far more than the {max_pixels / 1e6:.0f} million pixels that are accepted.'
        ) from None
    except Exception as error:
        # Broad, because corrupt bytes make decoders fail in any way there is.
        raise ImageError(
            f'{name} does not open as an image: it is corrupt, truncated, or of another kind than '
            f'{", ".join(FORMATS[:-1])} and {FORMATS[-1]}.'
        ) from error
    if width * height > max_pixels:
        raise ImageError(
            f'{name} has {width}x{height} pixels, expected at most {max_pixels / 1e6:.0f} million. Save it smaller.'
        )
    pixels = _decode(path)
    if pixels is None:
        raise ImageError(f'{name} is not decoded by OpenCV: save it as PNG or JPEG.')
    return pixels


def _decode(path: PathLike) -> Optional[np.ndarray]:
    """Decode a file as the default loading step of the libraries does, in RGB; ``None`` if OpenCV cannot."""
    import mmcv

    pixels = mmcv.imfrombytes(Path(path).read_bytes(), flag='color', channel_order='rgb', backend='cv2')
    return None if pixels is None else np.ascontiguousarray(pixels)


def list_images(folder: PathLike, suffixes: Iterable[str] = IMAGE_SUFFIXES, recursive: bool = True) -> List[str]:
    """List the images in a folder.

    Args:
        folder (str | os.PathLike): The folder; symbolic links are followed.
        suffixes (Iterable[str]): Endings of their names, in small letters.
        recursive (bool): Also list those in folders below it.

    Returns:
        list[str]: Sorted paths; hidden files are no images.
    """
    suffixes = tuple(suffixes)
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        if not recursive:
            folders.clear()
        found += [
            os.path.join(parent, name) for name in names if name.lower().endswith(suffixes) and not name.startswith('.')
        ]
    return sorted(found)


def find_images(path: PathLike, recursive: bool = False) -> List[str]:
    """Find the images that a path given by a user stands for.

    Args:
        path (str | os.PathLike): An image, or a folder of images.
        recursive (bool): Also find those in folders below it.

    Returns:
        list[str]: Sorted paths, at least one.

    Raises:
        ImageError: The path does not exist, is not an image by its name, or is a folder without images.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        found = list_images(path, recursive=recursive)
        if not found:
            raise ImageError(f'no images ({", ".join(IMAGE_SUFFIXES)}) {"below" if recursive else "in"} {path}')
        return found
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image or a folder of images')
    if not path.lower().endswith(IMAGE_SUFFIXES):
        raise ImageError(f'{path} is not an image by its name, expected one that ends in {", ".join(IMAGE_SUFFIXES)}')
    return [path]


def find_inputs(path: PathLike) -> Tuple[List[str], Optional[str]]:
    """Find the images that a path stands for, or a video.

    Args:
        path (str | os.PathLike): An image, a video, or a folder of images.

    Returns:
        tuple[list[str], str | None]: Paths of images, and that of a video; one of them is empty.

    Raises:
        ImageError: It does not exist, is neither, or a folder without images.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return find_images(path), None
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image, a folder of images or a video')
    if path.lower().endswith(VIDEO_SUFFIXES):
        return [], path
    if path.lower().endswith(IMAGE_SUFFIXES):
        return [path], None
    raise ImageError(
        f'{path} is neither an image ({", ".join(IMAGE_SUFFIXES)}) nor a video '
        f'({", ".join(VIDEO_SUFFIXES)}) by its name'
    )


def image_problem(path: PathLike) -> Optional[str]:
    """Return why an image cannot be used, in one line; ``None`` if it decodes completely.

    OpenCV, which the pipelines decode with, fills what a truncated JPEG lacks with grey; Pillow notices.
    """
    from PIL import Image

    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return f'{path} is empty (0 bytes): copy it again or remove it from the data set'
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return f'{path} does not exist: complete the data set, or correct data_root, data_prefix or the annotations'
    except Exception as error:
        # Broad, because corrupt bytes make decoders fail in any way there is.
        return f'{path} does not decode ({type(error).__name__}: {error}): copy it again or remove it from the data set'
    return None


def truncation_problem(path: PathLike) -> Optional[str]:
    """Return what :func:`image_problem` does, at the cost of reading a few bytes for files that are complete.

    A JPEG or PNG that ends as its kind ends is taken to be complete. One that does not is decoded: bytes may follow
    the image. Other kinds are left to the decoders, which refuse truncated files.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
            for start, end in ENDINGS:
                if head.startswith(start):
                    file.seek(-len(end), os.SEEK_END)
                    return None if file.read() == end else image_problem(path)
            return None if head else image_problem(path)
    except OSError:
        return image_problem(path)


def image_size(path: PathLike) -> Tuple[int, int]:
    """Return the width and height of an image as training sees it (turned as its EXIF data says), from its header.

    Raises:
        OSError: It is missing or no image; corrupt bytes may raise other errors of Pillow.
    """
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(EXIF_ORIENTATION, 1) >= 5 else (width, height)


def read_labels(path: PathLike) -> List[int]:
    """Return the different values in a map of labels; of an image of colours none."""
    from PIL import Image

    with Image.open(path) as image:
        return np.unique(np.asarray(image)).tolist() if image.mode != 'RGB' else []
