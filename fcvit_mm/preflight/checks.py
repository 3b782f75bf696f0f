"""Checks before training and testing: one error that lists every problem, in seconds instead of hours."""

import json
import os
import os.path as osp
import random
import shutil
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from ..apis.load import read_trained
from ..checkpoints import CheckpointError, check_finite, read_checkpoint
from ..engine.config import leaf_datasets, type_name, walk
from ..engine.hooks.corrupt_samples import SkipCorruptSamplesHook
from ..errors import UserError, origin
from ..images import (
    image_problem,
    image_size,
    list_images,
    open_image,
    read_labels,
    sample_of,
    truncation_problem,
)
from .annotations import coco_faults
from .truth import truth_problems

#: Images of each data set that are decoded before the start.
SAMPLE_SIZE = 64
#: Seconds for checking, in each data set, whether the other files are there and complete; what this does not reach is
#: checked when training reads it.
CHECK_SECONDS = 10
#: Examples of one kind of problem in the message.
SHOWN = 5
HEADS = ('head', 'bbox_head', 'roi_head', 'decode_head', 'auxiliary_head')


class PreflightError(UserError):
    """All problems that a run would meet.

    Attributes:
        problems (list[str]): One line each.
    """

    def __init__(self, problems: List[str]) -> None:
        self.problems = list(problems)
        number = '1 problem' if len(problems) == 1 else f'{len(problems)} problems'
        super().__init__('\n  - '.join([f'{number} found before the start:', *problems]))


def check_training(cfg: Config) -> None:
    """Check what training needs: data to train and validate on, checkpoints, numbers of classes.

    Args:
        cfg (Config): The config, command line merged and resume point chosen
            (:func:`fcvit_mm.engine.hooks.resume.select_resume_point`).

    Raises:
        PreflightError: Lists all that was found.
    """
    problems = []
    if cfg.get('resume') and cfg.get('load_from'):
        problems += resume_problems(cfg.load_from)
    else:
        problems += pretrained_problems(cfg)
        if cfg.get('load_from'):
            problems += checkpoint_problems(cfg.load_from, 'load_from')
    validates = cfg.get('val_cfg') is not None
    problems += work_dir_problems(cfg)
    problems += data_problems(cfg, ['train_dataloader', *(['val_dataloader'] if validates else [])])
    if problems:
        raise PreflightError(problems)


def check_testing(cfg: Config, checkpoint: str) -> None:
    """Check what testing needs: its data, the checkpoint, numbers of classes.

    Raises:
        PreflightError: Lists all that was found.
    """
    problems = checkpoint_problems(checkpoint, 'the checkpoint') + data_problems(cfg, ['test_dataloader'])
    if problems:
        raise PreflightError(problems)


def is_url(path: str) -> bool:
    """Check whether a path is an address."""
    return '://' in path


def checkpoint_problems(path: str, what: str) -> List[str]:
    """Check a checkpoint by :func:`fcvit_mm.apis.load.read_trained`, which never runs what is in it."""
    try:
        read_trained(path)
    except CheckpointError as error:
        return [f'{what}: {error}']
    return []


def resume_problems(path: str) -> List[str]:
    """Check a checkpoint that training is to resume from."""
    try:
        content = read_trained(path)
    except CheckpointError as error:
        return [f'--resume: {error}']
    meta = content.get('meta')
    if 'optimizer' not in content or not isinstance(meta, dict) or not {'epoch', 'iter'} <= set(meta):
        return [
            f'--resume: {path} holds weights but no training state. To start anew from these weights: '
            f'--cfg-options load_from={path}'
        ]
    if 'config' in meta:
        return [
            f'--resume: {path} brings a config, which MMEngine would run as a program: refused. Checkpoints of '
            'tools/train.py have none'
        ]
    return []


