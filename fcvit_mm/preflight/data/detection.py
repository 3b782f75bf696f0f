"""Data sets for detection: categories, objects and masks in COCO's format."""

import math
from itertools import chain
from typing import Any, Dict, List, Sequence, Set

from ..annotations import (
    SKIPPED,
    are_centers,
    are_corners,
    count_line,
    fatal_annotations,
    is_box,
    misshapen_parts,
    normalize_name,
    other_type,
    shift_of,
    skipped_annotations,
)
from ..limits import TimeLimit, spread
from ..log import SHOWN, log_warning, shorten
from ..masks import Mask, annotation_ids, check_masks, loading_step_reader
from .boxes import report_areas, report_small_extent
from .kinds import is_coco, transforms_of

#: Maximum number of images whose boxes are checked for the form of two corners.
CORNER_IMAGES = 2000
#: Minimum fractions of objects at which repeated objects, and polygons that do not touch their boxes, are reported.
REPEATED, BESIDE = 0.05, 0.05
#: The same for polygons whose extent overlaps less with the box than this (intersection over union).
APART, SAME_EXTENT = 0.5, 0.5
#: Minimum fraction of ignored objects that is reported.
IGNORED_OBJECTS = 0.5


def category_problems(dataset: Any, api: Any) -> List[str]:
    """Check that the library gave each class the category of its name."""
    unusable = misshapen_parts({'categories': api.dataset.get('categories', [])})
    if unusable:
        return [f'{dataset.ann_file}: {line}: correct them' for line in unusable]
    classes = list(dataset.metainfo.get('classes') or ())
    names = [category['name'] for category in api.cats.values()]
    ambiguous = ambiguous_category(
        api.dataset.get('categories', []), classes, {each['category_id'] for each in api.anns.values()}
    )
    if ambiguous:
        return [f'{dataset.ann_file}: {ambiguous}']
    found = [api.cats[key]['name'] for key in dataset.cat_ids]
    unknown = [name for name in classes if name not in names]
    of_file = {normalize_name(name): name for name in names}
    similar = [
        f'{name!r} is {of_file[normalize_name(name)]!r} in the file'
        for name in unknown
        if normalize_name(name) in of_file
    ]
    if similar:
        return [
            f'metainfo.classes differs from the categories of {dataset.ann_file} in spaces, capitals, '
            f'Unicode form or type: '
            f'{shorten(similar)}: write the names as in the file'
        ]
    if unknown:
        # mmdet skips unknown classes and renumbers the others.
        return [
            f'metainfo.classes contains {shorten(unknown)}, which are not among the {len(names)} categories of '
            f'{dataset.ann_file} ({shorten(names)}): set metainfo=dict(classes=...) of the data set, in the order of '
            'the file'
        ]
    if found != classes:
        # mmdet numbers classes in the order of the file, whatever the order in metainfo.
        return [
            f'metainfo.classes ({shorten(classes)}) is in another order than the categories of {dataset.ann_file} '
            f'({shorten(found)}), or a name occurs twice, so names would be assigned to the wrong classes: use the '
            'order of the file'
        ]
    return []


def ambiguous_category(categories: List[dict], classes: Sequence[Any], used: Set[Any]) -> str:
    """Describe an id of several categories, or a class with several ids; empty if there is none.

    Args:
        categories (list[dict]): Those of a file.
        classes (sequence): Names of the classes of a data set.
        used (set): The ids that annotations have.
    """
    for key, other in (('id', 'name'), ('name', 'id')):
        others: Dict[Any, Dict[Any, None]] = {}
        for each in categories:
            others.setdefault(each[key], {})[each[other]] = None
        for value, found in others.items():
            if len(found) < 2 or key == 'name' and value not in classes:
                continue
            text = f'{len(found)} categories have the {key} {value!r} ({other}s {shorten(map(repr, found))})'
            empty = [each for each in found if each not in used]
            if key == 'name' and len(empty) == len(found) - 1:
                unused = shorten(map(repr, empty))
                return f'{text}: remove {unused}, without annotations (Roboflow writes one for a project)'
            return f'{text}: give each category one id and one name, and its annotations this id'
    return ''


