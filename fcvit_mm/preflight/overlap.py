"""Duplicate images: in both the training and the validation data, or twice in the training data, under any name."""

import hashlib
import os
from functools import lru_cache
from typing import Any, Callable, Dict, Iterable, List, Sequence

from .data.images import shuffled
from .limits import TimeLimit, spread
from .log import log_warning

#: Seconds for reading the sizes of training files, and for comparing validation files with those of the same size.
SIZE_SECONDS, CONTENT_SECONDS = 1.0, 0.7
#: Maximum number of validation files that are compared, and of training files of one size for each comparison.
COMPARED, OF_ONE_SIZE = 200, 20
#: Minimum fraction of repeated training images that is reported.
REPEATED = 0.05


def report_overlap(train: Sequence[str], others: Sequence[str], what: str, limit: TimeLimit) -> None:
    """Log a warning if images to evaluate on are training images, too, or if many training images are there twice.

    Args:
        train (sequence of str): Paths of the training images.
        others (sequence of str): Paths of the images to evaluate on.
        what (str): Name of these images in messages.
        limit (TimeLimit): Time limit of all checks.
    """
    known, advice = set(train), 'results on them say nothing about new images. Separate them, unless this is intended'
    common = [path for path in others if path in known]
    if common:
        log_warning(f'{what}: {len(common)} of {len(others)} images are training images ({common[0]}, ...): {advice}')
        return
    by_size: Dict[int, List[str]] = {}
    for path in limit.part(shuffled(train), SIZE_SECONDS, f'{what}: training files compared by size'):
        by_size.setdefault(size_of(path), []).append(path)
    content = lru_cache(maxsize=None)(content_of)
    same, checked = [], 0
    for path in limit.part(spread(others, COMPARED), CONTENT_SECONDS, f'{what}: files compared with training files'):
        checked += 1
        alike = by_size.get(size_of(path), [])[:OF_ONE_SIZE]
        same += [(path, each) for each in alike if content(each) == content(path) != ''][:1]
    if same:
        log_warning(
            f'{what}: {len(same)} of {checked} compared images have the content of a training image ({same[0][0]} is '
            f'{same[0][1]}): {advice}'
        )
    report_repetitions(by_size, content, limit)


def report_repetitions(by_size: Dict[int, List[str]], content: Callable[[str], str], limit: TimeLimit) -> None:
    """Log a warning if many training images have the content of another one.

    Args:
        by_size (dict): Size of a file -> paths of the training images of this size, in a random order.
        content (callable): Returns a hash of the content of a file.
        limit (TimeLimit): Time limit of all checks.
    """
    of_size = {path: paths for paths in by_size.values() for path in paths}
    same, checked = [], 0
    for path in limit.part(list(of_size)[:COMPARED], CONTENT_SECONDS, 'training files compared with each other'):
        checked += 1
        alike = [each for each in of_size[path][:OF_ONE_SIZE] if each != path]
        same += [(path, each) for each in alike if content(each) == content(path) != ''][:1]
    if len(same) > max(2, REPEATED * checked):
        log_warning(
            f'train_dataloader: {len(same)} of {checked} compared images have the content of another one '
            f'({same[0][0]} is {same[0][1]}): remove the repetitions, unless they are intended'
        )


def sources_of(datasets: Iterable[Any]) -> Dict[str, str]:
    """Return the annotation files and folders of segmentation maps of data sets, with the folders of their images."""
    found = {}
    for dataset in datasets:
        prefixes = getattr(dataset, 'data_prefix', None) or {}
        images = next((prefixes[key] for key in ('img', 'img_path') if isinstance(prefixes.get(key), str)), '')
        # Segmentation maps have the names of the images; a list file may name images of several folders.
        source = prefixes.get('seg_map_path') or getattr(dataset, 'ann_file', None)
        if images and isinstance(source, str) and os.path.exists(source):
            found[os.path.realpath(source)] = os.path.realpath(images)
    return found


def report_shared_annotations(train: Dict[str, str], others: Dict[str, str], what: str) -> None:
    """Log a warning if the same annotations are used for images of two folders.

    Args:
        train (dict): Result of :func:`sources_of` for the training data.
        others (dict): The same for the data to evaluate on.
        what (str): Name of the data to evaluate on in messages.
    """
    for source in sorted(set(train) & set(others)):
        if train[source] != others[source]:
            log_warning(
                f'train_dataloader and {what} have the same annotations, {source}, for images in different folders, '
                f'{train[source]} and {others[source]}: give each folder its own'
            )


def size_of(path: str) -> int:
    """Return the size of a file in bytes; -1 if there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def content_of(path: str) -> str:
    """Return a hash of the content of a file; empty if there is none."""
    try:
        with open(path, 'rb') as file:
            return hashlib.blake2b(file.read()).hexdigest()
    except OSError:
        return ''