def pretrained_problems(cfg: Config) -> List[str]:
    """Check the files that parts of the model start from."""
    problems = []
    for node in walk(cfg.get('model', {})):
        path = node.get('checkpoint')
        if type_name(node) == 'Pretrained' and isinstance(path, str) and not is_url(path):
            try:
                content = read_checkpoint(path)
                check_finite(content.get('state_dict', content), path)
            except CheckpointError as error:
                problems.append(
                    f'pretrained: {error}. Another file: --cfg-options pretrained=PATH; from scratch: '
                    '--cfg-options pretrained=None'
                )
    return problems


def work_dir_problems(cfg: Config) -> List[str]:
    """Check that the work directory can be written, with room for one more checkpoint like the largest one there."""
    folder = osp.abspath(cfg.work_dir)
    while not osp.isdir(folder):
        folder = osp.dirname(folder)
    if not os.access(folder, os.W_OK):
        return [
            f'work_dir {cfg.work_dir} cannot be written ({folder} belongs to someone else): --work-dir names another'
        ]
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith('.pth')]
    return disk_problems(folder, max(sizes, default=0))


def disk_problems(folder: str, needed: int) -> List[str]:
    """Check that the disk of a folder has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed < free:
        return []
    return [
        f'{folder} has {free / 2**20:.0f} MiB free, the checkpoints to come need {needed / 2**20:.0f} MiB: make '
        'room, name another --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts'
    ]


def allowed_part(cfg: Config, loader: str) -> float:
    """Return which part of the files behind a data loader may be corrupt."""
    if loader != 'train_dataloader':
        return 0.0
    hook: Any = SkipCorruptSamplesHook()
    for configured in cfg.get('custom_hooks') or []:
        if type_name(configured) == 'SkipCorruptSamplesHook':
            hook = configured
            if isinstance(configured, dict):
                options = {key: configured[key] for key in ('limit', 'skip') if key in configured}
                hook = SkipCorruptSamplesHook(**options)
    return hook.limit if hook.skip else 0.0


def data_problems(cfg: Config, loaders: List[str]) -> List[str]:
    """Check the data sets behind some data loaders, and the heads that are to learn from them."""
    problems: List[str] = []
    seen: Dict[str, Sequence[str]] = {}
    splits: Dict[str, Sequence[str]] = {}
    heads = dict(head_classes(cfg))
    for name in loaders:
        if not cfg.get(name):
            problems.append(f'the config has no {name}')
            continue
        leaves = list(leaf_datasets(cfg[name]['dataset']))
        for dataset_cfg in leaves:
            found, classes, dataset = dataset_problems(
                cfg.default_scope, dataset_cfg, max(heads.values(), default=None), allowed_part(cfg, name)
            )
            split = name.partition('_')[0]
            if dataset is not None and not found and split != 'train' and len(leaves) == 1:
                problems += truth_problems(cfg, split, dataset)
            problems += [f'{name}: {problem}' for problem in found]
            if classes is not None:
                seen[name] = classes
                if not found:
                    splits[f'{name} ({folder_of(dataset_cfg)})'] = classes
    differing = split_problems(splits)
    problems += differing
    for name, names in seen.items():
        for head, number in heads.items():
            if number != len(names) and not (differing and name != 'train_dataloader'):
                problems.append(
                    f'{name}: {head}.num_classes is {number}, but the data set has {len(names)} classes '
                    f'({shorten(names)}): --cfg-options {head}.num_classes={len(names)}, or correct '
                    'metainfo.classes of the data set'
                )
    return unique(problems)


def folder_of(dataset_cfg: dict) -> str:
    """Return where the config of a data set says that it is."""
    prefix = dataset_cfg.get('data_prefix') or ''
    parts = [dataset_cfg.get('data_root'), dataset_cfg.get('ann_file'), prefix if isinstance(prefix, str) else '']
    return osp.join('', *filter(None, parts))


def split_problems(splits: Dict[str, Sequence[str]]) -> List[str]:
    """Check that all splits have the same classes in the same order: labels are their numbers."""
    problems: List[str] = []
    if not splits:
        return problems
    first, *others = splits
    for other in others:
        here, there = list(splits[first]), list(splits[other])
        if here == there:
            continue
        lacking = [name for name in here if name not in there]
        added = [name for name in there if name not in here]
        texts = [f'lacks {shorten(lacking)}'] * bool(lacking) + [f'adds {shorten(added)}'] * bool(added)
        problems.append(
            f'{other} {" and ".join(texts) or "has another order"}: its classes are {shorten(there)}, those of '
            f'{first} {shorten(here)}, so that the same label means different classes. Give both the same folders '
            '(empty ones, too), or the same metainfo=dict(classes=[...])'
        )
    return problems


def unique(items: List[str]) -> List[str]:
    """Return the items without repetitions, in order."""
    return list(dict.fromkeys(items))


def shorten(items: Iterable[Any]) -> str:
    """Return the first few items as text."""
    items = [str(item) for item in items]
    return ', '.join(items if len(items) <= SHOWN else [*items[:SHOWN], '...'])


def head_classes(cfg: dict) -> Iterator[Tuple[str, int]]:
    """Yield dotted name and ``num_classes`` of each head that has one, and of what mixes labels before them."""

    def visit(node: Any, name: str) -> Iterator[Tuple[str, int]]:
        if isinstance(node, dict):
            if isinstance(node.get('num_classes'), int):
                yield name, node['num_classes']
            for key, child in node.items():
                yield from visit(child, f'{name}.{key}')
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                yield from visit(child, f'{name}.{index}')

    # mmpretrain's preprocessor makes the vectors of labels that Mixup and CutMix mix.
    yield from visit({'num_classes': (cfg.get('data_preprocessor') or {}).get('num_classes')}, 'data_preprocessor')
    model = cfg.get('model') or {}
    for key in HEADS:
        if key in model:
            yield from visit(model[key], f'model.{key}')


def dataset_problems(
    scope: str, dataset_cfg: dict, num_classes: Optional[int], allowed: float = 0.0
) -> Tuple[List[str], Optional[tuple], Any]:
    """Check one data set, by its own list of data and its own loading steps.

    Args:
        scope (str): Library that the config is for.
        dataset_cfg (dict): Config of the data set.
        num_classes (int, optional): Classes that the model can learn, to compare labels with.
        allowed (float): Part of the images that may be corrupt; so many are a warning and no problem.

    Returns:
        tuple: The problems; the names of the classes if they are known; the data set, if its list could be loaded.
    """
    try:
        with DefaultScope.overwrite_default_scope(scope):
            # Lazily: its library resolves names and paths, and reads nothing yet.
            dataset = DATASETS.build(dict(dataset_cfg, lazy_init=True, pipeline=[]))
    except Exception as error:
        # Broad, because each data set has checks of its own.
        return [f'{type_name(dataset_cfg)} cannot be built: {origin(error).message}'], None, None
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    root: Any = getattr(dataset, 'data_root', None)
    ann_file: Any = getattr(dataset, 'ann_file', None)
    prefixes = {key: path for key, path in getattr(dataset, 'data_prefix', {}).items() if path}
    if any(is_url(path) for path in [root or '', ann_file or '', *prefixes.values()]):
        return [], classes, None
    if root and not osp.isdir(root):
        return (
            [f'data_root {osp.abspath(root)} does not exist: put the data there, or name its folder in data_root'],
            classes,
            None,
        )
    problems = []
    if ann_file and not osp.isfile(ann_file):
        problems.append(f'annotation file {ann_file} does not exist: correct ann_file or complete the data set')
    for key, path in prefixes.items():
        if not osp.isdir(path):
            problems.append(
                f'folder {path} does not exist (data_prefix {key}): correct data_prefix or complete the data set'
            )
    if problems:
        return problems, classes, None
    if hasattr(dataset, 'COCOAPI'):
        with_masks = any(node.get('with_mask') for node in walk(dataset_cfg.get('pipeline', [])))
        problems += coco_problems(dataset, ann_file, prefixes.get('img', root or ''), with_masks, allowed)
    elif hasattr(dataset, 'with_label'):
        found, classes = folder_problems(dataset, ann_file, prefixes.get('img_path', root), classes)
        problems += found
    if problems:
        return problems, classes, None
    try:
        with DefaultScope.overwrite_default_scope(scope):
            # What full_init does, in its steps: to compare what is left with what there was.
            dataset.data_list = dataset.load_data_list()
            number = len(dataset.data_list)
            dataset.data_list = dataset.filter_data()
    except Exception as error:
        # Broad, because each data set has checks of its own.
        return (
            [
                f'{type_name(dataset_cfg)} does not load {ann_file or shorten(prefixes.values())}: '
                f'{origin(error).message}: correct the data or its paths'
            ],
            classes,
            None,
        )
    if (
        not hasattr(dataset, 'with_label')
        and not hasattr(dataset, 'seg_map_suffix')
        and not hasattr(dataset, 'COCOAPI')
    ):
        return [], classes, dataset
    if hasattr(dataset, 'seg_map_suffix') and not hasattr(dataset, 'COCOAPI'):
        problems += suffix_problems(dataset, ann_file, prefixes.get('img_path'))
    problems += emptiness_problems(dataset, number, ann_file or shorten(prefixes.values()), classes)
    if problems:
        return problems, classes, dataset
    read = loading_steps(scope, dataset_cfg)
    if hasattr(dataset, 'with_label') and ann_file:
        problems += label_problems(dataset, ann_file, classes, num_classes)
    elif hasattr(dataset, 'seg_map_suffix') and not hasattr(dataset, 'COCOAPI'):
        problems += segmentation_problems(dataset, prefixes, num_classes)
    paths = [info['img_path'] for info in dataset.data_list if isinstance(info.get('img_path'), str)]
    problems += image_problems(paths, allowed, read)
    return problems, classes, dataset


def loading_steps(scope: str, dataset_cfg: dict) -> Optional[Callable[[str], Any]]:
    """Return what loads the image of a path by the first steps of a data set's pipeline; ``None`` without such."""
    steps = [node for node in dataset_cfg.get('pipeline') or () if type_name(node).startswith('LoadImage')]
    if not steps:
        return None
    try:
        with DefaultScope.overwrite_default_scope(scope):
            built = [TRANSFORMS.build(dict(step)) for step in steps]
    except Exception:
        # Broad, because steps are anybody's; building the pipeline reports it.
        return None

    def read(path: str) -> Any:
        results: Any = sample_of(path)
        for step in built:
            results = step(results)
        return results and results.get('img')

    return read


