"""Annotations in COCO's format: which ones the libraries skip or reject, and why.

The libraries decide what is skipped or rejected; this module finds the reason and words the messages. Segmentations are
checked by :mod:`.masks`.
"""

import math
import unicodedata
from collections import Counter, defaultdict
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import numpy as np

from .log import shorten

#: Maximum number of examples of one problem in a message.
SHOWN = 3
#: Reasons why mmdet skips an annotation, by kind.
SKIPPED = {
    'ignore': 'are marked "ignore"',
    'category': 'have a category_id that the file does not define',
    'box': 'have a bbox that is not four finite numbers',
    'empty': 'have an empty box (a side below 1 pixel, or area 0)',
    'outside': 'have a box outside its image',
    'unknown': 'were not loaded by the data set',
}
#: Reasons why an annotation cannot be loaded, by kind.
FATAL = {
    'box': 'have a bbox that is not four finite numbers',
    'area': 'have an area that is not a finite number',
}
#: Minimum fraction of boxes beyond their image at which boxes count as two corners. Two corners, read as left, top,
#: width and height, reach beyond the image if the centre of the box is right of or below that of the image: on average
#: three of four boxes.
CORNERS_BEYOND = 0.25
#: The same for boxes given by their center, for objects of at least a tenth of the sides of their image.
CENTERS_BEYOND = 0.05
#: Minimum number of boxes for the statement that they are given by their center; fewer boxes may be objects that are
#: partly outside the image.
CENTERS = 10
#: Keys of annotations and images that the library reads.
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
IDS = ('id', 'image_id', 'category_id')
#: Keys that every file in COCO's format has.
PARTS = ('images', 'annotations', 'categories')


def count_line(ids: Sequence[Any], number: int, words: str) -> str:
    """Return a line that counts annotations, with the first ids."""
    return f'{len(ids)} of {number} annotations {words} (ids {shorten(ids, SHOWN)})'


def fatal_annotations(content: dict) -> List[str]:
    """Find annotations that cannot be loaded, and ids that are not unique.

    Args:
        content (dict): A file in COCO's format.

    Returns:
        list[str]: One line per kind, with the count and the first ids.

    Raises:
        KeyError, TypeError, AttributeError: The file is not in COCO's format.
    """
    misshapen = misshapen_parts(content)
    if misshapen:
        return misshapen
    annotations = content.get('annotations', [])
    found: Dict[str, list] = defaultdict(list)
    missing: Counter = Counter()
    examples: Dict[str, Any] = {}
    for number, annotation in enumerate(annotations):
        lacking = [key for key in ANNOTATION_KEYS if key not in annotation or key in IDS and annotation[key] is None]
        if lacking:
            missing.update(lacking)
            found['keys'].append(annotation.get('id', f'number {number}'))
        elif not is_box(annotation['bbox']):
            found['box'].append(annotation['id'])
            examples.setdefault('box', annotation['bbox'])
        elif not is_number(annotation['area']):
            found['area'].append(annotation['id'])
            examples.setdefault('area', annotation['area'])
    reasons = {kind: f'{words}, such as {examples.get(kind)!r:.60}' for kind, words in FATAL.items()}
    reasons['keys'] = f'lack {" or ".join(key for key in ANNOTATION_KEYS if key in missing)}'
    lines = [count_line(found[kind], len(annotations), words) for kind, words in reasons.items() if kind in found]
    incomplete = [
        image.get('id', f'number {number}')
        for number, image in enumerate(content['images'])
        if not set(IMAGE_KEYS) <= set(image)
    ]
    if incomplete:
        lacking = [key for key in IMAGE_KEYS if any(key not in image for image in content['images'])]
        lines.append(
            f'{len(incomplete)} of {len(content["images"])} images lack {" or ".join(lacking)} (ids '
            f'{shorten(incomplete, SHOWN)})'
        )
    for key, words, is_right in (
        ('file_name', 'text', lambda value: isinstance(value, str)),
        ('width', 'a number', is_number),
        ('height', 'a number', is_number),
    ):
        wrong = [image for image in content['images'] if key in image and not is_right(image[key])]
        if wrong:
            ids = [image.get('id') for image in wrong]
            lines.append(
                f'{len(wrong)} of {len(content["images"])} images have a {key} that is not {words}, such as '
                f'{wrong[0][key]!r} (ids {shorten(ids, SHOWN)})'
            )
    nameless = [each.get('id') for each in content.get('categories', []) if not {'id', 'name'} <= set(each)]
    if nameless:
        number = len(content['categories'])
        lines.append(f'{len(nameless)} of {number} categories lack id or name (ids {shorten(nameless, SHOWN)})')
    for items, name in ((annotations, 'annotations'), (content['images'], 'images')):
        times = Counter(each.get('id') for each in items)
        twice = [each for each, number in times.items() if number > 1 and each is not None]
        if twice:
            lines.append(f'{len(twice)} ids of {name} occur more than once ({shorten(twice, SHOWN)})')
    return lines


def misshapen_parts(content: dict) -> List[str]:
    """Find parts of COCO's format that are no lists of dicts, and ids and names that are lists or dicts."""
    lines: List[str] = []
    for part in PARTS:
        items = content.get(part, [])
        if not isinstance(items, list):
            lines.append(f'{part!r} is a {type(items).__name__}, expected a list')
            continue
        wrong = [each for each in items if not isinstance(each, dict)]
        if wrong:
            lines.append(f'{len(wrong)} of {len(items)} {part} are no dicts, such as {wrong[0]!r:.60}')
            continue
        for key in (*IDS, 'name'):
            several = [each for each in items if isinstance(each.get(key), (list, dict))]
            if several:
                lines.append(
                    f'{len(several)} of {len(items)} {part} have a list or dict as {key}, such as '
                    f'{several[0][key]!r:.60}, expected {"text" if key == "name" else "a number"}'
                )
    return lines


