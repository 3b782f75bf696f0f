"""Checking one data set: its library builds it and loads its list of samples; then list and files are checked."""

import json
import os
import os.path as osp
import re
from collections import Counter
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from ...engine.config import type_name
from ...errors import advice_for, origin
from ..annotations import PARTS, fatal_annotations
from ..contexts import quiet
from ..limits import TimeLimit
from ..log import log_warning, shorten
from ..messages import name_values, short_message
from ..missing_files import link_problems, loop_problem, path_problem, permission_problem
from ..misspelt_arguments import class_of
from .classification import folder_problems, label_problems, label_table, label_type_problems, list_file_problems
from .detection import (
    are_all_skipped,
    category_problems,
    coco_problems,
    ignored_object_problems,
    inverted_box_problems,
    mask_problems,
)
from .formats import folder_format, known_format
from .images import SUFFIXES, file_problems
from .kinds import has_folders, is_coco, is_remote, is_segmentation, is_url, is_xml, loading_steps, needs_maps
from .palettes import report_unusable_palette
from .segmentation import label_map_problems, suffix_problems
from .voc import unknown_xml_names, unreadable_xml

#: Data sets for one's own data, by library.
EXAMPLES = {'mmpretrain': 'CustomDataset', 'mmdet': 'CocoDataset', 'mmseg': 'BaseSegDataset'}
#: Keys of ``data_prefix`` that the libraries read.
PREFIXES = ('img', 'img_path', 'seg', 'seg_map_path')
#: Settings of data sets -> types that the libraries accept, and their description.
TYPES: Dict[str, Tuple[Any, str]] = {
    'data_root': ((str, os.PathLike), 'a path'),
    'ann_file': ((str, os.PathLike), 'a path'),
    'data_prefix': ((str, dict), "a dict, such as data_prefix=dict(img='images')"),
    'backend_args': (dict, 'a dict or None'),
    'filter_cfg': (dict, 'a dict or None'),
    'img_suffix': (str, "the end of a name, such as '.png'"),
    'seg_map_suffix': (str, "the end of a name, such as '.png'"),
    'extensions': ((list, tuple, set, str), "a sequence, such as ('.jpg', '.png')"),
    'indices': ((int, list, tuple), 'a number of samples, or a list of their indices'),
}
#: Byte order mark, which some editors write at the beginning of a text file.
BYTE_ORDER_MARK = '\ufeff'


