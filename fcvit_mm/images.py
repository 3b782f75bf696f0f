"""Finding, checking and reading image files: the one reader, which gives what training sees."""

import os
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np

from .errors import UserError

PathLike = Union[str, 'os.PathLike[str]']

#: Endings of what the inferencers of the three libraries take for an image.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
#: Endings of videos.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
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
    import mmcv

    problem = image_problem(path)
    if problem:
        raise ImageError(problem)
    image = mmcv.imfrombytes(Path(path).read_bytes(), flag='color', channel_order='rgb', backend='cv2')
    if image is None:
        raise ImageError(
            f'{path} is not decoded by OpenCV, which training reads images with: convert it to PNG or JPEG'
        )
    return image


def find_images(path: PathLike, suffixes: Sequence[str] = IMAGE_SUFFIXES, recursive: bool = False) -> List[str]:
    """List the images that a path stands for, in order.

    Args:
        path (str | os.PathLike): An image, or a folder of images.
        suffixes (Sequence[str]): Endings of their names, in small letters.
        recursive (bool): Look into folders of folders, too.

    Returns:
        list[str]: Paths; hidden files are no images.

    Raises:
        ImageError: The path does not exist, is not an image by its name, or is a folder without images.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        found = list(_walk(path, tuple(suffixes), recursive))
        if not found:
            raise ImageError(f'no images ({", ".join(suffixes)}) in {path}')
        return found
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image or a folder of images')
    if not path.lower().endswith(tuple(suffixes)):
        raise ImageError(f'{path} is not an image by its name, expected one that ends in {", ".join(suffixes)}')
    return [path]


def _walk(folder: str, suffixes: Tuple[str, ...], recursive: bool) -> Iterable[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if not recursive:
            folders.clear()
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith('.'):
                yield os.path.join(parent, name)


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
        # Broad, because damaged bytes make decoders fail in any way there is.
        return f'{path} does not decode ({type(error).__name__}: {error}): copy it again or remove it from the data set'
    return None


def truncation_problem(path: PathLike) -> Optional[str]:
    """Return what :func:`image_problem` does, at the cost of reading a few bytes for files that are complete.

    A JPEG or PNG that ends as its kind ends is taken to be whole. One that does not is decoded: bytes may follow the
    image. Other kinds are left to the decoders, which refuse what is cut off.
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
    """Return the width and height of an image, from its header."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size
