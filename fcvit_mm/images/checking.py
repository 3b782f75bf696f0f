"""Checking image files: whether they are complete, their size, and the labels in segmentation maps."""

import errno
import os
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ..errors import UserError, advice_for
from .contents import other_content
from .opening import PathLike, open_image

#: EXIF tag of the orientation; from the value 5 on, width and height are exchanged.
EXIF_ORIENTATION = 274
#: First bytes of a file format, and its last bytes if the file is complete.
ENDINGS = ((b'\xff\xd8', b'\xff\xd9'), (b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'))
#: Error numbers of the system for too many open files, which says nothing about the file.
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
#: First bytes of TIFF files (BigTIFF included) and of NumPy arrays.
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
NPY = b'\x93NUMPY'


def image_problem(path: PathLike, read: Optional[Callable[[str], Any]] = None) -> Optional[str]:
    """Return why an image cannot be used, in one line; ``None`` if it decodes completely.

    OpenCV, with which the pipelines decode, fills the missing part of a truncated JPEG with grey; Pillow reports it.

    Args:
        path (str | os.PathLike): The file.
        read (callable, optional): The loader, which is tried first, with the path as it is given. Default: the library
            for its format: Pillow, tifffile, NumPy or OpenCV.

    Raises:
        UserError: This process or the machine has too many files open.
    """
    given, path = os.fspath(path), Path(path)  # a Path has no ./ and no double slashes, which the data set's paths may
    try:
        if path.is_dir():
            return f'{path} is a folder, expected an image: correct the name in the annotations, or remove it'
        if path.stat().st_size == 0:
            return f'{path} is empty (0 bytes): copy it again or remove it from the data set'
        if read is not None and read(given) is None:
            raise ValueError('nothing was loaded')
        if read is None or not ends_completely(path):
            _decode_completely(path)
    except FileNotFoundError:
        return f'{path} does not exist: complete the data set, or correct data_root, data_prefix or the annotations'
    except Exception as error:
        # Broad, because decoders raise any kind of error for corrupt files.
        if isinstance(error, OSError) and error.errno in TOO_MANY_OPEN:
            raise UserError(f'{path} cannot be opened: {error.strerror}. {advice_for(error)}') from error
        found = other_content(path)
        reason = f'{type(error).__name__}: {error}'
        kind = pixel_kind(path) if read is not None and not found else ''
        if kind:
            return (
                f'{path} cannot be loaded by the pipeline ({reason}), although the file is complete ({kind}): convert '
                'it to PNG with 8 or 16 bits, or set another imdecode_backend of the loading step'
            )
        return found or f'{path} cannot be decoded ({reason}): copy it again or remove it from the data set'
    return None


def pixel_kind(path: Path) -> str:
    """Return the kind of pixels of an image that Pillow decodes, with the mode; empty if it does not."""
    try:
        with open_image(path) as image:
            image.load()
            return f'{image.format}, mode {image.mode}'
    except Exception:
        # Broad, because decoders raise any kind of error for corrupt files.
        return ''


def _decode_completely(path: Path) -> None:
    """Decode a file with the library for its format, for any number of channels.

    Raises:
        Exception: It is corrupt, truncated, or of no known kind.
    """
    with open(path, 'rb') as file:
        head = file.read(8)
    if head.startswith(NPY):
        np.load(path)
        return
    if head.startswith(TIFF) and not ends_completely(path):
        raise ValueError('image file is truncated')
    try:
        with open_image(path) as image:
            image.load()
    except Exception:
        # Broad, because decoders raise any kind of error for corrupt files. Pillow refuses what others read.
        if not _others_decode(path, head):
            raise


def _others_decode(path: Path, head: bytes) -> bool:
    """Check whether tifffile decodes a TIFF, or OpenCV a file of a kind that Pillow does not know."""
    import cv2
    from PIL import Image, UnidentifiedImageError

    if head.startswith(TIFF):
        try:
            import tifffile

            return tifffile.imread(path).size > 0
        except Exception:
            # Broad, because tifffile may be missing, and decoders raise any kind of error.
            pass
    try:
        with open_image(path):
            known = not head.startswith(TIFF)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        known = False
    # From bytes, because OpenCV ends the process at a file name that is not UTF-8.
    return not known and cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) is not None


def truncation_problem(path: PathLike) -> Optional[str]:
    """Return the result of :func:`image_problem`, reading only a few bytes of complete files.

    A file that ends as its kind ends is taken to be complete (:func:`ends_completely`). One that does not is decoded:
    bytes may follow the image.
    """
    try:
        return None if ends_completely(path) else image_problem(path)
    except OSError:
        return image_problem(path)


def ends_completely(path: PathLike) -> bool:
    """Check, by reading a few bytes, whether a file has the length that its format specifies.

    Implemented for JPEG, PNG, BMP, WebP, TIFF and NumPy arrays; for other formats the decoders reject truncated files.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(12)
        for start, end in ENDINGS:
            if head.startswith(start):
                file.seek(-min(len(end), size), os.SEEK_END)
                return file.read() == end
    if head.startswith(b'BM'):
        return int.from_bytes(head[2:6], 'little') <= size
    if head.startswith(b'RIFF'):
        return int.from_bytes(head[4:8], 'little') + 8 <= size
    try:
        if head.startswith(NPY):
            np.load(path, mmap_mode='r')
        elif head.startswith(TIFF):
            return _tiff_ends_completely(path, size)
    except Exception:
        # Broad, because decoders raise any kind of error for corrupt files.
        return False
    return bool(head) and not head.startswith((b'P5', b'P6'))


def _tiff_ends_completely(path: PathLike, size: int) -> bool:
    """Check the offsets of the images in a TIFF; without tifffile the decoders do it."""
    try:
        import tifffile
    except ImportError:
        return True
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.dataoffset is not None and series.dataoffset + series.nbytes > size:
            return False
        ends = [start + count for page in file.pages for start, count in zip(page.dataoffsets, page.databytecounts)]
        return max(ends) <= size


def image_size(path: PathLike) -> Tuple[int, int]:
    """Return width and height of an image as training sees it (after EXIF rotation), from its header.

    Raises:
        OSError: It is missing or no image; corrupt bytes may raise other errors of Pillow.
    """
    return size_and_orientation(path)[0]


def size_and_orientation(path: PathLike) -> Tuple[Tuple[int, int], int]:
    """Return the result of :func:`image_size`, and the EXIF orientation: 1 (none) to 8.

    Raises:
        OSError: As for :func:`image_size`.
    """
    with open(path, 'rb') as file:
        head = file.read(8)
    if head.startswith(NPY):
        height, width = np.load(path, mmap_mode='r').shape[:2]
        return (width, height), 1
    shape = _tiff_shape(path) if head.startswith(TIFF) else ()
    if len(shape) == 3 and shape[2] < min(shape[:2]):  # many bands, which Pillow rejects or treats as pages
        return (shape[1], shape[0]), 1
    with open_image(path) as image:
        width, height = image.size
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        return ((height, width) if orientation >= 5 else (width, height)), orientation


def _tiff_shape(path: PathLike) -> Tuple[int, ...]:
    """Return the shape of the array that tifffile reads; empty without tifffile, or if it reads none."""
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            return tuple(file.series[0].shape)
    except Exception:
        # Broad, because decoders raise any kind of error for corrupt files.
        return ()


def read_labels(path: PathLike) -> List[int]:
    """Return the distinct values in a segmentation map; empty for a color image, and for formats unknown to Pillow."""
    from PIL import UnidentifiedImageError

    with open(path, 'rb') as file:
        if file.read(len(NPY)) == NPY:
            return np.unique(np.load(path)).tolist()
    try:
        opened = open_image(path)
    except UnidentifiedImageError:
        return []
    with opened as image:
        return np.unique(np.asarray(image)).tolist() if image.mode != 'RGB' else []
