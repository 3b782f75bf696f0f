"""Checks before training and testing: one error that lists every problem, in seconds instead of hours."""

import json
import os
import os.path as osp
import random
import shutil
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from ..apis.load import read_trained
from ..checkpoints import CheckpointError, check_finite, read_checkpoint
from ..engine.config import leaf_datasets, type_name, walk
from ..engine.hooks.corrupt_samples import SkipCorruptSamplesHook
from ..errors import UserError, origin
from ..images import image_problem, image_size, list_images, read_labels, truncation_problem
from .annotations import coco_faults

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
    heads = dict(head_classes(cfg))
    for name in loaders:
        if not cfg.get(name):
            problems.append(f'the config has no {name}')
            continue
        for dataset_cfg in leaf_datasets(cfg[name]['dataset']):
            found, classes = dataset_problems(
                cfg.default_scope, dataset_cfg, max(heads.values(), default=None), allowed_part(cfg, name)
            )
            problems += [f'{name}: {problem}' for problem in found]
            if classes is not None:
                seen[name] = classes
    for name, names in seen.items():
        for head, number in heads.items():
            if number != len(names):
                problems.append(
                    f'{name}: {head}.num_classes is {number}, but the data set has {len(names)} classes '
                    f'({shorten(names)}): --cfg-options {head}.num_classes={len(names)}, or correct '
                    'metainfo.classes of the data set'
                )
    return unique(problems)


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
) -> Tuple[List[str], Optional[tuple]]:
    """Check one data set.

    Args:
        scope (str): Library that the config is for.
        dataset_cfg (dict): Config of the data set.
        num_classes (int, optional): Classes that the model can learn, to compare labels with.
        allowed (float): Part of the images that may be corrupt; so many are a warning and no problem.

    Returns:
        tuple[list[str], tuple | None]: The problems, and the names of the classes if they are known.
    """
    try:
        with DefaultScope.overwrite_default_scope(scope):
            # Lazily: its library resolves names and paths, and reads nothing yet.
            dataset = DATASETS.build(dict(dataset_cfg, lazy_init=True, pipeline=[]))
    except Exception as error:
        # Broad, because each data set has checks of its own.
        return [f'{type_name(dataset_cfg)} cannot be built: {origin(error).message}'], None
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    root: Any = getattr(dataset, 'data_root', None)
    ann_file: Any = getattr(dataset, 'ann_file', None)
    prefixes = {key: path for key, path in getattr(dataset, 'data_prefix', {}).items() if path}
    if any(is_url(path) for path in [root or '', ann_file or '', *prefixes.values()]):
        return [], classes
    if root and not osp.isdir(root):
        return [
            f'data_root {osp.abspath(root)} does not exist: put the data there, or name its folder in data_root'
        ], classes
    problems = []
    if ann_file and not osp.isfile(ann_file):
        problems.append(f'annotation file {ann_file} does not exist: correct ann_file or complete the data set')
    for key, path in prefixes.items():
        if not osp.isdir(path):
            problems.append(
                f'folder {path} does not exist (data_prefix {key}): correct data_prefix or complete the data set'
            )
    if problems:
        return problems, classes
    if hasattr(dataset, 'COCOAPI'):
        with_masks = any(node.get('with_mask') for node in walk(dataset_cfg.get('pipeline', [])))
        paths, found = coco_problems(dataset, ann_file, prefixes.get('img', root or ''), with_masks)
    elif hasattr(dataset, 'with_label'):
        paths, found, classes = folder_problems(dataset, ann_file, prefixes.get('img_path', root), classes)
    elif hasattr(dataset, 'seg_map_suffix'):
        paths, found = segmentation_problems(dataset, ann_file, prefixes, num_classes)
    else:
        paths, found = [], []
    problems += found
    problems += image_problems(paths, allowed)
    return problems, classes


def image_problems(paths: List[str], allowed: float) -> List[str]:
    """Check images: a sample is decoded; of the others the ends of the files are read, while there is time."""
    decoded = ((path, image_problem(path)) for path in sample(paths))
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