class Leaf(NamedTuple):
    """A data set that loads samples, not a wrapper.

    Attributes:
        dataset (Dataset): The data set, with its list of samples unless there are problems.
        classes (sequence of str, optional): Names of the classes, if they are known.
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


def check_leaf(dataset_cfg: dict, num_classes: Optional[int], allowed: float, limit: TimeLimit) -> Leaf:
    """Check one data set, by its own list of data and its own pipeline.

    Args:
        dataset_cfg (dict): Config of the data set, built in the current scope.
        num_classes (int, optional): Classes that the model can learn, to compare labels with.
        allowed (float): Fraction of images that may be corrupt; up to this, a warning is logged.
        limit (TimeLimit): Time limit of all checks.
    """
    if dataset_cfg is None:
        return Leaf(None, None, ['the data set is None: give a dict with its type and settings'])
    if not type_name(dataset_cfg):
        known = shorten(dataset_cfg, 3)
        scope = DefaultScope.get_current_instance()
        example = f', for example type="{EXAMPLES[scope.scope_name]}"' if scope and scope.scope_name in EXAMPLES else ''
        return Leaf(None, None, [f'a data set ({known}) has no type: give its class{example}'])
    unusable = setting_problem(dataset_cfg)
    if unusable:
        return Leaf(None, None, [unusable])
    given = (dataset_cfg.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and not is_url(given) and not osp.isfile(given):
        return Leaf(
            None,
            None,
            [
                f'metainfo.classes is the text {given!r}, which is no file, expected a sequence of names or the '
                f'path of a file with one name per line: write classes=({given!r},), with a comma, for a single class'
            ],
        )
    try:
        dataset = build(dataset_cfg, limit)
    except Exception as error:
        # Broad, because each data set has checks of its own.
        return Leaf(None, None, [build_problem(dataset_cfg, error)])
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    prefixes = {key: path for key, path in (getattr(dataset, 'data_prefix', None) or {}).items() if path}
    if any(isinstance(name, str) and not name.strip() for name in classes or ()):
        what = f'the file {given} has an empty line' if isinstance(given, str) else 'metainfo.classes has an empty name'
        return Leaf(dataset, None, [f'{what}, which counts as a class: remove it'])
    if not isinstance(dataset, BaseDataset):
        return Leaf(dataset, classes, [])
    if is_remote(dataset, prefixes):
        return Leaf(None, classes, [])
    problems = path_problems(dataset, prefixes)
    if problems:
        return Leaf(dataset, classes, problems)
    listed = [] if dataset.ann_file else [path for path in (prefixes.get('img_path'),) if path]
    where = dataset.ann_file or shorten(prefixes.values()) or dataset.data_root
    try:
        everything, api = load_list(dataset, limit)
    except Exception as error:
        # Broad, because each data set has checks of its own.
        unreadable = permission_problem(error)
        problems = (
            link_problems(listed, 0, 0.0, limit)
            or ([unreadable] if unreadable else unlisted_problems(dataset, prefixes, limit))
            or [
                prefix_problem(dataset_cfg, error)
                or loop_problem(error)
                or index_problem(dataset)
                or f'{type_name(dataset_cfg)} cannot load {where}: {reason(error, dataset_cfg)}'
            ]
        )
        return Leaf(dataset, None if has_folders(dataset) else classes, problems)
    classes = dataset.metainfo.get('classes')
    report_repeated_classes(dataset, classes)
    problems = link_problems(listed, len(dataset), allowed, limit)
    problems = problems or list_problems(dataset, prefixes, everything, where, api, num_classes, limit)
    if problems:
        # Classes from the names of folders may be wrong: the folders need not be those of classes.
        return Leaf(dataset, None if has_folders(dataset) else classes, problems, api)
    read = loading_steps(dataset)
    if is_coco(dataset, api):
        problems += mask_problems(dataset, api, limit)
    problems += file_problems(dataset, read, allowed, limit)
    raw: Set[int] = set()
    labels: Set[int] = set()
    if is_segmentation(dataset) and not problems and needs_maps(dataset):
        problems += label_map_problems(dataset, read, prefixes, num_classes, limit, raw, labels)
    return Leaf(dataset, classes, problems, api, frozenset(raw), frozenset(labels))


def report_repeated_classes(dataset: BaseDataset, classes: Any) -> None:
    """Log a warning if several classes have the same name: they are learned as different ones.

    Published classes are not reported, such as the two cranes of ImageNet.
    """
    kind = type(dataset)
    if kind.__module__.startswith(('mmdet.', 'mmpretrain.', 'mmseg.')) and classes == kind.METAINFO.get('classes'):
        return
    names = list(classes or ()) if isinstance(classes, (list, tuple)) else []
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        places = [index for index, name in enumerate(names) if name == twice[0]]
        log_warning(
            f'{kind.__name__}: metainfo.classes has {shorten(map(repr, twice))} more than once (labels '
            f'{shorten(places)}), which are learned as different classes: correct the names, unless this is intended'
        )


def setting_problem(dataset_cfg: dict) -> str:
    """Describe a setting of a data set whose type no library accepts; empty if there is none."""
    metainfo, ann_file, suffix = (dataset_cfg.get(key) for key in ('metainfo', 'ann_file', 'img_suffix'))
    if isinstance(ann_file, (list, tuple)):
        return (
            f'ann_file is a list of {len(ann_file)} files, expected one: use a ConcatDataset with one data set for '
            'each file'
        )
    if isinstance(suffix, (list, tuple)):
        return (
            f'img_suffix is {shorten_value(suffix)}, expected one suffix: use a ConcatDataset with one data set for '
            'each suffix, or convert the images'
        )
    for key, (kinds, words) in TYPES.items():
        value = dataset_cfg.get(key)
        if value is not None and not isinstance(value, kinds):
            return f'{key} is {shorten_value(value)}, expected {words}'
    places = dataset_cfg.get('indices')
    if isinstance(places, (list, tuple)) and not all(isinstance(each, int) for each in places):
        return f'indices is {shorten_value(places)}, expected a number of samples, or a list of their indices'
    prefixes = dataset_cfg.get('data_prefix')
    for key, value in prefixes.items() if isinstance(prefixes, dict) else ():
        if not isinstance(value, (str, os.PathLike, type(None))):
            return f'data_prefix.{key} is {shorten_value(value)}, expected a path'
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    if isinstance(classes, (set, frozenset, dict)):
        return (
            f'metainfo.classes is a {type(classes).__name__}, expected a sequence of names, whose order numbers the '
            'classes: write a tuple'
        )
    if classes is not None and not isinstance(classes, (str, list, tuple)):
        return f'metainfo.classes is {shorten_value(classes)}, expected a sequence of names: write a tuple'
    wrong = [name for name in classes or () if name is None or isinstance(name, (dict, list, tuple))]
    if wrong:
        return f'metainfo.classes has {shorten_value(wrong[0])}, expected names'
    if classes is not None and not len(classes):
        return f'metainfo.classes is {classes!r}, expected the names of the classes'
    endings = dataset_cfg.get('extensions')
    if isinstance(endings, str):
        return f'extensions is the text {endings!r}, expected a sequence: write extensions=({endings!r},), with a comma'
    if metainfo is not None and not isinstance(metainfo, dict) and not callable(getattr(metainfo, 'get', None)):
        return f'metainfo is {shorten_value(metainfo)}, expected a dict: write metainfo=dict(classes=(...))'
    palette = metainfo.get('palette') if metainfo else None
    if not isinstance(palette, (str, list, tuple, type(None))):
        return f'metainfo.palette is {shorten_value(palette)}, expected a list of colors [red, green, blue]'
    if metainfo and 'CLASSES' in metainfo and 'classes' not in metainfo:
        return 'metainfo has the key CLASSES, which nothing reads: call it classes (and PALETTE palette)'
    for key in ('img_suffix', 'seg_map_suffix'):
        value = dataset_cfg.get(key)
        if isinstance(value, str) and f'.{value.lower()}' in SUFFIXES:
            return (
                f'{key} is {value!r}, expected with a dot, because it replaces the end of a name: write {f".{value}"!r}'
            )
    return ''


def shorten_value(value: Any) -> str:
    """Return a value as text of one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def build_problem(node: dict, error: Exception) -> str:
    """Describe why a data set or a wrapper cannot be built."""
    advice = advice_for(error)
    if isinstance(node.get('data_prefix'), str) and "'str' object has no attribute" in str(error):
        advice = f'data_prefix is {node["data_prefix"]!r}, expected a dict, such as dict(img={node["data_prefix"]!r})'
    if 'palette does not match classes' in str(error):
        given = node.get('metainfo') or {}
        return (
            f'metainfo.palette has {len(given.get("palette") or ())} colors, expected one for each of the '
            f'{len(given.get("classes") or ())} classes: complete it, or remove it'
        )
    if 'is not a subset of classes' in str(error):
        own = [name for kind in class_of(DATASETS, node) for name in getattr(kind, 'METAINFO', {}).get('classes') or ()]
        others = [name for name in (node.get('metainfo') or {}).get('classes') or () if name not in own]
        return (
            f'metainfo.classes has {shorten(map(repr, others))}, but {type_name(node)} can only select from its own '
            f'{len(own)} classes ({shorten(own)}): write their names, or set type="BaseSegDataset" for other classes'
        )
    if "'HTTPBackend' object has no attribute 'join_path'" in str(error):
        return f'data_root is {node.get("data_root")}, but no folder is read by HTTP: download it and give its path'
    message = short_message(error) + ('' if advice else name_values(error, [node]))
    end = '' if message.endswith('?') else '.'
    return f'{type_name(node)} cannot be built: {message}' + f'{end} {advice}' * bool(advice)