def coco_problems(dataset: Any, everything: List[dict], api: Any) -> List[str]:
    """Check the loaded annotations of a data set; report skipped ones."""
    ann_file, number = dataset.ann_file, len(api.anns)
    problems = []
    if len(api.imgs) < len(api.dataset['images']) or number < len(api.dataset.get('annotations', ())):
        problems += [f'{ann_file}: {line}: correct or remove them' for line in fatal_annotations(api.dataset)]
    for kind, skipped in skipped_annotations(api, everything, dataset.cat_ids).items():
        shift = shift_of([each['category_id'] for each in api.anns.values()], api.cats) if kind == 'category' else 0
        if shift:
            end, than = ('first', 'higher') if shift > 0 else ('last', 'lower')
            words = f'{SKIPPED[kind]}, and none has the {end} one: categories are numbered from {min(api.cats)}'
            line = count_line([each['id'] for each in skipped], number, words)
            problems.append(f'{ann_file}: {line}, category_id one {than}: give both the same numbers')
            continue
        if kind == 'category' and {each['category_id'] for each in skipped} <= {
            each.get('name') for each in api.cats.values()
        }:
            words = f'{SKIPPED[kind]}: category_id is a name, such as {skipped[0]["category_id"]!r}'
            line = count_line([each['id'] for each in skipped], number, words)
            problems.append(f'{ann_file}: {line}: give the id of the category')
            continue
        typed = other_type([each['category_id'] for each in skipped], api.cats) if kind == 'category' else ''
        if typed:
            words = f'{SKIPPED[kind]}: category_id {typed}'
            problems.append(f'{ann_file}: {count_line([each["id"] for each in skipped], number, words)}: use one type')
            continue
        log_warning(
            f'{ann_file}: {count_line([each["id"] for each in skipped], number, SKIPPED[kind])}: mmdet skips them'
        )
    lost = [each['id'] for each in api.anns.values() if each['image_id'] not in api.imgs]
    if not number:
        log_warning(f'{ann_file} has no annotations')
    typed = other_type([api.anns[each]['image_id'] for each in lost], api.imgs)
    if typed:
        words = f'have an image_id that the file does not define: image_id {typed}'
        problems.append(f'{ann_file}: {count_line(lost, number, words)}: use one type')
    elif lost:
        words = 'have an image_id that the file does not define'
        log_warning(f'{ann_file}: {count_line(lost, number, words)}: mmdet skips them')
    divided_images(dataset, everything)
    repeated_objects(dataset)
    masks_beside_boxes(dataset)
    report_areas(dataset, api)
    report_small_extent(dataset)
    problems += box_form_problems(dataset)
    values = chain.from_iterable(each['bbox'] for info in dataset.data_list for each in info['instances'])
    if not all(map(math.isfinite, values)):
        wrong = [each['id'] for each in api.anns.values() if not is_box(each.get('bbox'))]
        problems.append(
            f'{ann_file}: {count_line(wrong, number, "have a bbox that is not four finite numbers")}: correct or '
            'remove them'
        )
    return problems


def divided_images(dataset: Any, everything: List[dict]) -> None:
    """Report images that a file lists several times with different objects."""
    entries: Dict[str, List[dict]] = {}
    for info in everything:
        entries.setdefault(info['img_path'], []).append(info)
    objects = {
        path: [sorted(each['bbox'] for each in info['instances']) for info in infos]
        for path, infos in entries.items()
        if len(infos) > 1
    }
    divided = [path for path, (first, *others) in objects.items() if any(each != first for each in others)]
    if divided:
        ids = [info['img_id'] for info in entries[divided[0]]]
        log_warning(
            f'{dataset.ann_file}: {len(divided)} images are listed several times with different objects '
            f'({divided[0]} with the ids {shorten(ids)}), so the objects of one entry are background in the other: '
            'merge them'
        )


