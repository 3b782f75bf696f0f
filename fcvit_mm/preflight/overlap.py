"""Images that are in the training and the validation data, under the same name or another."""

import hashlib
import os
from functools import lru_cache
from typing import Dict, List, Sequence

from .data.images import shuffled
from .limits import TimeLimit, remark, spread

#: Seconds for reading the sizes of training files, and for comparing validation files with those of the same size.
SIZE_SECONDS, CONTENT_SECONDS = 1.0, 0.7
#: Validation files that are compared, and the training files of one size that each is compared with.
COMPARED, OF_ONE_SIZE = 200, 20


def report_overlap(train: Sequence[str], others: Sequence[str], what: str, limit: TimeLimit) -> None:
    """Log a warning if images to evaluate on are training images, too.

    Args:
        train (sequence of str): Paths of the training images.
        others (sequence of str): Paths of the images to evaluate on.
        what (str): What to call them.
        limit (TimeLimit): Time limit of all checks.
    """
    known, advice = set(train), 'results on them say nothing about new images. Separate them, unless this is intended'
    common = [path for path in others if path in known]
    if common:
        remark(f'{what}: {len(common)} of {len(others)} images are training images ({common[0]}, ...): {advice}')
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
        remark(
            f'{what}: {len(same)} of {checked} compared images have the content of a training image ({same[0][0]} is '
            f'{same[0][1]}): {advice}'
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