def index_problem(dataset: Any) -> str:
    """Describe an index in ``indices`` that a loaded data set does not have; empty if there is none."""
    indices, number = getattr(dataset, '_indices', None), len(getattr(dataset, 'data_list', None) or ())
    beyond = [each for each in indices if each >= number] if number and isinstance(indices, (list, tuple)) else []
    return f'indices has {shorten(beyond)}, but there are {number} samples (0 to {number - 1})' if beyond else ''


def reason(error: Exception, dataset_cfg: dict) -> str:
    """Describe why a data set cannot load its list of samples, and what to do."""
    _, message, _ = origin(error)
    message += name_values(error, [dataset_cfg.get('filter_cfg') or {}])
    if isinstance(error, KeyError) and ' ' not in message:
        return f'a sample lacks {message}: correct the file, or the type of the data set, which reads another format'
    return f'{message}: ' + advice_for(error, 'correct the data or its paths')


def prefix_problem(dataset_cfg: dict, error: Exception) -> str:
    """Describe that ``data_prefix`` lacks the key that a data set reads; empty if it does not."""
    given = dataset_cfg.get('data_prefix')
    key = str(error.args[0]) if isinstance(error, KeyError) and error.args else ''
    if not isinstance(given, dict) or key not in PREFIXES or key in given:
        return ''
    return (
        f'data_prefix has the key {shorten(map(repr, given))}, but {type_name(dataset_cfg)} reads {key!r}: write '
        f'data_prefix=dict({key}=...)'
    )