def repeated_objects(dataset: Any) -> None:
    """Report objects that occur several times in an image, as after merging a file with itself."""
    infos = spread(dataset.data_list, CORNER_IMAGES)
    objects = [[(each['bbox_label'], *each['bbox']) for each in info['instances']] for info in infos]
    repeated = [len(each) - len(set(each)) for each in objects]
    number = sum(map(len, objects))
    if sum(repeated) >= max(2, REPEATED * number):
        first = next(info for info, times in zip(infos, repeated) if times)
        log_warning(
            f'{dataset.ann_file}: {sum(repeated)} of {number} checked objects have class and box of another one in the '
            f'same image (such as in {first["img_path"]}): remove the repetitions'
        )


def masks_beside_boxes(dataset: Any) -> None:
    """Report polygons that do not touch the box of their object, as with x and y exchanged or relative coordinates."""
    beside, apart, number = [], [], 0
    for info in spread(dataset.data_list, CORNER_IMAGES):
        for each in info['instances']:
            points = [point for polygon in mask_of(each) for point in polygon]
            if len(points) < 6 or len(points) % 2 or len(each['bbox']) != 4:  # rotated boxes of other libraries
                continue
            xs, ys = points[::2], points[1::2]
            try:
                extent = (min(xs), min(ys), max(xs), max(ys))
                common = overlap(extent, each['bbox'])
            except TypeError:  # points that are no numbers, which are reported elsewhere
                continue
            number += 1
            left, top, right, bottom = each['bbox']
            if extent[2] < left or extent[0] > right or extent[3] < top or extent[1] > bottom:
                beside.append(info['img_path'])
            elif common < SAME_EXTENT:
                apart.append(info['img_path'])
    if apart and len(apart) >= APART * number:
        log_warning(
            f'{dataset.ann_file}: {len(apart)} of {number} checked polygons have another extent than the box of their '
            f'object (in {apart[0]}): boxes or polygons may be shifted or scaled, or belong to different objects'
        )
    if beside and len(beside) >= BESIDE * number:
        log_warning(
            f'{dataset.ann_file}: {len(beside)} of {number} checked polygons do not touch the box of their object (in '
            f'{beside[0]}): x and y may be exchanged, coordinates may be relative to the image, or masks and boxes may '
            'belong to different objects'
        )


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (first, second)]
    return common / max(sum(areas) - common, 1e-9)


def mask_of(instance: dict) -> List[list]:
    """Return the polygons of an object; empty if it has run lengths or none."""
    mask = instance.get('mask')
    return [each for each in mask if isinstance(each, list)] if isinstance(mask, list) else []


def box_form_problems(dataset: Any) -> List[str]:
    """Check that boxes in COCO's format are left, top, width and height; report those that reach beyond their image."""
    infos = spread(dataset.data_list, CORNER_IMAGES)
    objects = [(each['bbox'], info) for info in infos for each in info['instances'] if is_box(each['bbox'])]
    boxes = [(left, top, right - left, bottom - top) for (left, top, right, bottom), _ in objects]
    sizes = [(info['width'], info['height']) for _, info in objects]
    for is_form, form in ((are_corners, '[x1, y1, x2, y2]'), (are_centers, '[center x, center y, width, height]')):
        if is_form(boxes, sizes):
            return [
                f'{dataset.ann_file}: bbox seems to be {form} (such as {list(boxes[0])}): read as [x, y, width, '
                'height], many boxes reach beyond their images, and read in this form none does. COCO format is [x, y, '
                'width, height]: convert them'
            ]
    beyond = [
        (box, info)
        for box, info in objects
        if min(box[:2]) < -1 or box[2] > info['width'] + 1 or box[3] > info['height'] + 1
    ]
    if beyond:
        (left, top, right, bottom), info = beyond[0]
        log_warning(
            f'{dataset.ann_file}: {len(beyond)} of {len(objects)} checked boxes reach beyond their image (such as '
            f'{[left, top, right - left, bottom - top]} in {info["img_path"]}, which is {info["width"]}x'
            f'{info["height"]}): correct them, unless only parts of the objects are in the images'
        )
    return []


