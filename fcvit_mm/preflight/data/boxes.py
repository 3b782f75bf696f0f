"""Boxes and areas in COCO's format that can be read, but are improbable: reported with a warning."""

from typing import Any, List, Tuple

from ..annotations import is_box, is_number
from ..limits import spread
from ..log import SHOWN, log_warning, shorten

#: Maximum number of annotations, and of images, that are checked.
ANNOTATIONS, IMAGES = 20000, 2000
#: Minimum fraction of annotations with wrong areas that is reported. An area is wrong if it is larger than the box,
#: up to rounding, or less than half the area of the polygon.
WRONG_AREAS, LARGER, SMALLER = 0.05, 1.1, 0.5
#: Part of the width and height within which the boxes of so many images with objects never all are.
EXTENT, ENOUGH = 0.55, 20


def report_areas(dataset: Any, api: Any) -> None:
    """Report areas that are larger than the box, or much smaller than the polygon."""
    larger: List[Tuple[dict, float]] = []
    smaller: List[Tuple[dict, float]] = []
    number = 0
    for each in spread(list(api.anns.values()), ANNOTATIONS):
        box, area = each.get('bbox'), each.get('area')
        if not is_box(box) or not is_number(area) or min(box[2:]) < 1 or area <= 0 or each.get('iscrowd'):
            continue
        number += 1
        if area > LARGER * (box[2] + 1) * (box[3] + 1):
            larger.append((each, box[2] * box[3]))
            continue
        covered = polygon_area(each.get('segmentation'))
        if area < SMALLER * (covered - 1):
            smaller.append((each, covered))
    for found, words in ((larger, 'above that of the box'), (smaller, 'far below that of the polygon')):
        if found and len(found) >= WRONG_AREAS * number:
            first, expected = found[0]
            log_warning(
                f'{dataset.ann_file}: {len(found)} of {number} checked annotations have an area {words} (ids '
                f'{shorten((each["id"] for each, _ in found), SHOWN)}; {first["id"]} has {first["area"]:.6g}, expected '
                f'about {expected:.6g}): COCO metrics divide objects into small, medium and large ones by area. '
                'Compute it from the masks, or as width * height'
            )


def polygon_area(segmentation: Any) -> float:
    """Return the area of a segmentation with a single polygon; 0 for others."""
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return 0.0
    points = segmentation[0]
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2 or not all(map(is_number, points)):
        return 0.0
    xs, ys = points[::2], points[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def report_small_extent(dataset: Any) -> None:
    """Report that all boxes are in the upper left quarter of their images, as boxes for images of half the size are."""
    infos = [
        info for info in spread(dataset.data_list, IMAGES) if any(is_box(each['bbox']) for each in info['instances'])
    ]
    if len(infos) < ENOUGH:
        return
    ends = [
        (each['bbox'][2] / max(info['width'], 1), each['bbox'][3] / max(info['height'], 1))
        for info in infos
        for each in info['instances']
        if is_box(each['bbox'])
    ]
    right, bottom = map(max, zip(*ends))
    if 0 < right <= EXTENT and 0 < bottom <= EXTENT:
        log_warning(
            f'{dataset.ann_file}: in all {len(infos)} checked images, the boxes end at {right:.0%} of the width and '
            f'{bottom:.0%} of the height. If they were drawn on smaller images, scale them to the size of these'
        )
