"""Segmentations in COCO's format: which ones the libraries cannot read, and why.

The libraries decide what can be read. This module selects the segmentations to test first (time is limited) and words
the messages.
"""

import copy
import math
import re
from collections import defaultdict
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from ..errors import origin
from .annotations import corners
from .limits import TimeLimit, spread

#: Seconds for choosing the masks that the libraries are to read, and for reading them.
SCREEN_SECONDS, READ_SECONDS = 2.0, 1.0
#: Maximum number of ordinary masks that the libraries are to read.
USUAL_READ = 64


class Mask(NamedTuple):
    """A segmentation and its annotation.

    Attributes:
        segmentation (list | dict): Polygons or run lengths, as the file has them; ``None`` if it has none.
        width (int): Width of the image.
        height (int): Height of the image.
        owner (Any): The annotation, or its instance in the data set.
        image_id (Any): Id of the image.
    """

    segmentation: Any
    width: int
    height: int
    owner: Any
    image_id: Any


def mask_kind(mask: Any, width: int, height: int) -> str:
    """Return what is unusual about a segmentation, without calling a library.

    Returns:
        str: ``''`` (nothing); ``'far'`` (points that are no numbers, or so far outside that drawing takes too long);
        ``'size'`` (run lengths that are for another size, do not fill their size or are truncated, which some libraries
        read nevertheless); ``'beyond'`` (points outside the image); or ``'unusual'``.
    """
    if isinstance(mask, dict):
        if size_of(mask) != [height, width]:
            return 'size'
        filled = pixels(mask)
        if filled is None:
            return 'size' if isinstance(mask.get('counts'), (str, bytes)) else 'unusual'
        return '' if filled == height * width else 'size'
    if not isinstance(mask, list) or not mask:
        return 'unusual'
    kind, side = '', max(width, height)
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            kind = 'unusual'
            if not isinstance(polygon, list) or not polygon:
                continue
        try:
            low, high, total = min(polygon), max(polygon), sum(polygon)
        except TypeError:
            return 'far'
        # The time and memory to draw points grow with the distance between them.
        if not (-10 * side <= low and high <= 10 * side and math.isfinite(total)):
            return 'far'
        if not kind and (low < -1 or high > side + 1):
            kind = 'beyond'
    return kind


def size_of(mask: dict) -> Any:
    """Return the size of run lengths as a list, or as it is if it is no sequence."""
    size = mask.get('size')
    return list(size) if isinstance(size, (list, tuple)) else size


def pixels(mask: dict) -> Optional[float]:
    """Return the sum of run lengths; ``None`` if there are none, or some are not numbers.

    pycocotools also reads run lengths that end too early, and fills the rest with uninitialized memory.
    """
    counts = mask.get('counts')
    if isinstance(counts, (str, bytes)):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not counts:
        return None
    try:
        return sum(counts)
    except TypeError:
        return None


def run_lengths(counts: Union[str, bytes]) -> Optional[List[int]]:
    """Decode COCO's compressed run lengths; ``None`` if they are invalid.

    Each character (code minus 48) has five bits of a number, the lowest first, and a bit that tells whether more
    follow. From the fourth length on, the number is the difference to the length two before.
    """
    try:
        numbers = counts.encode('ascii') if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        return None
    lengths: List[int] = []
    value = shift = 0
    for number in numbers:
        bits = number - 48
        if not 0 <= bits < 64 or shift > 60:  # more than the 64 bits of a number
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(lengths) > 2:
            value += lengths[-2]
        if value < 0:
            return None
        lengths.append(value)
        value = shift = 0
    return None if shift else lengths


def describe_mask(mask: Any, width: int, height: int, message: str) -> str:
    """Describe why a library cannot read a segmentation.

    Args:
        mask (list | dict): The segmentation.
        width (int): Width of its image.
        height (int): Height of its image.
        message (str): Error message of the library.
    """
    if not mask:
        return 'it is missing or empty'
    if not (isinstance(width, int) and isinstance(height, int)):
        return f'its image has width {width!r} and height {height!r}, expected integers'
    if isinstance(mask, dict):
        size = size_of(mask)
        if size != [height, width]:
            return f'its size is {size!r}, but its image has {[height, width]} (height, width)'
        filled = pixels(mask)
        if filled is None and isinstance(mask.get('counts'), (str, bytes)):
            return "its compressed run lengths are empty, truncated or not in COCO's format"
        if filled not in (None, height * width):
            return f'its run lengths cover {filled} pixels, but its size {size} (height, width) has {height * width}'
        return message
    if not isinstance(mask, list):
        kind = 'text' if isinstance(mask, str) else f'{mask!r:.60}'
        return f'it is {kind}, expected a list of polygons or run lengths (a dict with size and counts)'
    if any(isinstance(polygon, dict) for polygon in mask):
        return 'it is a list of run lengths, expected one dict with size and counts'
    if not all(isinstance(polygon, list) for polygon in mask):
        return f'it is a flat list, not a list of polygons; {message}'
    if any(len(polygon) < 6 for polygon in mask):
        return f'a polygon has fewer than three points; {message}'
    return message


