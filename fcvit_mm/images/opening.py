"""Opening images of any size with Pillow, and the error of images."""

import os
import threading
from typing import TYPE_CHECKING, Optional, Tuple, Union

from ..errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PathLike = Union[str, 'os.PathLike[str]']
#: Held while Pillow's pixel limit, which all threads share, is lifted.
_PILLOW_LIMIT = threading.Lock()


class ImageError(UserError):
    """An image is missing or cannot be read, or a path contains none."""


def allow_large_images() -> None:
    """Lift Pillow's pixel limit in this process, for the user's own data: libraries decode segmentation maps with it.

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
