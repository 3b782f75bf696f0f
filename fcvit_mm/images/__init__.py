"""Finding, checking and reading image files as training does: the only code of this package that does any of these.

Training itself reads images by the loading steps of the libraries, such as ``LoadImageFromFile``;
:mod:`fcvit_mm.engine.hooks.corrupt_samples` guards these steps.
"""

from .checking import (
    EXIF_ORIENTATION,
    ends_completely,
    image_problem,
    image_size,
    read_labels,
    size_and_orientation,
    truncation_problem,
)
from .contents import other_content
from .finding import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    VIDEO_SUFFIXES,
    find_images,
    find_inputs,
    list_images,
    walk_entries,
)
from .opening import ImageError, PathLike, allow_large_images, open_image, open_video
from .reading import (
    ImageReader,
    display,
    log_once,
    read_image,
    read_untrusted_image,
    reduce_image,
    report_lost_frames,
    sample_of,
    swap_channels,
)

__all__ = [
    'ARRAY_SUFFIXES',
    'EXIF_ORIENTATION',
    'IMAGE_SUFFIXES',
    'ImageError',
    'ImageReader',
    'OTHER_SUFFIXES',
    'PathLike',
    'VIDEO_SUFFIXES',
    'allow_large_images',
    'display',
    'ends_completely',
    'find_images',
    'find_inputs',
    'image_problem',
    'image_size',
    'list_images',
    'open_image',
    'open_video',
    'other_content',
    'read_image',
    'read_labels',
    'read_untrusted_image',
    'reduce_image',
    'report_lost_frames',
    'sample_of',
    'log_once',
    'size_and_orientation',
    'swap_channels',
    'truncation_problem',
    'walk_entries',
]