def emptiness_problems(dataset: Any, number: int, where: str, classes: Optional[tuple]) -> List[str]:
    """Check that something is left of a data set: samples, objects, and of every class some."""
    left = len(dataset.data_list)
    reasons = f' (filter_cfg={dataset.filter_cfg})' if getattr(dataset, 'filter_cfg', None) else ''
    if left == 0:
        return [
            f'{where}: none of {number} samples is left: {type(dataset).__name__} skips all of them{reasons}. Check '
            'the annotations, and filter_cfg of the data set'
        ]
    if hasattr(dataset, 'COCOAPI'):
        labels = [each['bbox_label'] for info in dataset.data_list for each in info['instances']]
        if not labels and not dataset.test_mode:
            return [
                f'{where}: no object is left in {left} images: {type(dataset).__name__} skips empty boxes, boxes '
                'outside of their image and unknown categories. Boxes are [x, y, width, height] in pixels; area is '
                'above 0; category_id is a number of "categories"'
            ]
    elif hasattr(dataset, 'with_label'):
        labels = [
            int(each) for info in dataset.data_list for each in np.atleast_1d(np.asarray(info.get('gt_label', []), int))
        ]
    else:
        return []
    occurring = set(labels)
    absent = [name for index, name in enumerate(classes or ()) if index not in occurring]
    if absent and occurring:
        print_log(
            f'{where}: {len(absent)} of {len(classes or ())} classes never occur ({shorten(absent)})',
            logger='current',
            level=30,
        )
    return []


