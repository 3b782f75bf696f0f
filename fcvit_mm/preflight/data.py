"""Checking a data set before a run: its library builds, lists and loads it; then it is compared with the model."""

import contextlib
import json
import os
import os.path as osp
import random
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from ..engine.config import type_name
from ..engine.hooks.corrupt_samples import CorruptSampleError, guard
from ..errors import UserError, advice_for, origin
from ..images import (
    IMAGE_SUFFIXES,
    image_problem,
    list_images,
    open_image,
    read_labels,
    size_and_orientation,
    truncation_problem,
)
from .annotations import (
    SKIPPED,
    Mask,
    annotation_ids,
    ask_loading_step,
    check_masks,
    count_line,
    fatal_annotations,
    is_box,
    skipped_annotations,
)
from .limits import SHOWN, TimeLimit, quiet, remark, shorten, spread

#: Images of each data set that are decoded before the start.
SAMPLE_SIZE = 64
#: Seconds for decoding these, for checking whether the other files are there and complete, and for their sizes; what
#: this does not reach is checked when training reads it.
DECODE_SECONDS, END_SECONDS, SIZE_SECONDS = 1.5, 1.5, 1.0
#: Samples that go through the pipeline before the start, and the seconds for them.
REHEARSED, REHEARSAL_SECONDS = 8, 1.5
#: Endings of images that users have, whether or not a data set takes them; seconds for finding those it does not take.
SUFFIXES, SUFFIX_SECONDS = (*IMAGE_SUFFIXES, '.gif', '.jfif', '.avif', '.jp2'), 1.0
#: What some editors put at the beginning of a text.
BYTE_ORDER_MARK = '\ufeff'
#: Part of the images, or one, that may have another size than annotated: training skips them, and in its validation
#: and in testing empty ones stand in.
TURNED = 0.01
#: Part of the objects from which on ignored ones are worth a warning.
IGNORED_OBJECTS = 0.5


class Leaf(NamedTuple):
    """A data set that loads samples, not a wrapper.

    Attributes:
        dataset (Dataset): The data set, with its list of samples unless there are problems.
        classes (sequence of str, optional): Their names, if they are known.
        problems (list[str]): Problems that a run would encounter.
        api (COCO, optional): Its annotation file as its library read it.
        raw (frozenset of int): Labels in the files of the checked segmentation maps.
        labels (frozenset of int): The same as loaded.
    """

    dataset: Any
    classes: Optional[Sequence[str]]
    problems: List[str]
    api: Any = None
    raw: FrozenSet[int] = frozenset()
    labels: FrozenSet[int] = frozenset()


def is_url(path: Any) -> bool:
    """Check whether a path is a URL."""
    return isinstance(path, str) and '://' in path


