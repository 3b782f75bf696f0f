"""Annotations in COCO's format: what mmdet skips in silence is counted, what would end training is refused."""

import math
from collections import defaultdict
from typing import Any, Dict, List, Tuple

#: Examples of one kind of fault in a message.
SHOWN = 3
#: mmdet trains on without these instances, or with what of them is inside the image.
SKIPPED = {
    'category': 'have a category_id that the file does not define',
    'image': 'belong to an image_id that the file does not list',
    'empty': 'have an empty box (a side below 1 pixel, or area 0)',
    'outside': 'have a box outside its image',
    'polygon': 'have no polygon of three points or more',
    'beyond': 'have polygon points beyond their image, which are cut off',
}
#: mmdet would end, at some iteration, with an error that names no instance.
FATAL = {
    'keys': 'lack one of image_id, category_id, bbox, area',
    'box': 'have a bbox that is not four finite numbers',
    'mask': 'have no segmentation, which the pipeline loads (with_mask=True)',
    'far': 'have polygon points far beyond their image, or that are not numbers',
    'rle': 'have a mask of another size than their image',
}


def coco_faults(content: dict, with_masks: bool) -> Tuple[List[str], List[str]]:
    """Check every instance.

    Args:
        content (dict): A file in COCO's format.
        with_masks (bool): Whether masks will be loaded.

    Returns:
        tuple[list[str], list[str]]: What ends training, and what is skipped; a line for each kind, with the count and
        the first ids.

    Raises:
        KeyError, TypeError: It is not in COCO's format.
    """
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    found: Dict[str, list] = defaultdict(list)
    instances = content.get('annotations', [])
    for number, instance in enumerate(instances):
        fault = instance_fault(instance, sizes, categories, with_masks)
        if fault:
            found[fault].append(instance.get('id', f'number {number}'))
    lines = []
    for kinds in (FATAL, SKIPPED):
        lines.append(
            [
                f'{len(found[kind])} of {len(instances)} annotations {words} (ids '
                f'{", ".join(map(str, found[kind][:SHOWN]))}{", ..." if len(found[kind]) > SHOWN else ""})'
                for kind, words in kinds.items()
                if kind in found
            ]
        )
    ids = [instance.get('id') for instance in instances]
    if len(set(ids)) < len(ids):
        lines[0].append(f'{len(ids) - len(set(ids))} of {len(ids)} annotations have no id of their own')
    if len(sizes) < len(content['images']):
        lines[0].append(
            f'{len(content["images"]) - len(sizes)} of {len(content["images"])} images have the id of another'
        )
    return lines[0], lines[1]


def instance_fault(instance: dict, sizes: dict, categories: set, with_masks: bool) -> str:
    """Return the kind of fault of one instance, of ``FATAL`` or ``SKIPPED``; empty without a fault."""
    if not {'image_id', 'category_id', 'bbox', 'area'} <= set(instance):
        return 'keys'
    if instance['image_id'] not in sizes:
        return 'image'
    width, height = sizes[instance['image_id']]
    box = instance['bbox']
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or not _is_number(instance['area']):
        return 'box'
    x, y, w, h = box
    if instance['category_id'] not in categories:
        return 'category'
    if instance['area'] <= 0 or w < 1 or h < 1:
        return 'empty'
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return 'outside'
    return mask_fault(instance.get('segmentation'), width, height) if with_masks else ''


def mask_fault(mask: Any, width: int, height: int) -> str:
    """Return the kind of fault of a mask (polygons or run lengths), as for :func:`instance_fault`."""
    if not mask:
        return 'mask'
    if isinstance(mask, dict):
        return '' if list(mask.get('size', ())) == [height, width] else 'rle'
    points = [value for polygon in mask if isinstance(polygon, list) for value in polygon]
    # Points are drawn in time and memory that grow with the distance between them.
    if not all(map(_is_number, points)) or any(abs(value) > 10 * max(width, height) for value in points):
        return 'far'
    if not any(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return 'polygon'
    return 'beyond' if min(points) < -1 or max(points) > max(width, height) + 1 else ''


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
