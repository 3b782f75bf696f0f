"""Finding, checking and reading image files exactly as training does."""

import logging
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

import numpy as np
from mmengine.logging import print_log

from .errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PathLike = Union[str, 'os.PathLike[str]']

#: Endings of what the inferencers of the three libraries take for an image.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
#: Endings of arrays, which mmseg's ``LoadImageFromNpyFile`` reads; in a folder they count where there is no image.
ARRAY_SUFFIXES = ('.npy',)
#: Endings of images that users have and the libraries do not take in a folder.
OTHER_SUFFIXES = ('.gif', '.jfif', '.avif', '.jp2', '.heic', '.heif', '.jxl')
#: Endings of videos.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
#: Kinds, by Pillow's names, that are decoded of unknown origin. Others (EPS, ...) would start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'TIFF', 'WEBP')
#: The entry of EXIF data that says how to turn an image; from 5 on width and height change places.
EXIF_ORIENTATION = 274
#: How files of a kind begin and, when nothing is missing, end.
ENDINGS = ((b'\xff\xd8', b'\xff\xd9'), (b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'))
#: How TIFF files begin, those above 4 GiB too, and arrays of NumPy.
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
NPY = b'\x93NUMPY'
#: A step that loads images: takes a sample with ``img_path`` and returns it with ``img``.
Load = Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]
#: Held while Pillow's limit is lifted, which is one for the process.
_PILLOW_LIMIT = threading.Lock()


class ImageError(UserError):
    """An image is missing or cannot be read, or a path contains none."""


class ImageReader:
    """Reads images as the loading steps of a config do: any number of channels, of any kind.

    Args:
        load (callable, optional): The loading steps. Default: three channels of 8 bits by OpenCV, as
            ``LoadImageFromFile`` without arguments reads them.
        grey (bool): Whether they make one channel of colors.
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
            # Broad, because decoders fail in any way there is.
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


def sample_of(path: PathLike) -> Dict[str, Any]:
    """Return a sample of one image, as a data set gives it to its pipeline."""
    return dict(img_path=os.fspath(path), img_id=0, sample_idx=0)


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


def swap_channels(pixels: np.ndarray) -> np.ndarray:
    """Turn RGB into BGR, and BGR into RGB; an image of other than three channels stays as it is."""
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels


def display(pixels: np.ndarray) -> np.ndarray:
    """Convert an image with any channels and dtype to displayable RGB.

    Args:
        pixels (np.ndarray): From :class:`ImageReader`.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB. Of more than three channels the first three, as blue, green and red; of
        fewer the first. Values other than those of 8 bits are scaled from their smallest and largest.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in (1, 3):
        say_once(f'Images have {channels} channels: {"the first three are" if channels > 3 else "the first is"} shown.')
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


def reduce_image(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply an image's height and width by ``factor``; one of at least 1 returns the image as it is."""
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


@lru_cache(maxsize=None)
def say_once(text: str) -> None:
    """Log a line once."""
    print_log(text, logger='current', level=logging.INFO)


def allow_large_images() -> None:
    """Lift Pillow's pixel limit in this process, for the user's own data: libraries decode segmentation maps with it.

    Images of unknown origin have their own limits, see :func:`read_untrusted_image`.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None


def open_image(path: PathLike, formats: Optional[Tuple[str, ...]] = None) -> 'Image.Image':
    """Open an image of given formats with Pillow, of any size; it is decoded on use."""
    from PIL import Image

    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


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
        # Without Pillow's own limit, which may be lifted or not.
        with open_image(path, FORMATS) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.load()
    except Exception as error:
        # Broad, because corrupt bytes make decoders fail in any way there is.
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


def _decode(path: PathLike) -> Optional[np.ndarray]:
    """Decode a file as the default loading step of the libraries does, in BGR; ``None`` if OpenCV cannot."""
    import mmcv

    return mmcv.imfrombytes(Path(path).read_bytes(), flag='color', backend='cv2')


def list_images(folder: PathLike, suffixes: Iterable[str] = IMAGE_SUFFIXES, recursive: bool = True) -> List[str]:
    """List the images in a folder.

    Args:
        folder (str | os.PathLike): The folder; symbolic links are followed, except to folders above them.
        suffixes (Iterable[str]): Endings of their names, in small letters.
        recursive (bool): Also list those in folders below it.

    Returns:
        list[str]: Sorted paths; hidden files are no images.
    """
    suffixes = tuple(suffixes)
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder above would list its images dozens of times.
        folders[:] = [name for name in folders if recursive and not _is_loop(parent, name)]
        found += [
            os.path.join(parent, name) for name in names if name.lower().endswith(suffixes) and not name.startswith('.')
        ]
    return sorted(found)


def _is_loop(parent: str, name: str) -> bool:
    """Check whether a folder is a symbolic link to the folder it is in, or to one above."""
    path = os.path.join(parent, name)
    return os.path.islink(path) and os.path.join(os.path.realpath(parent), '').startswith(
        os.path.join(os.path.realpath(path), '')
    )


def find_images(path: PathLike, recursive: bool = False) -> List[str]:
    """Find the images of a path given by a user.

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
        found = list_images(path, recursive=recursive) or list_images(path, ARRAY_SUFFIXES, recursive)
        if not found:
            raise ImageError(f'no images ({", ".join(IMAGE_SUFFIXES)}) {"below" if recursive else "in"} {path}')
        return found
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image or a folder of images')
    if not path.lower().endswith(IMAGE_SUFFIXES + ARRAY_SUFFIXES):
        raise ImageError(
            f'{path} does not have the name of an image, expected one that ends in {", ".join(IMAGE_SUFFIXES)}'
        )
    return [path]


def find_inputs(path: PathLike) -> Tuple[List[str], Optional[str]]:
    """Find the images of a path, or a video.

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
    if path.lower().endswith(IMAGE_SUFFIXES + ARRAY_SUFFIXES):
        return [path], None
    raise ImageError(
        f'{path} has the name of neither an image ({", ".join(IMAGE_SUFFIXES)}) nor a video '
        f'({", ".join(VIDEO_SUFFIXES)}): give a file that ends in one of these'
    )


def image_problem(path: PathLike, read: Optional[Callable[[str], Any]] = None) -> Optional[str]:
    """Return why an image cannot be used, in one line; ``None`` if it decodes completely.

    OpenCV, which the pipelines decode with, fills what a truncated JPEG lacks with grey; Pillow notices.

    Args:
        path (str | os.PathLike): The file.
        read (callable, optional): The loader, which is tried first. Default: the library for its format: Pillow,
            tifffile, NumPy or OpenCV.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return f'{path} is empty (0 bytes): copy it again or remove it from the data set'
        if read is not None and read(str(path)) is None:
            raise ValueError('nothing was loaded')
        if read is None or not ends_completely(path):
            _decode_completely(path)
    except FileNotFoundError:
        return f'{path} does not exist: complete the data set, or correct data_root, data_prefix or the annotations'
    except Exception as error:
        # Broad, because corrupt bytes make decoders fail in any way there is.
        return (
            f'{path} cannot be decoded ({type(error).__name__}: {error}): copy it again or remove it from the data set'
        )
    return None


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
        # Broad, because corrupt bytes make decoders fail in any way there is. Pillow refuses what others read.
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
            # Broad, because there need be no tifffile, and decoders fail in any way there is.
            pass
    try:
        with open_image(path):
            known = not head.startswith(TIFF)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        known = False
    return not known and cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None


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
        # Broad, because corrupt bytes make decoders fail in any way there is.
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


def truncation_problem(path: PathLike) -> Optional[str]:
    """Return the result of :func:`image_problem`, reading only a few bytes of complete files.

    A file that ends as its kind ends is taken to be complete (:func:`ends_completely`). One that does not is decoded:
    bytes may follow the image.
    """
    try:
        return None if ends_completely(path) else image_problem(path)
    except OSError:
        return image_problem(path)


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
    if len(shape) == 3 and shape[2] < min(shape[:2]):  # of many bands, which Pillow refuses or takes for pages
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
        # Broad, because corrupt bytes make decoders fail in any way there is.
        return ()


def read_labels(path: PathLike) -> List[int]:
    """Return the distinct values in a segmentation map; empty for a color image."""
    with open_image(path) as image:
        return np.unique(np.asarray(image)).tolist() if image.mode != 'RGB' else []