def is_remote(dataset: Any, prefixes: Dict[str, str]) -> bool:
    """Check whether a data set is not read from the disks of this machine."""
    backend = (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local')
    return backend != 'local' or any(map(is_url, [dataset.data_root, dataset.ann_file, *prefixes.values()]))


def build_problem(node: dict, error: Exception) -> str:
    """Describe why a data set or a wrapper cannot be built."""
    advice = advice_for(error)
    return f'{type_name(node)} cannot be built: {origin(error).message}' + f'. {advice}' * bool(advice)


def build(dataset_cfg: dict, limit: TimeLimit) -> Any:
    """Build a data set lazily, if it supports that."""
    with limit.pause(), quiet():
        try:
            return DATASETS.build(dict(dataset_cfg, lazy_init=True))
        except TypeError as error:
            if 'lazy_init' not in str(error):
                raise
        return DATASETS.build(dict(dataset_cfg))


def tolerated(number: int) -> float:
    """Return the number of images that may differ in size from their annotations."""
    return max(1, TURNED * number)


def check_leaf(dataset_cfg: dict, num_classes: Optional[int], allowed: float, limit: TimeLimit) -> Leaf:
    """Check one data set, by its own list of data and its own pipeline.

    Args:
        dataset_cfg (dict): Config of the data set, built in the current scope.
        num_classes (int, optional): Classes that the model can learn, to compare labels with.
        allowed (float): Fraction of images that may be corrupt; up to this, a warning is logged.
        limit (TimeLimit): Of all checks.
    """
    if not type_name(dataset_cfg):
        known = shorten(dataset_cfg, 3)
        return Leaf(None, None, [f'a data set ({known}) has no type: give its class, for example type="CustomDataset"'])
    given = (dataset_cfg.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and not is_url(given) and not osp.isfile(given):
        return Leaf(
            None,
            None,
            [
                f'metainfo.classes is the text {given!r}, expected a sequence of names or the path of a file with one '
                f'name per line: write classes=({given!r},), with a comma, for a single class'
            ],
        )
    try:
        dataset = build(dataset_cfg, limit)
    except Exception as error:
        # Broad, because each data set has checks of its own.
        return Leaf(None, None, [build_problem(dataset_cfg, error)])
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    prefixes = {key: path for key, path in (getattr(dataset, 'data_prefix', None) or {}).items() if path}
    if not isinstance(dataset, BaseDataset):
        return Leaf(dataset, classes, [])
    if is_remote(dataset, prefixes):
        return Leaf(None, classes, [])
    problems = path_problems(dataset, prefixes)
    if problems:
        return Leaf(dataset, classes, problems)
    where = dataset.ann_file or shorten(prefixes.values()) or dataset.data_root
    try:
        everything, api = load_list(dataset, limit)
    except Exception as error:
        # Broad, because each data set has checks of its own.
        problems = unlisted_problems(dataset, prefixes, limit) or [
            f'{type_name(dataset_cfg)} cannot load {where}: {origin(error).message}: correct the data or its paths'
        ]
        return Leaf(dataset, None if has_folders(dataset) else classes, problems)
    classes = dataset.metainfo.get('classes')
    problems = list_problems(dataset, prefixes, everything, where, api, num_classes, limit)
    if problems:
        # Of folders that are none of classes, too.
        return Leaf(dataset, None if has_folders(dataset) else classes, problems, api)
    read = loading_steps(dataset)
    if is_coco(dataset, api):
        problems += mask_problems(dataset, api, limit)
    problems += file_problems(dataset, read, allowed, limit)
    raw: Set[int] = set()
    labels: Set[int] = set()
    if is_segmentation(dataset) and not problems:
        problems += label_map_problems(dataset, read, prefixes, num_classes, limit, raw, labels)
    return Leaf(dataset, classes, problems, api, frozenset(raw), frozenset(labels))


def path_problems(dataset: Any, prefixes: Dict[str, str]) -> List[str]:
    """Check that the folders and the annotation file of a data set exist."""
    root, ann_file = dataset.data_root, dataset.ann_file
    if root and not osp.isdir(root):
        return [f'data_root {osp.abspath(root)} does not exist: put the data there, or set data_root to its folder']
    problems = []
    if ann_file and not osp.exists(ann_file):
        problems.append(f'annotation file {ann_file} does not exist: correct ann_file or complete the data set')
    for key, path in prefixes.items():
        if isinstance(path, str) and not osp.isdir(path):
            problems.append(
                f'folder {path} does not exist (data_prefix {key}): correct data_prefix or complete the data set'
            )
    return problems


def load_list(dataset: Any, limit: TimeLimit) -> Tuple[List[dict], Any]:
    """Let a data set load its list of samples.

    Returns:
        tuple: The list before any samples were filtered out, and what its library read its annotation file with, if it
        is one in COCO's format.
    """
    lists: List[List[dict]] = []
    apis: List[Any] = []
    filter_data = dataset.filter_data

    def count_and_filter() -> List[dict]:
        lists.append(dataset.data_list)
        return filter_data()

    dataset.filter_data = count_and_filter
    dataset.serialize_data = False  # it is read once, by this process
    own = getattr(dataset, 'COCOAPI', None)
    if own is not None:

        def read_and_keep(*args: Any, **options: Any) -> Any:
            apis.append(own(*args, **options))
            return apis[-1]

        dataset.COCOAPI = read_and_keep
    try:
        with limit.pause(), quiet():
            dataset.full_init()
    finally:
        del dataset.filter_data
        if own is not None:
            del dataset.COCOAPI
    return (lists or [dataset.data_list])[0], (apis or [None])[0]


def is_coco(dataset: Any, api: Any) -> bool:
    """Check whether a data set's annotations are in COCO's format for objects (LVIS's and panoptic ones are others)."""
    if api is None:
        return False
    from mmdet.datasets.api_wrappers import COCO, COCOPanoptic

    return isinstance(api, COCO) and not isinstance(api, COCOPanoptic)


def is_segmentation(dataset: Any) -> bool:
    """Check whether a data set is one of mmseg's."""
    return hasattr(dataset, 'seg_map_suffix') and hasattr(dataset, 'reduce_zero_label')


def has_folders(dataset: Any) -> bool:
    """Check whether a data set is one of mmpretrain's with one folder per class."""
    return bool(getattr(dataset, 'with_label', False)) and not dataset.ann_file


def unlisted_problems(dataset: Any, prefixes: Dict[str, str], limit: TimeLimit) -> List[str]:
    """Find out why a data set could not load its list of samples; empty if unknown."""
    ann_file = dataset.ann_file
    if hasattr(dataset, 'COCOAPI'):
        try:
            with open(ann_file, encoding='utf-8') as file:
                text = file.read()
            if text.startswith(BYTE_ORDER_MARK):
                return [f'{ann_file} begins with a byte order mark: save it as UTF-8 without byte order mark']
            content = json.loads(text)
            return [f'{ann_file}: {line}: correct or remove them' for line in fatal_annotations(content)]
        except UnicodeDecodeError as error:
            return [not_utf8(ann_file, error)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [
                f'{ann_file} ({osp.getsize(ann_file)} bytes) is not a COCO annotation file, or is corrupt or '
                f'truncated ({type(error).__name__}: {error}): copy it again'
            ]
    if has_folders(dataset):
        return folder_problems(dataset, prefixes.get('img_path', dataset.data_root), limit)
    if ann_file:
        try:
            with open(ann_file, encoding='utf-8') as file:
                file.read()
        except UnicodeDecodeError as error:
            return [not_utf8(ann_file, error)]
    if getattr(dataset, 'with_label', False):
        return list_file_problems(ann_file)
    return []


def not_utf8(path: str, error: UnicodeDecodeError) -> str:
    """Describe a text in another encoding."""
    return f'{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 without byte order mark'


def list_file_problems(ann_file: str) -> List[str]:
    """Find the lines without image and label in a list file of mmpretrain."""
    lines = [line.strip() for line in list_from_file(ann_file)]
    wrong = [
        number
        for number, line in enumerate(lines, 1)
        if not line.rpartition(' ')[0] or not line.rpartition(' ')[2].lstrip('+-').isdigit()
    ]
    return (
        [
            f'{ann_file}: {len(wrong)} of {len(lines)} lines are empty or have no label (lines {shorten(wrong)}): '
            'expected "path label" with an integer label per line; remove the others'
        ]
        if wrong
        else []
    )


def folder_problems(dataset: Any, folder: str, limit: TimeLimit) -> List[str]:
    """Check the class folders of a classification data set."""
    folders = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    hidden = [name for name in folders if name.startswith('.') or name == '__MACOSX']
    if hidden:
        return [
            f'{folder}: the folder {shorten(hidden)} is not a class but counts as one: remove it (rm -r '
            f'{osp.join(folder, hidden[0])})'
        ]
    classes = dataset.metainfo.get('classes')
    if not dataset.data_list and not list_images(folder, dataset.extensions):
        found = suffixes_of(skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit))
        but = f', but images that end in {found}: set extensions of the data set, or convert them' if found else ''
        return [f'no images ({", ".join(sorted(dataset.extensions))}) below {folder}{but}']
    if classes is not None and len(classes) != len(folders):
        return [
            f'{folder} has {len(folders)} folders ({shorten(folders)}), one per class, but {type(dataset).__name__} '
            f'has {len(classes)} classes: set metainfo=dict(classes=[...]) of the data set, or use type '
            'CustomDataset, which takes the class names from the folders'
        ]
    if classes is not None and sorted(classes) == sorted(folders) and tuple(classes) != folders:
        return [
            f'metainfo.classes ({shorten(classes)}) is in another order than the folders in {folder} '
            f'({shorten(folders)}), whose labels follow their sorted names: use that order'
        ]
    skipped = skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit)
    if skipped and dataset.data_list:
        remark(
            f'{len(skipped)} images below {folder} end in {suffixes_of(skipped)} ({skipped[0]}) and are skipped, '
            f'because the data set has extensions={tuple(sorted(dataset.extensions))}: set extensions of the data set, '
            'or convert the images'
        )
    return []


def skipped_images(folders: Sequence[str], is_taken: Callable[[str], bool], limit: TimeLimit) -> List[str]:
    """Find the images in folders that a data set does not take."""
    return [
        path
        for folder in limit.part(folders, SUFFIX_SECONDS, 'folders searched for images with other suffixes')
        for path in list_images(folder, SUFFIXES)
        if not is_taken(path)
    ]


def suffixes_of(paths: Sequence[str]) -> str:
    """Return the different suffixes of some files, as text."""
    return shorten(sorted({osp.splitext(path)[1] for path in paths}))


def list_problems(
    dataset: Any,
    prefixes: Dict[str, str],
    everything: List[dict],
    where: str,
    api: Any,
    num_classes: Optional[int],
    limit: TimeLimit,
) -> List[str]:
    """Check the sample list of a data set: that it is not empty, and that its labels match the model."""
    if api is not None and not everything:
        return [f'{where} lists no images']
    problems: List[str] = []
    if dataset.data_list and BYTE_ORDER_MARK in str(dataset.data_list[0].get('img_path')):
        return [f'{where} begins with a byte order mark, which the library reads as part of a name: save it without']
    if is_segmentation(dataset):
        problems += suffix_problems(dataset, prefixes, everything, limit)
    if has_folders(dataset):
        problems += folder_problems(dataset, prefixes.get('img_path', dataset.data_root), limit)
    if is_coco(dataset, api):
        problems += category_problems(dataset, api)
        problems += coco_problems(dataset, everything, api)
    problems = problems or emptiness_problems(dataset, everything, where, api)
    if not problems and 'gt_label' in dataset.data_list[0]:
        problems += label_problems(dataset, where, num_classes)
    return problems


def emptiness_problems(dataset: Any, everything: List[dict], where: str, api: Any) -> List[str]:
    """Check that a data set has samples, objects, and every class.

    To test on, a file may have no annotation, as COCO's test-dev has none, and a part of it, or the classes that are
    asked for, no object.
    """
    left = len(dataset)
    reasons = f' (filter_cfg={dataset.filter_cfg})' if getattr(dataset, 'filter_cfg', None) else ''
    if left == 0:
        return [
            f'{where}: {type(dataset).__name__} skips all {len(everything)} samples{reasons}. Check the annotations, '
            'and filter_cfg of the data set'
        ]
    occurring = labels_of(dataset)
    if occurring is None:
        return []
    problems = ignored_object_problems(dataset, where, api)
    if problems:
        return problems
    if (
        not occurring
        and hasattr(dataset, 'COCOAPI')
        and (not dataset.test_mode or are_all_skipped(dataset, everything, api))
    ):
        return [
            f'{where}: {left} images, but no object is left: {type(dataset).__name__} skips empty boxes, boxes '
            'outside their image and unknown categories. Expected boxes [x, y, width, height] in pixels, area above '
            '0, and a category_id from "categories"'
        ]
    classes = dataset.metainfo.get('classes') or ()
    absent = [name for index, name in enumerate(classes) if index not in occurring]
    if absent and occurring:
        remark(f'{where}: {len(absent)} of {len(classes)} classes never occur ({shorten(absent)})')
    return []


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
    remark(f'{text}: {way_out}')
    return []


def are_all_skipped(dataset: Any, everything: List[dict], api: Any) -> bool:
    """Check whether a COCO file has annotations of the data set's classes, or of unknown ones, and all are skipped."""
    if not is_coco(dataset, api) or any(info['instances'] for info in everything):
        return False
    others = [category for category in api.cats if category not in dataset.cat_ids]
    return any(each['category_id'] not in others for each in api.anns.values())


def labels_of(dataset: Any) -> Optional[Set[int]]:
    """Return the labels that occur in a list of data; ``None`` where it holds none."""
    infos = dataset.data_list
    if infos and all('segments_info' in info for info in infos):
        return {each['category'] for info in infos for each in info['segments_info']}
    if infos and all('instances' in info for info in infos):
        return {each['bbox_label'] for info in infos for each in info['instances'] if 'bbox_label' in each}
    if infos and all(info.get('gt_label') is not None for info in infos):
        return set(np.unique(label_table(infos)[:, 1]).tolist())
    return None


def label_table(infos: Sequence[dict]) -> np.ndarray:
    """Return the labels in a list of data: an array ``(N, 2)`` of places in the list and labels."""
    labels = [info.get('gt_label') for info in infos]
    if all(isinstance(each, int) for each in labels):
        return np.stack([np.arange(len(labels)), np.asarray(labels, int)], 1)
    rows = [
        (place, label)
        for place, each in enumerate(labels)
        if each is not None
        for label in np.atleast_1d(np.asarray(each, int))
    ]
    return np.asarray(rows, int).reshape(-1, 2)


def suffix_problems(dataset: Any, prefixes: Dict[str, str], everything: List[dict], limit: TimeLimit) -> List[str]:
    """Check which images and maps a data set for segmentation does not take because of their suffix."""
    suffix, ann_file, folder = dataset.img_suffix, dataset.ann_file, prefixes.get('img_path')
    if ann_file or folder is None:
        problems = listed_name_problems(dataset, everything) if osp.isfile(ann_file or '') else []
        return problems if dataset.data_list else [f'{ann_file or folder} lists no images']
    # list_images takes either case.
    others = [path for path in list_images(folder, [suffix.lower()]) if not path.endswith(suffix)]
    maps = osp.join(osp.abspath(prefixes.get('seg_map_path') or os.sep), '')
    # Maps may lie beside the images.
    beside = dataset.seg_map_suffix if maps.startswith(osp.join(osp.abspath(folder), '')) else None

    def is_taken(path: str) -> bool:
        ending = '.' + suffix.lower().rpartition('.')[2]
        return path.lower().endswith(ending) or bool(beside and path.endswith(beside))

    skipped = skipped_images([folder], is_taken, limit)
    if not dataset.data_list:
        found = osp.basename(others[0])[-len(suffix) :] if others else suffixes_of(skipped)
        number = len(others or skipped)
        way_out = '' if ',' in found else f': set img_suffix={found!r} of the data set'
        but = f', but {number} that end in {found}{way_out}' if found else ''
        return [f'no images (*{suffix}) in {folder}{but}']
    if others:
        remark(
            f'{len(others)} images in {folder} ({shorten(others[:1])}) differ from img_suffix={suffix!r} only in '
            'upper and lower case and are skipped: rename them'
        )
    if skipped:
        remark(
            f'{len(skipped)} images in {folder} end in {suffixes_of(skipped)} ({skipped[0]}) and are skipped, because '
            f'the data set has img_suffix={suffix!r}: convert them, or list them in a data set of their own'
        )
    elif not others:
        unused_maps(dataset, prefixes.get('seg_map_path'), folder, everything)
    return []


def unused_maps(dataset: Any, maps: Optional[str], folder: str, everything: List[dict]) -> None:
    """Report the segmentation maps without an image; others, such as coloured copies, are named after used ones."""
    suffix = dataset.seg_map_suffix
    used = {osp.normpath(info['seg_map_path'])[: -len(suffix)] for info in everything if info.get('seg_map_path')}
    if not maps or not used:
        return
    stems = (osp.normpath(path)[: -len(suffix)] for path in list_images(maps, [suffix.lower()]))
    unused = [stem for stem in stems if stem not in used and stem.rpartition('_')[0] not in used]
    if unused:
        remark(
            f'{len(unused)} segmentation maps in {maps} ({unused[0]}{suffix}) have no image (*{dataset.img_suffix}) in '
            f'{folder} and are not used: complete the images, or correct img_suffix'
        )


def listed_name_problems(dataset: Any, everything: List[dict]) -> List[str]:
    """Check the names in a list file of mmseg, which are without suffix."""
    suffix, ann_file = dataset.img_suffix, dataset.ann_file
    paths = [info['img_path'] for info in everything]
    empty = [number for number, path in enumerate(paths, 1) if osp.basename(path) == suffix]
    problems = [f'{ann_file}: lines {shorten(empty)} are empty: remove them'] if empty else []
    twice = [path for path in paths if path.endswith(2 * suffix) and not osp.exists(path)]
    if twice:
        name = osp.basename(twice[0])[: -len(suffix)]
        problems.append(
            f'{ann_file}: {len(twice)} of {len(paths)} names ({name}, ...) already end in img_suffix={suffix!r}, which '
            'the data set appends: remove it from the names, or set img_suffix and seg_map_suffix accordingly'
        )
    return problems


def label_problems(dataset: Any, where: str, num_classes: Optional[int]) -> List[str]:
    """Check the labels of a data set for classification."""
    classes = dataset.metainfo.get('classes')
    number = len(classes) if classes else num_classes
    if number is None:
        return []
    table = label_table(dataset.data_list)
    wrong = table[(table[:, 1] < 0) | (table[:, 1] >= number)].tolist()
    if not wrong:
        return []
    return [
        f'{where}: {len(wrong)} of {len(table)} labels are not within 0 to {number - 1} '
        f'({shorten(f"line {place + 1}: {label}" for place, label in wrong)}): labels are numbered from 0'
    ]


def category_problems(dataset: Any, api: Any) -> List[str]:
    """Check that the library gave each class the category of its name."""
    classes = list(dataset.metainfo.get('classes') or ())
    names = [category['name'] for category in api.cats.values()]
    found = [api.cats[key]['name'] for key in dataset.cat_ids]
    unknown = [name for name in classes if name not in names]
    if unknown:
        # mmdet skips them and numbers the others anew.
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


def coco_problems(dataset: Any, everything: List[dict], api: Any) -> List[str]:
    """Check the loaded annotations of a data set; report skipped ones."""
    ann_file, number = dataset.ann_file, len(api.anns)
    problems = []
    if len(api.imgs) < len(api.dataset['images']) or number < len(api.dataset.get('annotations', ())):
        problems += [f'{ann_file}: {line}: correct or remove them' for line in fatal_annotations(api.dataset)]
    for kind, skipped in skipped_annotations(api, everything, dataset.cat_ids).items():
        remark(f'{ann_file}: {count_line([each["id"] for each in skipped], number, SKIPPED[kind])}: mmdet skips them')
    lost = [each['id'] for each in api.anns.values() if each['image_id'] not in api.imgs]
    if not number:
        remark(f'{ann_file} has no annotations')
    if lost:
        words = 'have an image_id that the file does not define'
        remark(f'{ann_file}: {count_line(lost, number, words)}: mmdet skips them')
    boxes = [each['bbox'] for info in dataset.data_list for each in info['instances']]
    if boxes and not np.isfinite(np.asarray(boxes, float)).all():
        wrong = [each['id'] for each in api.anns.values() if not is_box(each['bbox'])]
        problems.append(
            f'{ann_file}: {count_line(wrong, number, "have a bbox that is not four finite numbers")}: correct or '
            'remove them'
        )
    return problems


def mask_problems(dataset: Any, api: Any, limit: TimeLimit) -> List[str]:
    """Let the loading step of a pipeline load the masks of a data set."""
    step = next((each for each in transforms_of(dataset) if getattr(each, 'with_mask', False)), None)
    if step is None:
        return []
    masks = [
        Mask(each.get('mask'), info['width'], info['height'], each, info['img_id'])
        for info in dataset.data_list
        for each in info['instances']
    ]
    found, beyond = check_masks(masks, ask_loading_step(step), limit, dataset.ann_file)
    number = len(masks)
    for words, faulty in (
        ('have a segmentation that mmdet skips (no polygon has three or more points)', found.pop('skipped', [])),
        ('have polygon points outside their image, which are clipped', beyond),
    ):
        if faulty:
            remark(f'{dataset.ann_file}: {count_line(annotation_ids(api, faulty[:SHOWN]), number, words)}')
    return [
        f'{dataset.ann_file}: '
        f'{count_line(annotation_ids(api, faulty), number, "have a segmentation that cannot be loaded")}: {said}. '
        'Correct or remove them: polygons are [[x1, y1, x2, y2, x3, y3, ...], ...]'
        for said, faulty in found.items()
    ]


def transforms_of(dataset: Any) -> List[Any]:
    """Return the steps of a data set's pipeline."""
    return list(getattr(getattr(dataset, 'pipeline', None), 'transforms', None) or ())


def loading_steps(dataset: Any) -> Optional[Callable[[dict], dict]]:
    """Return a function that runs the loading steps of a data set's pipeline; ``None`` if it has none."""
    steps = [step for step in transforms_of(dataset) if type(step).__name__.startswith('Load')]
    images = [step for step in steps if 'Image' in type(step).__name__]
    if not images:
        return None
    maps = [step for step in steps if getattr(step, 'with_seg', False) and step not in images]

    def read(info: dict) -> dict:
        results: Any = dict(info)
        for step in [*images, *(maps if info.get('seg_map_path') else ())]:
            results = step(results)
            if results is None:
                raise ValueError('nothing was loaded')
        return results

    return read


def file_problems(dataset: Any, read: Optional[Callable[[dict], dict]], allowed: float, limit: TimeLimit) -> List[str]:
    """Check the images of a data set: are they there, complete, and of the size of their annotations?"""
    infos = [info for info in dataset.data_list if isinstance(info.get('img_path'), str)]
    by_path = {info['img_path']: info for info in infos}

    def read_path(path: str) -> Any:
        results = read({**by_path[path], 'seg_map_path': None}) if read is not None else {}
        if results.get('img') is not None:
            sizes[path] = results['img'].shape[1::-1]
        return results.get('img')

    sizes: Dict[str, Tuple[int, int]] = {}
    problems = image_problems(list(by_path), allowed, read_path if read is not None else None, limit)
    return problems + size_problems(dataset, infos, sizes, read_path if read is not None else None, limit)


def image_problems(
    paths: List[str], allowed: float, read: Optional[Callable[[str], Any]] = None, limit: Optional[TimeLimit] = None
) -> List[str]:
    """Check images: decode a sample; check the others for truncation, within the time limit.

    Args:
        paths (list[str]): The images.
        allowed (float): Fraction of them that may be corrupt; up to this, a warning is logged.
        read (callable, optional): Loads an image, as the data set does.
        limit (TimeLimit, optional): Of all checks. Default: one of its own.
    """
    limit = limit or TimeLimit()
    corrupt: Dict[str, str] = {}
    for path in limit.part(spread(paths, SAMPLE_SIZE), DECODE_SECONDS, 'images decoded'):
        problem = image_problem(path, read)
        if problem:
            corrupt[path] = problem
    checked = 0
    for path in limit.part(shuffled(paths), END_SECONDS, 'image files checked for truncation'):
        problem = truncation_problem(path)
        checked += 1
        if problem:
            corrupt.setdefault(path, problem)
    if not corrupt:
        return []
    shown = list(corrupt.values())[:SHOWN]
    more = f'... and {len(corrupt) - SHOWN} more corrupt images among the {checked} checked'
    if len(corrupt) <= allowed * checked:
        remark(
            f'{len(corrupt)} of {checked} checked images are corrupt and will be skipped: '
            f'{"; ".join(shown)}{"; ..." if len(corrupt) > SHOWN else ""}'
        )
        return []
    return [*shown, *([more] if len(corrupt) > SHOWN else [])]


def shuffled(items: Sequence[Any]) -> List[Any]:
    """Return the items in a random order, always the same."""
    items = list(items)
    random.Random(0).shuffle(items)
    return items


def size_problems(
    dataset: Any,
    infos: List[dict],
    loaded: Dict[str, Tuple[int, int]],
    read: Optional[Callable[[str], Any]],
    limit: TimeLimit,
) -> List[str]:
    """Check that images have the size of their annotations: loaded images, and the headers of others."""
    sized = [info for info in infos if info.get('width') and info.get('height')]
    infos = sized or [info for info in infos if info.get('seg_map_path')]
    wrong: Dict[str, str] = {}
    upended: List[str] = []
    turned = 0
    checked = 0
    for info in limit.part(shuffled(infos), SIZE_SECONDS, 'image sizes read'):
        path, (header, orientation) = info['img_path'], header_of(info['img_path'])
        checked += 1
        # As high and as wide as before, and so beyond comparison.
        if orientation in (2, 3, 4) or (orientation > 4 and header is not None and header[0] == header[1]):
            upended.append(f'{path}: orientation {orientation}')
        if not sized:
            continue
        size, wanted = loaded.get(path) or header, (info['width'], info['height'])
        if size not in (None, wanted) and path not in loaded and read is not None:
            with contextlib.suppress(Exception):  # it is reported as corrupt
                read(path)  # the pipeline decides whether EXIF data turns it
            size = loaded.get(path)
        if size is not None and size != wanted:
            wrong[path] = f'{path} is {size[0]}x{size[1]}, not {wanted[0]}x{wanted[1]}'
            turned += size == wanted[::-1]
    if upended:
        remark(
            f'{len(upended)} of {checked} checked images are rotated by EXIF data without a change of size '
            f'({shorten(upended, 2)}), so it is unknown whether their annotations are for the rotated images: check '
            'this, or save the images without EXIF rotation'
        )
    if not wrong:
        return []
    shown = shorten(wrong.values(), 3)
    text = f'{len(wrong)} of {checked} checked images differ in size from their annotations ({shown})'
    # One that is not turned belongs to another image.
    if len(wrong) <= (tolerated(len(infos)) if turned == len(wrong) else TURNED * len(infos)):
        remark(f'{dataset.ann_file}: {text} and will be skipped')
        return []
    return [
        f'{dataset.ann_file}: {text}: the annotations belong to other images, or EXIF data rotates these. Correct the '
        'annotations, or save the images without EXIF rotation'
    ]


def header_of(path: str) -> Tuple[Optional[Tuple[int, int]], int]:
    """Return width and height of an image, and the orientation in its EXIF data; ``None`` and 1 if it has no header."""
    try:
        return size_and_orientation(path)
    except Exception:
        # Broad, because corrupt bytes fail in any way there is; image_problem reports them.
        return None, 1


def label_map_problems(
    dataset: Any,
    read: Optional[Callable[[dict], dict]],
    prefixes: Dict[str, str],
    num_classes: Optional[int],
    limit: TimeLimit,
    raw: Set[int],
    labels: Set[int],
) -> List[str]:
    """Check the maps of labels of a data set for segmentation: of a sample, as its own steps load them.

    Args:
        dataset (Dataset): The data set.
        read (callable, optional): Its loading steps.
        prefixes (dict): Its folders.
        num_classes (int, optional): Classes that the model can learn.
        limit (TimeLimit): Of all checks.
        raw (set of int): Gets the labels in the files.
        labels (set of int): Gets the labels as loaded.
    """
    infos = spread([info for info in dataset.data_list if info.get('seg_map_path')], SAMPLE_SIZE)
    maps = prefixes.get('seg_map_path') or shorten((info['seg_map_path'] for info in infos), 1)
    missing: List[str] = []
    corrupt: List[str] = []
    coloured: List[str] = []
    turned: List[str] = []
    checked = 0
    for info in limit.part(infos, DECODE_SECONDS, f'{maps}: segmentation maps loaded'):
        path = info['seg_map_path']
        checked += 1
        if not osp.isfile(path):
            missing.append(path)
            continue
        problem, colours = image_problem(path), ''
        if not problem:
            colours = channels_of(path)
        if problem or colours:
            (corrupt if problem else coloured).append(problem or f'{path}: {colours}')
            continue
        raw |= set(read_labels(path))
        try:
            results = read(info) if read is not None else {}
        except Exception as error:
            # Broad, because steps are anybody's.
            if image_fails(read, info):
                continue  # file_problems reports it, and decides whether it may be skipped
            corrupt.append(f'{path} cannot be loaded by the pipeline ({type(error).__name__}: {origin(error).message})')
            continue
        image, loaded = results.get('img'), results.get('gt_seg_map')
        if loaded is not None:
            labels |= set(np.unique(loaded).tolist())
        if image is not None and loaded is not None and image.shape[:2] != loaded.shape[:2]:
            size, wanted = image.shape[1::-1], loaded.shape[1::-1]
            wrong = f'{path} has size {wanted}, but its image has {size} (width, height)'
            if image.ndim == 3 and image.shape[1:] == loaded.shape[:2]:
                wrong = (
                    f'{info["img_path"]} is loaded as {image.shape}, channels first, but the pipeline expects '
                    '(height, width, channels): save it in this order (a TIFF with planarconfig="contig")'
                )
            (turned if size == wanted[::-1] else corrupt).append(wrong)
    if turned and len(turned) <= tolerated(len(dataset.data_list)):
        remark(f'{len(turned)} images will be skipped: {shorten(turned, 1)}, or EXIF data rotates the image')
    else:
        corrupt += turned
    problems = corrupt[:SHOWN]
    if coloured:
        problems.append(
            f'{len(coloured)} of {checked} checked maps are colour images ({shorten(coloured, 2)}), expected one '
            'channel of class indices: convert the colours to indices'
        )
    if missing:
        problems.append(
            f'{len(missing)} of {checked} checked images have no segmentation map ({shorten(missing, 1)}): complete '
            'the data set, or correct seg_map_path and seg_map_suffix'
        )
    if problems or num_classes is None or not raw:
        return problems
    return loaded_label_problems(dataset, maps, raw, labels, num_classes, checked)


def image_fails(read: Optional[Callable[[dict], dict]], info: dict) -> bool:
    """Check whether the image of a sample cannot be loaded, whatever its segmentation map is."""
    if read is None:
        return False
    try:
        return read({**info, 'seg_map_path': None}).get('img') is None
    except Exception:
        # Broad, because steps are anybody's.
        return True


def loaded_label_problems(
    dataset: Any, maps: str, raw: Set[int], labels: Set[int], num_classes: int, checked: int
) -> List[str]:
    """Compare the labels that files hold, and those that were loaded of them, with the classes of the model."""
    shift = 1 if dataset.reduce_zero_label else 0
    ignored = dataset.ignore_index
    wrapped = sorted(label for label in raw if label > 255)
    if wrapped and not any(label > 255 for label in labels):
        return [
            f'segmentation maps in {maps} contain the labels {shorten(wrapped)}, but are loaded with 8 bits: labels '
            f'above 255 wrap around ({wrapped[0]} becomes {wrapped[0] % 256}). Use at most 255 classes, or your own '
            'loading step'
        ]
    wrong = sorted(label for label in labels if label >= num_classes and label != ignored)
    if wrong:
        held = [label + shift for label in wrong] if not dataset.label_map else wrong
        return [
            f'segmentation maps in {maps} contain the labels {shorten(held)}, but the model has {num_classes} classes '
            f'(labels {shift} to {num_classes - 1 + shift}, {ignored} is ignored; '
            f'reduce_zero_label={dataset.reduce_zero_label}): correct num_classes or the maps'
            + ('. JPEG changes labels: save the maps as PNG' if is_jpeg(dataset.seg_map_suffix) else '')
        ]
    taught = labels - {ignored}
    # Of a validation set the metric says so.
    if labels == {ignored} and not dataset.test_mode and checked == min(len(dataset.data_list), SAMPLE_SIZE):
        return [
            f'segmentation maps in {maps}: all pixels of the {checked} checked maps are ignored ({ignored}); their '
            f'files contain {shorten(sorted(raw))} (reduce_zero_label={dataset.reduce_zero_label}): nothing can be '
            'learned. Correct reduce_zero_label or the maps'
        ]
    if len(taught) <= 1 < num_classes and (checked > 1 or not taught):
        remark(
            f'segmentation maps in {maps}: only {len(taught)} of {num_classes} classes occurs '
            f'({shorten(sorted(taught))}) in {checked} checked maps, whose files contain {shorten(sorted(raw))}; '
            f'{ignored} is ignored. If {ignored} means a class, replace it by the class index in the maps'
        )
    return []


def is_jpeg(name: str) -> bool:
    """Check whether a file name or suffix is that of a JPEG."""
    return name.lower().endswith(('.jpg', '.jpeg'))


def channels_of(path: str) -> str:
    """Return as text the channels of a map of labels that has colours; empty if it has one channel."""
    with open_image(path) as image:
        bands, mode = image.getbands(), image.mode
    return '' if len(bands) == 1 else f'mode {mode}, {len(bands)} channels'


def build_outer(dataset_cfg: dict, leaves: Iterator[Any], limit: TimeLimit) -> Any:
    """Build the wrappers around data sets that are built already.

    Args:
        dataset_cfg (dict): Config of the outermost data set.
        leaves (iterator): The data sets inside it, in the order of :func:`fcvit_mm.engine.config.leaf_datasets`.
        limit (TimeLimit): Of all checks.

    Raises:
        Exception: What its library says against it.
    """

    def replaced(node: Any) -> Any:
        inner = {key: node[key] for key in ('dataset', '_dataset', 'datasets') if node.get(key)}
        if not inner:
            leaf = next(leaves)
            return dict(type=lambda: leaf)
        changed = dict(node)
        for key, value in inner.items():
            changed[key] = [replaced(each) for each in value] if isinstance(value, (list, tuple)) else replaced(value)
        return changed

    config = replaced(dataset_cfg)
    with limit.pause(), quiet():
        return DATASETS.build(config)


def rehearse(outer: Any, leaves: Sequence[Any], limit: TimeLimit, what: str) -> Tuple[List[str], Dict[int, Any]]:
    """Let a few samples go through the complete pipeline of a data set, wrappers included.

    Args:
        outer (Dataset): The outermost one.
        leaves (sequence): The data sets inside it that load samples.
        limit (TimeLimit): Of all checks.
        what (str): What to call it.

    Returns:
        tuple: Problems, and index -> sample as the pipeline packed it. Samples with corrupt files are none of either.
    """
    for leaf in leaves:
        guard(leaf, 0.0, False)
    load = outer.prepare_data if outer in leaves and hasattr(outer, 'prepare_data') else outer.__getitem__
    packed: Dict[int, Any] = {}
    problems: List[str] = []
    empty = 0
    try:
        for index in limit.part(spread(range(len(outer)), REHEARSED), REHEARSAL_SECONDS, f'{what}: samples loaded'):
            try:
                sample = load(index)
            except CorruptSampleError:
                continue
            except UserError as error:
                problems.append(str(error))
                break
            except Exception as error:
                # Broad, because pipelines are anybody's.
                problems.append(
                    f'sample {index} failed to load ({type(error).__name__}: {origin(error).message}): check the '
                    'pipeline and the annotations'
                )
                break
            if sample is None:
                empty += 1
            else:
                packed[index] = sample
    finally:
        for leaf in leaves:
            vars(leaf).pop('prepare_data', None)
    if empty and not packed and not problems:
        problems.append(f'the pipeline returned None for all {empty} samples: check its filtering steps')
    return problems, packed