def coco_problems(dataset: Any, ann_file: str, folder: str, with_masks: bool = False) -> Tuple[List[str], List[str]]:
    """Return the images and the problems of a data set in COCO's format."""
    try:
        with open(ann_file, encoding='utf-8') as file:
            content = json.load(file)
        categories = [category['name'] for category in content['categories']]
        images = [osp.join(folder, image['file_name']) for image in content['images']]
        fatal, skipped = coco_faults(content, with_masks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [], [
            f'{ann_file} ({osp.getsize(ann_file)} bytes) is no COCO annotation file, corrupt or truncated '
            f'({type(error).__name__}: {error}): copy it again'
        ]
    if not images:
        return [], [f'{ann_file} lists no images']
    for line in skipped:
        print_log(f'{ann_file}: {line}: mmdet skips them', logger='current', level=30)
    problems = [f'{ann_file}: {line}: correct or remove them' for line in fatal]
    wrong = [
        f'{osp.join(folder, image["file_name"])} is {found[0]}x{found[1]}, not {image["width"]}x{image["height"]}'
        for image in sample(content['images'])
        for found in [size_of(osp.join(folder, image['file_name']))]
        if found not in (None, (image['width'], image['height']))
    ]
    if wrong:
        problems.append(
            f'{ann_file}: {len(wrong)} of {len(sample(images))} checked images have another size than '
            f'annotated ({shorten(wrong)}): the annotations belong to other images'
        )
    classes = list(dataset.metainfo.get('classes') or ())
    unknown = [name for name in classes if name not in categories]
    if unknown:
        # mmdet would skip them and number the others anew.
        return images, [
            *problems,
            f'metainfo.classes names {shorten(unknown)}, which are not among the {len(categories)} '
            f'categories of {ann_file} ({shorten(categories)}): set metainfo=dict(classes=...) of the '
            'data set, in the order of the file',
        ]
    in_order = [name for name in categories if name in classes]
    if in_order != classes:
        # mmdet numbers classes in the order of the file, whatever the order in metainfo.
        return images, [
            *problems,
            f'metainfo.classes ({shorten(classes)}) is in another order than the categories of {ann_file} '
            f'({shorten(in_order)}), so names would go to the wrong classes: use the order of the file',
        ]
    return images, problems


def size_of(path: str) -> Optional[Tuple[int, int]]:
    """Return width and height of an image; ``None`` if they cannot be read."""
    try:
        return image_size(path)
    except Exception:
        # Broad, because corrupt bytes fail in any way there is; image_problem reports them.
        return None


def folder_problems(
    dataset: Any, ann_file: Optional[str], folder: str, classes: Optional[tuple]
) -> Tuple[List[str], List[str], Optional[tuple]]:
    """Return the images, problems and classes of a data set for classification with one folder per class."""
    paths = list_images(folder, dataset.extensions)
    if not paths:
        return [], [f'no images ({", ".join(sorted(dataset.extensions))}) below {folder}'], classes
    if ann_file or not dataset.with_label:
        return paths, [], classes
    folders = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if classes is not None and len(classes) != len(folders):
        return (
            paths,
            [
                f'{folder} has {len(folders)} folders ({shorten(folders)}), one per class, but '
                f'{type(dataset).__name__} has {len(classes)} classes: set metainfo=dict(classes=[...]) of '
                'the data set, or type CustomDataset, which takes the names of the folders'
            ],
            None,
        )
    return paths, [], classes or folders


def segmentation_problems(
    dataset: Any, ann_file: Optional[str], prefixes: Dict[str, str], num_classes: Optional[int]
) -> Tuple[List[str], List[str]]:
    """Return the images and problems of a data set for segmentation; of a sample, the maps of labels are read."""
    folder, maps = prefixes.get('img_path'), prefixes.get('seg_map_path')
    if folder is None:
        return [], []
    if ann_file:
        with open(ann_file, encoding='utf-8') as file:
            names = [line.strip() + dataset.img_suffix for line in file if line.strip()]
        paths = [osp.join(folder, name) for name in names]
    else:
        paths = list_images(folder, [dataset.img_suffix])
    if not paths:
        return [], [f'no images (*{dataset.img_suffix}) in {ann_file or folder}']
    if maps is None:
        return paths, []
    missing: List[str] = []
    corrupt: List[str] = []
    labels: set = set()
    for image in sample(paths):
        name = osp.relpath(image, folder)[: -len(dataset.img_suffix)] + dataset.seg_map_suffix
        path = osp.join(maps, name)
        if not osp.isfile(path):
            missing.append(path)
            continue
        problem = image_problem(path)
        if problem:
            corrupt.append(problem)
        else:
            labels |= set(read_labels(path))
            if size_of(image) not in (None, size_of(path)):
                corrupt.append(
                    f'{path} is {size_of(path)} and its image {size_of(image)} (width, height): they do '
                    'not belong together'
                )
    problems = corrupt[:SHOWN]
    if missing:
        problems.append(
            f'{len(missing)} of {len(sample(paths))} checked images have no map of labels '
            f'({shorten(missing[:1])}): complete the data set, or correct seg_map_path and seg_map_suffix'
        )
    if num_classes is not None and not dataset.label_map:
        shift = 1 if dataset.reduce_zero_label else 0
        wrong = sorted(
            label
            for label in labels
            if label != dataset.ignore_index and not (shift and label == 0) and label - shift >= num_classes
        )
        if wrong:
            problems.append(
                f'maps in {maps} hold the labels {shorten(wrong)}, but the model has {num_classes} classes '
                f'(labels {shift} to {num_classes - 1 + shift}, {dataset.ignore_index} is ignored; '
                f'reduce_zero_label={dataset.reduce_zero_label}): correct num_classes or the maps'
            )
    return paths, problems