def suffix_problems(dataset: Any, ann_file: Optional[str], folder: Optional[str]) -> List[str]:
    """Check which images of a folder a data set for segmentation does not take because of capitals in the suffix."""
    suffix = dataset.img_suffix
    if ann_file or folder is None:
        return [] if dataset.data_list else [f'no images are named in {ann_file or folder}']
    # list_images takes either case.
    others = [path for path in list_images(folder, [suffix.lower()]) if not path.endswith(suffix)]
    if not dataset.data_list:
        found = osp.basename(others[0])[-len(suffix) :] if others else ''
        but = (
            f', but {len(others)} that end in {found}: img_suffix={found!r} of the data set takes them'
            if others
            else ''
        )
        return [f'no images (*{suffix}) in {folder}{but}']
    if others:
        print_log(
            f'{len(others)} images in {folder} ({shorten(others[:1])}) differ from img_suffix={suffix!r} by case and '
            'are skipped: rename them',
            logger='current',
            level=30,
        )
    return []


def label_problems(dataset: Any, ann_file: str, classes: Optional[tuple], num_classes: Optional[int]) -> List[str]:
    """Check the labels and images that a list file names."""
    number = len(classes) if classes else num_classes
    problems = []
    if number is not None:
        wrong = [
            (line, info['gt_label'])
            for line, info in enumerate(dataset.data_list, 1)
            if any(not 0 <= each < number for each in np.atleast_1d(np.asarray(info.get('gt_label', []), int)))
        ]
        if wrong:
            problems.append(
                f'{ann_file}: {len(wrong)} of {len(dataset.data_list)} labels are not among 0 to {number - 1} '
                f'({shorten(f"line {line}: {label}" for line, label in wrong)}): labels are numbered from 0'
            )
    return problems