def mask_problems(dataset: Any, api: Any, limit: TimeLimit) -> List[str]:
    """Check the masks of a data set with the loading step of its pipeline."""
    step = next((each for each in transforms_of(dataset) if getattr(each, 'with_mask', False)), None)
    if step is None:
        return []
    masks = [
        Mask(each.get('mask'), info['width'], info['height'], each, info['img_id'])
        for info in dataset.data_list
        for each in info['instances']
    ]
    found, beyond = check_masks(masks, loading_step_reader(step), limit, dataset.ann_file)
    number = len(masks)
    for words, faulty in (
        ('have a segmentation that mmdet skips (no polygon has three or more points)', found.pop('skipped', [])),
        ('have polygon points outside their image, which are clipped', beyond),
    ):
        if faulty:
            log_warning(f'{dataset.ann_file}: {count_line(annotation_ids(api, faulty[:SHOWN]), number, words)}')
    return [
        f'{dataset.ann_file}: '
        f'{count_line(annotation_ids(api, faulty), number, "have a segmentation that cannot be loaded")}: {reason}. '
        'Correct or remove them: polygons are [[x1, y1, x2, y2, x3, y3, ...], ...]'
        for reason, faulty in found.items()
    ]


def inverted_box_problems(dataset: Any, where: str) -> List[str]:
    """Check that boxes have positive width and height; mmdet skips others in COCO's format only."""
    wrong = [
        (info, each['bbox'])
        for info in dataset.data_list
        for each in info.get('instances') or ()
        if is_box(each.get('bbox')) and not (each['bbox'][0] < each['bbox'][2] and each['bbox'][1] < each['bbox'][3])
    ]
    if not wrong:
        return []
    shown = shorten((f'{list(box)} of {info.get("img_path")}' for info, box in wrong), 2)
    text = f'{where}: {len(wrong)} boxes have no width or height, or their corners are swapped ({shown})'
    if dataset.test_mode:
        log_warning(f'{text}: they count as missed')
        return []
    return [f'{text}: correct or remove them, expected left < right and top < bottom']


def ignored_object_problems(dataset: Any, where: str, api: Any) -> List[str]:
    """Check that not all objects of a training set are ignored, as crowds and difficult ones are."""
    objects = [each for info in dataset.data_list for each in info.get('instances') or ()]
    ignored = sum(bool(each.get('ignore_flag')) for each in objects)
    if dataset.test_mode or ignored < IGNORED_OBJECTS * len(objects) or not ignored:
        return []
    text = f'{where}: {ignored} of {len(objects)} objects are ignored in training (marked as crowd or difficult)'
    values = {repr(each.get('iscrowd')) for each in api.anns.values()} if is_coco(dataset, api) else set()
    # A text, such as '0', counts as true.
    way_out = 'mark only crowds with iscrowd=1' + (
        f'; "iscrowd" has the values {shorten(sorted(values))}, expected the numbers 0 and 1' if values else ''
    )
    if ignored == len(objects):
        return [f'{text}: nothing can be learned. Correct the annotations: {way_out}']
    log_warning(f'{text}: {way_out}')
    return []


def are_all_skipped(dataset: Any, everything: List[dict], api: Any) -> bool:
    """Check whether a COCO file has annotations of the data set's classes, or of unknown ones, and all are skipped."""
    if not is_coco(dataset, api) or any(info['instances'] for info in everything):
        return False
    others = [category for category in api.cats if category not in dataset.cat_ids]
    return any(each['category_id'] not in others for each in api.anns.values())
