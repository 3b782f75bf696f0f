"""Opening images of any size with Pillow, and the error of images."""

import os
import threading
from typing import TYPE_CHECKING, Any, Optional, Tuple, Union

from ..errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PathLike = Union[str, 'os.PathLike[str]']
#: Lock that is held while Pillow's pixel limit, which all threads share, is lifted.
_PILLOW_LIMIT = threading.Lock()


class ImageError(UserError):
    """An image is missing or cannot be read, or a path contains none."""


def allow_large_images() -> None:
    """Lift Pillow's pixel limit in this process, so that libraries decode large segmentation maps of the user.

    Images of unknown origin have their own limits, see :func:`~fcvit_mm.images.reading.read_untrusted_image`.
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


def open_video(path: PathLike) -> Any:
    """Open a video with OpenCV, which would end the process at a name that is not UTF-8.

    Args:
        path (str | os.PathLike): The file.

    Returns:
        cv2.VideoCapture: The video.

    Raises:
        ImageError: Its name is not UTF-8.
    """
    import cv2

    path = os.fspath(path)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f'the name of {path} is not UTF-8, which OpenCV needs of videos: rename it') from error
    return cv2.VideoCapture(path)