def list_file_problems(ann_file: str) -> List[str]:
    """Check that every line of a list file of mmpretrain has an image and a label."""
    with open(ann_file, encoding='utf-8') as file:
        lines = [line.strip() for line in file.read().split('\n')]
    if lines and not lines[-1]:
        lines.pop()
    wrong = [number for number, line in enumerate(lines, 1) if not line.rpartition(' ')[0]]
    return (
        [
            f'{ann_file}: {len(wrong)} of {len(lines)} lines have no label or are empty (lines {shorten(wrong)}): '
            'each is "path label", or remove it'
        ]
        if wrong
        else []
    )


def image_problems(paths: List[str], allowed: float, read: Optional[Callable[[str], Any]] = None) -> List[str]:
    """Check images: a sample is decoded; of the others the ends of the files are read, while there is time."""
    decoded = ((path, image_problem(path, read)) for path in sample(paths))
    corrupt = {path: problem for path, problem in decoded if problem}
    order = list(range(len(paths)))
    random.Random(0).shuffle(order)
    end, checked = time.monotonic() + CHECK_SECONDS, 0
    for index in order:
        problem = truncation_problem(paths[index])
        checked += 1
        if problem:
            corrupt.setdefault(paths[index], problem)
        if time.monotonic() > end:
            break
    if not corrupt:
        return []
    shown = list(corrupt.values())[:SHOWN]
    more = f'... and {len(corrupt) - SHOWN} more corrupt images among the {checked} checked'
    if len(corrupt) <= allowed * checked:
        print_log(
            f'{len(corrupt)} of {checked} checked images are corrupt and will be skipped: '
            f'{"; ".join(shown)}{"; ..." if len(corrupt) > SHOWN else ""}',
            logger='current',
            level=30,
        )
        return []
    return [*shown, *([more] if len(corrupt) > SHOWN else [])]


def sample(items: List[Any]) -> List[Any]:
    """Return at most ``SAMPLE_SIZE`` items, spread evenly."""
    if len(items) <= SAMPLE_SIZE:
        return items
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, SAMPLE_SIZE)]