def describe_distant_points(mask: List[Any]) -> str:
    """Describe polygons whose points cannot be drawn."""
    points = [point for polygon in mask if isinstance(polygon, list) for point in polygon]
    if points and all(isinstance(point, (list, dict)) for point in points):
        return f'its points are {points[0]!r}, ..., expected the numbers x1, y1, x2, y2, ... one after the other'
    if any(isinstance(point, str) for point in points):
        return f'its points are text, such as {points[0]!r}, expected numbers'
    return 'it has points far outside its image, or points that are not numbers'


def check_masks(
    masks: Sequence[Mask], read: Callable[[Mask], str], limit: TimeLimit, what: str
) -> Tuple[Dict[str, List[Mask]], List[Mask]]:
    """Let a library read segmentations: all unusual ones and some others, within the time limit.

    Args:
        masks (sequence of Mask): All of a file.
        read (callable): Lets a library read one and returns the error message, or an empty string.
        limit (TimeLimit): Time limit of all checks.
        what (str): The file, for messages.

    Returns:
        tuple: Error message -> segmentations; and readable segmentations with points outside their image.
    """
    found: Dict[str, List[Mask]] = defaultdict(list)
    kinds: Dict[str, str] = {}

    def message_of(message: str) -> str:
        """Return the description of the first mask with this message; those of other masks differ only in numbers."""
        return kinds.setdefault(re.sub(r"\[[^\]]*\]|'[^']*'|\d+", '', message), message)

    unusual: List[Mask] = []
    beyond: List[Mask] = []
    for mask in limit.part(masks, SCREEN_SECONDS, f'{what}: segmentations checked'):
        kind = mask_kind(mask.segmentation, mask.width, mask.height)
        if kind == 'far':
            found[message_of(describe_distant_points(mask.segmentation))].append(mask)
        elif kind == 'size':
            found[message_of(describe_mask(mask.segmentation, mask.width, mask.height, ''))].append(mask)
        elif kind == 'unusual':
            unusual.append(mask)
        elif kind:
            beyond.append(mask)
    first = [*unusual, *spread(beyond, USUAL_READ), *spread(masks, USUAL_READ)]
    known = {id(mask) for faults in found.values() for mask in faults}
    chosen = [mask for mask in {id(mask): mask for mask in first}.values() if id(mask) not in known]
    for mask in limit.part(chosen, READ_SECONDS, f'{what}: unusual segmentations read'):
        message = read(mask)
        if message:
            found[message_of(message)].append(mask)
    return dict(found), beyond


def loading_step_reader(step: Any) -> Callable[[Mask], str]:
    """Return a function that loads a mask with the pipeline step ``LoadAnnotations(with_mask=True)``."""
    step = copy.copy(step)
    step.with_seg = False

    def read(mask: Mask) -> str:
        size = (mask.height, mask.width)
        sample = dict(ori_shape=size, img_shape=size, height=size[0], width=size[1], instances=[dict(mask.owner)])
        try:
            results = step(sample)
        except Exception as error:
            # Broad, because the libraries have no special error for this.
            return describe_mask(mask.segmentation, mask.width, mask.height, _reason(error))
        flags = results.get('gt_ignore_flags')
        if flags is None or len(flags) == 0:  # a step that loads no objects, as of images without labels
            return ''
        return '' if bool(flags[0]) == bool(mask.owner['ignore_flag']) else 'skipped'

    return read


def _reason(error: Exception) -> str:
    """Return an error as part of a sentence."""
    kind, message, _ = origin(error)
    return f'{kind}: {message.rstrip(".")}' if message else kind


def metric_reader(api: Any) -> Callable[[Mask], str]:
    """Return a function that reads an annotation's mask with pycocotools, as a metric does."""
    from pycocotools import mask as masks

    def read(mask: Mask) -> str:
        try:
            masks.area(api.annToRLE(mask.owner))
        except Exception as error:
            # Broad, because pycocotools has no special error for this.
            return describe_mask(mask.segmentation, mask.width, mask.height, _reason(error))
        return ''

    return read


def annotation_ids(api: Any, masks: Sequence[Mask]) -> List[Any]:
    """Return the annotation ids of instances of a data set."""
    return [
        next(
            (
                annotation.get('id')
                for annotation in api.imgToAnns.get(mask.image_id, ())
                if corners(annotation.get('bbox')) == tuple(mask.owner['bbox'])
            ),
            f'of image {mask.image_id}',
        )
        for mask in masks
    ]