def build(dataset_cfg: dict, limit: TimeLimit) -> Any:
    """Build a data set lazily, if it supports that."""
    with limit.pause(), quiet():
        try:
            return DATASETS.build(dict(dataset_cfg, lazy_init=True))
        except TypeError as error:
            if not re.search('lazy_init|takes no arguments', str(error)):  # the latter of a class without __init__
                raise
        return DATASETS.build(dict(dataset_cfg))


def path_problems(dataset: Any, prefixes: Dict[str, str]) -> List[str]:
    """Check that the folders and the annotation file of a data set exist."""
    root, ann_file = dataset.data_root, dataset.ann_file
    problem = path_problem(root, True, f'data_root {osp.abspath(root)}') if root else ''
    if problem:
        return [f'{problem}: put the data there, or set data_root to its folder']
    problems = []
    if ann_file:
        problem = path_problem(ann_file, False, f'annotation file {ann_file}')
        problems += [f'{problem}: correct ann_file or complete the data set'] * bool(problem)
    for key, path in prefixes.items():
        if isinstance(path, str):
            problem = path_problem(path, True, f'folder {path}')
            problems += [f'{problem}: correct data_prefix ({key}) or complete the data set'] * bool(problem)
    return problems


def load_list(dataset: Any, limit: TimeLimit) -> Tuple[List[dict], Any]:
    """Let a data set load its list of samples.

    Returns:
        tuple: The list before filtering, and the API object (COCO) with which the library read its annotation file,
        if that is in COCO's format.
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


def unlisted_problems(dataset: Any, prefixes: Dict[str, str], limit: TimeLimit) -> List[str]:
    """Find out why a data set could not load its list of samples; empty if unknown."""
    ann_file = dataset.ann_file
    if not ann_file and (hasattr(dataset, 'COCOAPI') or is_xml(dataset)):
        return [f'{type(dataset).__name__} has no ann_file: give the file that lists its images']
    if hasattr(dataset, 'COCOAPI'):
        try:
            with open(ann_file, encoding='utf-8') as file:
                text = file.read()
            if text.startswith(BYTE_ORDER_MARK):
                return [f'{ann_file} begins with a byte order mark: save it as UTF-8 without byte order mark']
            content = json.loads(text)
            other = known_format(ann_file)
            if not other and not isinstance(content, dict):
                kind = type(content).__name__
                return [f'{ann_file} is a {kind}, expected a dict with {", ".join(PARTS)}: export it in COCO format']
            lacking = [part for part in PARTS if isinstance(content, dict) and part not in content]
            if not other and content and lacking in (['categories'], ['images']):
                return [f'{ann_file} has no {lacking[0]!r}, which COCO format requires: add them']
            return (
                [other]
                if other
                else [f'{ann_file}: {line}: correct or remove them' for line in fatal_annotations(content)]
            )
        except UnicodeDecodeError as error:
            return [packed_problem(ann_file) or known_format(ann_file) or not_utf8(ann_file, error)]
        except IsADirectoryError:
            return [folder_format(ann_file)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [
                known_format(ann_file)
                or f'{ann_file} ({osp.getsize(ann_file)} bytes) is not a COCO annotation file, or is corrupt or '
                f'truncated ({type(error).__name__}: {error}): copy it again, or export it in COCO format'
            ]
    if has_folders(dataset):
        return folder_problems(dataset, prefixes.get('img_path', dataset.data_root), limit)
    if is_xml(dataset):
        return unreadable_xml(dataset)
    if ann_file and osp.isdir(ann_file):
        empty = ', or leave ann_file empty for folders of classes' if hasattr(dataset, 'with_label') else ''
        return [f'ann_file {ann_file} is a folder, expected a file: add the name of the file{empty}']
    if ann_file:
        try:
            with open(ann_file, encoding='utf-8') as file:
                file.read()
        except UnicodeDecodeError as error:
            return [not_utf8(ann_file, error)]
    if getattr(dataset, 'with_label', False):
        return list_file_problems(ann_file)
    return []


def packed_problem(path: str) -> str:
    """Describe a compressed file; empty if it is none."""
    with open(path, 'rb') as file:
        head = file.read(2)
    kind = {b'\x1f\x8b': 'gzip', b'PK': 'zip'}.get(head)
    return f'{path} is compressed ({kind}): unpack it' if kind else ''


def not_utf8(path: str, error: UnicodeDecodeError) -> str:
    """Describe a text in another encoding."""
    return f'{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 without byte order mark'


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
    if not everything and (api is not None or osp.isfile(dataset.ann_file or '')):
        return [known_format(where) or f'{where} lists no images']
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
    elif is_xml(dataset):
        unknown_xml_names(dataset, everything, limit)
    if not is_coco(dataset, api):
        problems = problems or inverted_box_problems(dataset, where)
    if is_segmentation(dataset) or hasattr(dataset, 'proposal_file'):  # only mmseg and mmdet draw with it
        report_unusable_palette(dataset)
    problems = problems or label_type_problems(dataset, where) or emptiness_problems(dataset, everything, where, api)
    if not problems and 'gt_label' in dataset.data_list[0]:
        problems += label_problems(dataset, where, num_classes)
    return problems


def emptiness_problems(dataset: Any, everything: List[dict], where: str, api: Any) -> List[str]:
    """Check that a data set has samples, objects, and every class.

    For testing, a file may have no annotations, like COCO's test-dev, and a subset of it, or of the classes, may have
    no objects.
    """
    left = len(dataset)
    filters = getattr(dataset, 'filter_cfg', None) or {}
    reasons = f' (filter_cfg={dict(filters)})' if filters else ''
    sides = [min(info['width'], info['height']) for info in everything if info.get('width') is not None]
    small = sum(side < filters.get('min_size', 0) for side in sides)
    reasons += f'; {small} are smaller than min_size, the smallest {min(sides)} pixels' if small else ''
    indices = getattr(dataset, '_indices', None)
    if indices is not None and not indices:
        reasons += f'; indices={indices!r}'
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
        log_warning(f'{where}: {len(absent)} of {len(classes)} classes never occur ({shorten(absent)})')
    return []


def labels_of(dataset: Any) -> Optional[Set[int]]:
    """Return the labels that occur in a data set's list; ``None`` if the list has no labels."""
    infos = dataset.data_list
    if infos and all('segments_info' in info for info in infos):
        return {each['category'] for info in infos for each in info['segments_info']}
    if infos and all('instances' in info for info in infos):
        return {each['bbox_label'] for info in infos for each in info['instances'] if 'bbox_label' in each}
    if infos and all(info.get('gt_label') is not None for info in infos):
        return set(np.unique(label_table(infos)[:, 1]).tolist())
    return None