def coco_problems(
    dataset: Any, ann_file: str, folder: str, with_masks: bool = False, allowed: float = 0.0
) -> List[str]:
    """Return the problems of a data set in COCO's format."""
    try:
        with open(ann_file, encoding='utf-8') as file:
            content = json.load(file)
        categories = [category['name'] for category in content['categories']]
        images = [osp.join(folder, image['file_name']) for image in content['images']]
        fatal, skipped = coco_faults(content, with_masks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [
            f'{ann_file} ({osp.getsize(ann_file)} bytes) is no COCO annotation file, corrupt or truncated '
            f'({type(error).__name__}: {error}): copy it again'
        ]
    if not images:
        return [f'{ann_file} lists no images']
    for line in skipped:
        print_log(f'{ann_file}: {line}: mmdet skips them', logger='current', level=30)
    problems = [f'{ann_file}: {line}: correct or remove them' for line in fatal]
    wrong = [
        f'{osp.join(folder, image["file_name"])} is {found[0]}x{found[1]}, not {image["width"]}x{image["height"]}'
        for image in sample(content['images'])
        for found in [size_of(osp.join(folder, image['file_name']))]
        if found not in (None, (image['width'], image['height']))
    ]
    if wrong and len(wrong) <= max(allowed, 0.01) * len(images):
        print_log(
            f'{ann_file}: {len(wrong)} of {len(sample(images))} checked images have another size than annotated '
            f'({shorten(wrong)}) and will be skipped',
            logger='current',
            level=30,
        )
    elif wrong:
        problems.append(
            f'{ann_file}: {len(wrong)} of {len(sample(images))} checked images have another size than '
            f'annotated ({shorten(wrong)}): the annotations belong to other images'
        )
    classes = list(dataset.metainfo.get('classes') or ())
    unknown = [name for name in classes if name not in categories]
    if unknown:
        # mmdet would skip them and number the others anew.
        return [
            *problems,
            f'metainfo.classes names {shorten(unknown)}, which are not among the {len(categories)} '
            f'categories of {ann_file} ({shorten(categories)}): set metainfo=dict(classes=...) of the '
            'data set, in the order of the file',
        ]
    in_order = [name for name in categories if name in classes]
    if in_order != classes:
        # mmdet numbers classes in the order of the file, whatever the order in metainfo.
        return [
            *problems,
            f'metainfo.classes ({shorten(classes)}) is in another order than the categories of {ann_file} '
            f'({shorten(in_order)}), so names would go to the wrong classes: use the order of the file',
        ]
    return problems


def size_of(path: str) -> Optional[Tuple[int, int]]:
    """Return width and height of an image; ``None`` if they cannot be read."""
    try:
        return image_size(path)
    except Exception:
        # Broad, because corrupt bytes fail in any way there is; image_problem reports them.
        return None


def folder_problems(
    dataset: Any, ann_file: Optional[str], folder: str, classes: Optional[tuple]
) -> Tuple[List[str], Optional[tuple]]:
    """Return the problems and classes of a data set for classification with one folder per class or a list file."""
    if ann_file or not dataset.with_label:
        return list_file_problems(ann_file) if ann_file and dataset.with_label and is_plain_list(
            dataset
        ) else [], classes
    if not list_images(folder, dataset.extensions):
        return [f'no images ({", ".join(sorted(dataset.extensions))}) below {folder}'], classes
    folders = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    hidden = [name for name in folders if name.startswith('.') or name == '__MACOSX']
    if hidden:
        return [
            f'{folder}: the folder {shorten(hidden)}, which holds no class, counts as one: remove it '
            f'(rm -r {osp.join(folder, hidden[0])})'
        ], None
    if classes is not None and len(classes) != len(folders):
        return (
            [
                f'{folder} has {len(folders)} folders ({shorten(folders)}), one per class, but '
                f'{type(dataset).__name__} has {len(classes)} classes: set metainfo=dict(classes=[...]) of '
                'the data set, or type CustomDataset, which takes the names of the folders'
            ],
            None,
        )
    if classes is not None and sorted(classes) == sorted(folders) and tuple(classes) != folders:
        return [
            f'metainfo.classes ({shorten(classes)}) is in another order than the folders in {folder} '
            f'({shorten(folders)}), whose labels follow their sorted names: use that order'
        ], classes
    return [], classes or folders


def is_plain_list(dataset: Any) -> bool:
    """Check whether a data set reads its list file as mmpretrain's ``CustomDataset`` does."""
    from mmpretrain.datasets import CustomDataset

    return type(dataset).load_data_list is CustomDataset.load_data_list


def segmentation_problems(dataset: Any, prefixes: Dict[str, str], num_classes: Optional[int]) -> List[str]:
    """Return the problems of a data set for segmentation; of a sample, the maps of labels are read."""
    maps = prefixes.get('seg_map_path')
    infos = sample([info for info in dataset.data_list if info.get('seg_map_path')])
    if maps is None or not infos:
        return []
    missing: List[str] = []
    corrupt: List[str] = []
    turned: List[str] = []
    labels: set = set()
    for info in infos:
        image, path = info['img_path'], info['seg_map_path']
        if not osp.isfile(path):
            missing.append(path)
            continue
        problem = image_problem(path) or channels_problem(path)
        if problem:
            corrupt.append(problem)
            continue
        labels |= set(read_labels(path))
        size, wanted = size_of(image), size_of(path)
        if size is not None and size != wanted:
            wrong = f'{path} is {wanted} and its image {size} (width, height): they do not belong together'
            (turned if wanted is not None and size == wanted[::-1] else corrupt).append(wrong)
    if turned and len(turned) <= 0.01 * len(dataset.data_list):
        print_log(f'{len(turned)} images will be skipped: {shorten(turned)}', logger='current', level=30)
    else:
        corrupt += turned
    problems = corrupt[:SHOWN]
    if missing:
        problems.append(
            f'{len(missing)} of {len(infos)} checked images have no map of labels '
            f'({shorten(missing[:1])}): complete the data set, or correct seg_map_path and seg_map_suffix'
        )
    if num_classes is None or dataset.label_map or problems:
        return problems
    shift = 1 if dataset.reduce_zero_label else 0
    labels -= {dataset.ignore_index, *([0] if shift else [])}
    large = sorted(label for label in labels if label > 255)
    wrong_labels = sorted(label for label in labels if label - shift >= num_classes)
    if large:
        problems.append(
            f'maps in {maps} hold the labels {shorten(large)}, but mmseg loads maps as 8 bits: labels above 255 become '
            'others (300 becomes 44). Use at most 255 classes, or a loading step of your own'
        )
    elif wrong_labels:
        problems.append(
            f'maps in {maps} hold the labels {shorten(wrong_labels)}, but the model has {num_classes} classes '
            f'(labels {shift} to {num_classes - 1 + shift}, {dataset.ignore_index} is ignored; '
            f'reduce_zero_label={dataset.reduce_zero_label}): correct num_classes or the maps'
        )
    elif len(labels) <= 1 < num_classes and len(infos) > 1:
        print_log(
            f'maps in {maps}: of {num_classes} classes only {len(labels)} occurs ({shorten(sorted(labels))}) in '
            f'{len(infos)} checked maps; {dataset.ignore_index} is ignored. If {dataset.ignore_index} stands for a '
            'class, write its number into the maps',
            logger='current',
            level=30,
        )
    return problems


def channels_problem(path: str) -> Optional[str]:
    """Return why a map of labels is none: it has colours."""
    with open_image(path) as image:
        bands, mode = image.getbands(), image.mode
    if len(bands) == 1:
        return None
    return (
        f'{path} is a colour image (mode {mode}, {len(bands)} channels), but maps have one channel of class '
        'indices: convert the colours to indices'
    )
