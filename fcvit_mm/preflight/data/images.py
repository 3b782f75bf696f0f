"""Image files of a data set: which ones it uses, whether they are complete, and their sizes."""

import contextlib
import os.path as osp
import random
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from ...images import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    image_problem,
    list_images,
    size_and_orientation,
    truncation_problem,
)
from ..limits import TimeLimit, spread
from ..log import SHOWN, log_warning, shorten
from ..missing_files import near_file

#: Maximum number of images of each data set that are decoded before the start.
SAMPLE_SIZE = 64
#: Seconds for decoding these, for checking whether the other files exist and are complete, and for their sizes. Files
#: that are not reached in this time are checked when training reads them.
DECODE_SECONDS, END_SECONDS, SIZE_SECONDS = 1.5, 1.5, 1.0
#: Suffixes of images that a data set may not use, and the seconds for searching such images.
SUFFIXES, SUFFIX_SECONDS = (*IMAGE_SUFFIXES, *OTHER_SUFFIXES), 1.0
#: Largest value of images that count as almost black, as 12-bit images are if 16 bits are reduced to 8.
DARK = 16
#: Fraction of the images (at least one image) that may differ in size from their annotations: training skips them;
#: validation and testing replace them by empty images.
TURNED = 0.01


def tolerated(number: int) -> float:
    """Return the number of images that may differ in size from their annotations."""
    return max(1, TURNED * number)


def skipped_images(folders: Sequence[str], is_taken: Callable[[str], bool], limit: TimeLimit) -> List[str]:
    """Find the images in folders that a data set does not use."""
    return [
        path
        for folder in limit.part(folders, SUFFIX_SECONDS, 'folders searched for images with other suffixes')
        for path in list_images(folder, SUFFIXES)
        if not is_taken(path)
    ]


def suffixes_of(paths: Sequence[str]) -> str:
    """Return the different suffixes of some files, as text."""
    return shorten(sorted({osp.splitext(path)[1] for path in paths}))


def file_problems(dataset: Any, read: Optional[Callable[[dict], dict]], allowed: float, limit: TimeLimit) -> List[str]:
    """Check that the images of a data set exist, are complete, and have the size of their annotations."""
    infos = [info for info in dataset.data_list if isinstance(info.get('img_path'), str)]
    by_path = {info['img_path']: info for info in infos}

    def read_path(path: str) -> Any:
        results = read({**by_path[path], 'seg_map_path': None}) if read is not None else {}
        if results.get('img') is not None:
            sizes[path] = results['img'].shape[1::-1]
            if results['img'].dtype == np.uint8:
                largest[path] = int(results['img'].max())
        return results.get('img')

    sizes: Dict[str, Tuple[int, int]] = {}
    largest: Dict[str, int] = {}
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    folder = next((str(prefixes[key]) for key in ('img', 'img_path') if prefixes.get(key)), dataset.data_root or '')
    problems = image_problems(list(by_path), allowed, read_path if read is not None else None, limit, folder)
    if largest and max(largest.values()) <= DARK:
        log_warning(
            f'all {len(largest)} checked images are almost black: their largest value is {max(largest.values())} of '
            f'255 ({next(iter(largest))}). If their files have more than 8 bits, LoadImageFromFile divides the values '
            'by 256: set its color_type="unchanged" and to_float32=True, and mean and std of the data preprocessor, or '
            'scale the values to 8 bits'
        )
    return problems + size_problems(dataset, infos, sizes, read_path if read is not None else None, limit)


def image_problems(
    paths: List[str],
    allowed: float,
    read: Optional[Callable[[str], Any]] = None,
    limit: Optional[TimeLimit] = None,
    folder: str = '',
) -> List[str]:
    """Check images: decode a sample; check the others for truncation, within the time limit.

    Args:
        paths (list[str]): The images.
        allowed (float): Fraction of them that may be corrupt; up to this, a warning is logged.
        read (callable, optional): Loads an image, as the data set does.
        limit (TimeLimit, optional): Time limit of all checks. Default: a new one.
        folder (str): The folder of the data set's images, in which missing ones are searched.
    """
    limit = limit or TimeLimit()
    lacking = missing_package(paths, read)
    if lacking:
        return [lacking]
    corrupt: Dict[str, str] = {}
    seen: Set[str] = set()
    for path in limit.part(spread(paths, SAMPLE_SIZE), DECODE_SECONDS, 'images decoded'):
        problem = image_problem(path, read)
        seen.add(path)
        if problem:
            corrupt[path] = problem
    for path in limit.part(shuffled(paths), END_SECONDS, 'image files checked for truncation'):
        problem = truncation_problem(path)
        seen.add(path)
        if problem:
            corrupt.setdefault(path, problem)
    checked = len(seen)
    if not corrupt:
        return []
    missing = next((path for path in corrupt if not osp.exists(path)), '')
    near = near_file(missing, folder) if missing else ''
    if near:  # shown first
        corrupt = {missing: f'{corrupt.pop(missing)}. {near}', **corrupt}
    shown = list(corrupt.values())[:SHOWN]
    more = f'... and {len(corrupt) - SHOWN} more corrupt images among the {checked} checked'
    if len(corrupt) <= allowed * checked:
        log_warning(
            f'{len(corrupt)} of {checked} checked images are corrupt and will be skipped: '
            f'{"; ".join(shown)}{"; ..." if len(corrupt) > SHOWN else ""}'
        )
        return []
    return [*shown, *([more] if len(corrupt) > SHOWN else [])]


def missing_package(paths: Sequence[str], read: Optional[Callable[[str], Any]]) -> str:
    """Describe the package that a loading step lacks; empty if it lacks none."""
    if not paths or read is None:
        return ''
    try:
        read(paths[0])
    except ImportError as error:
        return f'images cannot be loaded ({paths[0]}): {error}'
    except Exception:
        # Broad, because corrupt files cause any kind of error; image_problem reports them.
        pass
    return ''


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
        # Rotated without a change of size, so sizes cannot tell whether the annotations fit.
        if orientation in (2, 3, 4) or (orientation > 4 and header is not None and header[0] == header[1]):
            upended.append(f'{path}: orientation {orientation}')
        if not sized:
            continue
        size, wanted = loaded.get(path) or header, (info['width'], info['height'])
        if size not in (None, wanted) and path not in loaded and read is not None:
            with contextlib.suppress(Exception):  # it is reported as corrupt
                read(path)  # the pipeline decides whether EXIF data rotates it
            size = loaded.get(path)
        if size is not None and size != wanted:
            wrong[path] = f'{path} is {size[0]}x{size[1]}, not {wanted[0]}x{wanted[1]}'
            turned += size == wanted[::-1]
    if upended:
        log_warning(
            f'{len(upended)} of {checked} checked images are rotated by EXIF data without a change of size '
            f'({shorten(upended, 2)}), so it is unknown whether their annotations are for the rotated images: check '
            'this, or save the images without EXIF rotation'
        )
    if not wrong:
        return []
    shown = shorten(wrong.values(), 3)
    text = f'{len(wrong)} of {checked} checked images differ in size from their annotations ({shown})'
    # If the size is not that of the rotated image either, the annotation belongs to another image.
    if len(wrong) <= (tolerated(len(infos)) if turned == len(wrong) else TURNED * len(infos)):
        log_warning(f'{dataset.ann_file}: {text} and will be skipped')
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
        # Broad, because corrupt files cause any kind of error; image_problem reports them.
        return None, 1