def normalize_name(name: Any) -> str:
    """Normalize the name of a class: without surrounding space, in lower case, in one Unicode form."""
    return unicodedata.normalize('NFC', str(name)).strip().casefold()


def other_type(given: Sequence[Any], known: Iterable[Any]) -> str:
    """Describe ids that are known ids of another type, such as ``'3'`` for ``3``; empty if they are not.

    Args:
        given (sequence): Ids that are not among the known ones.
        known (iterable): The known ids.
    """
    texts = {str(each): each for each in known}
    if not given or not all(str(each) in texts for each in given):
        return ''
    return f'{given[0]!r} is given as {type(given[0]).__name__}, but defined as {texts[str(given[0])]!r}'


def shift_of(used: Iterable[Any], categories: Iterable[Any]) -> int:
    """Return by how much category ids of annotations differ from those that a file defines: 1, -1, or 0.

    They differ by one if exactly one id is unknown, which is the one after the last or before the first known id, and
    the known id at the other end never occurs.
    """
    known, ids = set(categories), set(used)
    if len(known) < 2 or not all(isinstance(each, int) for each in (*known, *ids)):
        return 0
    low, high = min(known), max(known)
    if ids - known == {high + 1} and low not in ids:
        return 1
    return -1 if ids - known == {low - 1} and high not in ids else 0


def are_corners(boxes: Sequence[Sequence[float]], sizes: Sequence[Tuple[float, float]]) -> bool:
    """Check whether boxes are two corners, where left, top, width and height are expected.

    This is the case if, read as left, top, width and height, many reach beyond their image, and read as corners, all
    are inside it.

    Args:
        boxes (sequence): Four finite numbers each.
        sizes (sequence): Width and height of the image of each.
    """
    if not boxes:
        return False
    x, y, third, fourth = np.asarray(boxes, float).T
    width, height = np.asarray(sizes, float).T + 1  # some tools count from 1
    beyond = (x + third > width) | (y + fourth > height)
    inside = (x >= 0) & (x < third) & (third <= width) & (y >= 0) & (y < fourth) & (fourth <= height)
    return bool(beyond.mean() >= CORNERS_BEYOND and inside.all())


def are_centers(boxes: Sequence[Sequence[float]], sizes: Sequence[Tuple[float, float]]) -> bool:
    """Check whether boxes are center, width and height, where left, top, width and height are expected.

    This is the case if, read as left, top, width and height, some reach beyond the right or lower border of their
    image, and read as center, width and height, all are inside it. ``False`` for fewer than :data:`CENTERS` boxes.

    Args:
        boxes (sequence): Four finite numbers each.
        sizes (sequence): Width and height of the image of each.
    """
    if len(boxes) < CENTERS:
        return False
    x, y, across, down = np.asarray(boxes, float).T
    width, height = np.asarray(sizes, float).T
    beyond = (x + across > width + 1) | (y + down > height + 1)
    inside = (
        (x - across / 2 >= -1) & (x + across / 2 <= width + 1) & (y - down / 2 >= -1) & (y + down / 2 <= height + 1)
    )
    return bool(beyond.sum() >= max(2, CENTERS_BEYOND * len(boxes)) and inside.all())


def is_number(value: Any) -> bool:
    """Check whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_box(box: Any) -> bool:
    """Check whether a value is four finite numbers."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_number, box))


def corners(box: Any) -> Tuple[float, ...]:
    """Convert left, top, width and height of a box to left, top, right and bottom, as mmdet does; empty for others."""
    if not is_box(box):
        return ()
    x, y, width, height = box
    return (x, y, x + width, y + height)


def skipped_annotations(api: Any, infos: Iterable[dict], cat_ids: Sequence[Any]) -> Dict[str, list]:
    """Find the annotations that a data set skipped.

    Args:
        api (COCO): The file as pycocotools reads it.
        infos (iterable of dict): The data set's entry of each image.
        cat_ids (sequence): Categories of its classes. Annotations of other categories in the file are not reported.

    Returns:
        dict[str, list]: Kind of :data:`SKIPPED` -> annotations.
    """
    others = set(api.cats) - set(cat_ids)
    found: Dict[str, list] = defaultdict(list)
    for info in infos:
        annotations = api.imgToAnns.get(info['img_id'], ())
        if len(annotations) == len(info['instances']):
            continue
        left = Counter(tuple(each['bbox']) for each in info['instances'])
        for annotation in annotations:
            box = corners(annotation.get('bbox'))
            if left[box] > 0:
                left[box] -= 1
            elif annotation['category_id'] not in others:
                found[skip_reason(annotation, info, cat_ids)].append(annotation)
    return found


def skip_reason(annotation: dict, info: dict, cat_ids: Sequence[Any]) -> str:
    """Return the kind of :data:`SKIPPED` of an annotation that a data set skipped."""
    if annotation.get('ignore'):
        return 'ignore'
    if annotation['category_id'] not in cat_ids:
        return 'category'
    if not is_box(annotation.get('bbox')):
        return 'box'
    x, y, width, height = annotation['bbox']
    if width < 1 or height < 1:
        return 'empty'
    if min(x + width, info['width']) <= max(x, 0) or min(y + height, info['height']) <= max(y, 0):
        return 'outside'  # mmdet does not read the area of such annotations, which may be missing
    return 'empty' if annotation['area'] <= 0 else 'unknown'
