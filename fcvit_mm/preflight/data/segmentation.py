"""Data sets for segmentation: names of images and maps, and labels in the maps."""

import os
import os.path as osp
import re
from typing import Any, Callable, Dict, List, Optional, Set

import numpy as np
from PIL import UnidentifiedImageError

from ...errors import origin
from ...images import image_problem, list_images, open_image, read_labels, truncation_problem
from ..limits import TimeLimit, spread
from ..log import SHOWN, log_warning, shorten
from ..missing_files import near_file
from .alignment import Alignment
from .images import DECODE_SECONDS, SAMPLE_SIZE, skipped_images, suffixes_of, tolerated
from .interpolation import Interpolation
from .kinds import needs_maps
from .palettes import Color, palette_of, report_palettes

#: Maximum number of maps whose palettes are compared.
PALETTES = 16
#: First bytes of a JPEG.
JPEG = b'\xff\xd8'


def suffix_problems(dataset: Any, prefixes: Dict[str, str], everything: List[dict], limit: TimeLimit) -> List[str]:
    """Check which images and maps a data set for segmentation does not use because of their suffix."""
    suffix, ann_file, folder = dataset.img_suffix, dataset.ann_file, prefixes.get('img_path')
    if ann_file or folder is None:
        problems = listed_name_problems(dataset, everything) if osp.isfile(ann_file or '') else []
        return problems if dataset.data_list else [f'{ann_file or folder} lists no images']
    # list_images ignores upper and lower case.
    others = [path for path in list_images(folder, [suffix.lower()]) if not path.endswith(suffix)]
    maps = osp.join(osp.abspath(prefixes.get('seg_map_path') or os.sep), '')
    # Maps may lie beside the images.
    beside = dataset.seg_map_suffix if maps.startswith(osp.join(osp.abspath(folder), '')) else None

    def is_taken(path: str) -> bool:
        ending = '.' + suffix.lower().rpartition('.')[2]
        return path.lower().endswith(ending) or bool(beside and path.endswith(beside))

    skipped = skipped_images([folder], is_taken, limit)
    if not dataset.data_list:
        if osp.isdir(maps) and any(path.endswith(suffix) for path in list_images(maps, [suffix.lower()])):
            return [
                f'no images (*{suffix}) in {folder} (img_path), but in {maps} (seg_map_path): exchange them in '
                'data_prefix'
            ]
        found = osp.basename(others[0])[-len(suffix) :] if others else suffixes_of(skipped)
        number = len(others or skipped)
        way_out = '' if ',' in found else f': set img_suffix={found!r} of the data set'
        but = f', but {number} that end in {found}{way_out}' if found else ''
        return [f'no images (*{suffix}) in {folder}{but}']
    if others:
        log_warning(
            f'{len(others)} images in {folder} ({shorten(others[:1])}) differ from img_suffix={suffix!r} only in '
            'upper and lower case and are skipped: rename them'
        )
    if skipped:
        log_warning(
            f'{len(skipped)} images in {folder} end in {suffixes_of(skipped)} ({skipped[0]}) and are skipped, because '
            f'the data set has img_suffix={suffix!r}: convert them, or list them in a data set of their own'
        )
    elif not others and needs_maps(dataset):
        unused_maps(dataset, prefixes.get('seg_map_path'), folder, everything)
    return []


def unused_maps(dataset: Any, maps: Optional[str], folder: str, everything: List[dict]) -> None:
    """Report segmentation maps without an image, except those named after used ones, such as colored copies."""
    suffix = dataset.seg_map_suffix
    used = {osp.normpath(info['seg_map_path'])[: -len(suffix)] for info in everything if info.get('seg_map_path')}
    if not maps or not used:
        return
    stems = (osp.normpath(path)[: -len(suffix)] for path in list_images(maps, [suffix.lower()]))
    unused = [stem for stem in stems if stem not in used and stem.rpartition('_')[0] not in used]
    if unused:
        log_warning(
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


def label_map_problems(
    dataset: Any,
    read: Optional[Callable[[dict], dict]],
    prefixes: Dict[str, str],
    num_classes: Optional[int],
    limit: TimeLimit,
    raw: Set[int],
    labels: Set[int],
) -> List[str]:
    """Check segmentation maps of a data set: those of a few samples, as loaded by its own pipeline steps.

    Args:
        dataset (Dataset): The data set.
        read (callable, optional): Its loading steps.
        prefixes (dict): Its folders.
        num_classes (int, optional): Classes that the model can learn.
        limit (TimeLimit): Time limit of all checks.
        raw (set of int): Set that gets the labels in the files.
        labels (set of int): Set that gets the labels as loaded.
    """
    infos = spread([info for info in dataset.data_list if info.get('seg_map_path')], SAMPLE_SIZE)
    maps = prefixes.get('seg_map_path') or shorten((info['seg_map_path'] for info in infos), 1)
    missing: List[str] = []
    corrupt: List[str] = []
    colored: List[str] = []
    turned: List[str] = []
    resized: List[str] = []
    palettes: Dict[str, Dict[int, Color]] = {}
    alignment, interpolation = Alignment(), Interpolation()
    checked = 0
    for info in limit.part(infos, DECODE_SECONDS, f'{maps}: segmentation maps loaded'):
        path = info['seg_map_path']
        checked += 1
        if not osp.isfile(path):
            missing.append(path)
            continue
        problem, colors = truncation_problem(path) if read is not None else image_problem(path), ''
        if not problem:
            colors = channels_of(path)
        if problem or colors:
            (corrupt if problem else colored).append(problem or f'{path}: {colors}')
            continue
        try:
            raw |= set(read_labels(path))
            results = read(info) if read is not None else {}
        except Exception as error:
            # Broad, because steps may be any code.
            if image_fails(read, info):
                continue  # file_problems reports it, and decides whether it may be skipped
            message = re.sub(r' <\S+ object at \w+>', '', origin(error).message)
            if 'reduce_zero_label' in message and 'nitialize dataset' in message:  # mmseg compares them at each map
                return [
                    f'reduce_zero_label is {dataset.reduce_zero_label} for the data set, but another value for '
                    'LoadAnnotations in its pipeline: set the same for both'
                ]
            corrupt.append(
                image_problem(path)
                or f'{path} cannot be loaded by the pipeline ({type(error).__name__}: {message}): save it as PNG, or '
                'load it with a step for its format'
            )
            continue
        if len(palettes) < PALETTES:
            palettes[path] = palette_of(path)
        image, loaded = results.get('img'), results.get('gt_seg_map')
        if loaded is not None:
            labels |= set(np.unique(loaded).tolist())
            # In 8 bits, like the files: 0, which reduce_zero_label turned into 255, becomes the smallest label again.
            shifted = dataset.reduce_zero_label and not dataset.label_map
            interpolation.add(path, (loaded.astype(np.int32) + 1) % 256 if shifted else loaded)
            if image is not None:
                alignment.add(image, loaded)
        if image is not None and loaded is not None and image.shape[:2] != loaded.shape[:2]:
            size, wanted = image.shape[1::-1], loaded.shape[1::-1]
            if image.ndim == 3 and image.shape[1:] == loaded.shape[:2]:
                corrupt.append(
                    f'{info["img_path"]} is loaded as {image.shape}, channels first, but the pipeline expects '
                    '(height, width, channels): save it in this order (a TIFF with planarconfig="contig")'
                )
                continue
            wrong = f'{path} has size {wanted}, but its image has {size} (width, height)'
            (turned if size == wanted[::-1] else resized).append(wrong)
    if turned and len(turned) <= tolerated(len(dataset.data_list)):
        log_warning(f'{len(turned)} images will be skipped: {shorten(turned, 1)}, or EXIF data rotates the image')
    else:
        corrupt += turned
    problems = corrupt[:SHOWN]
    if resized:
        problems.append(
            f'{len(resized)} of {checked} checked maps have another size than their image ({shorten(resized, 2)}): use '
            'the maps of these images, or resize maps with the nearest neighbor'
        )
    if colored:
        problems.append(
            f'{len(colored)} of {checked} checked maps are color images ({shorten(colored, 2)}), expected one '
            'channel of class indices: convert the colors to indices'
        )
    if missing:
        problems.append(
            f'{len(missing)} of {checked} checked images have no segmentation map ({shorten(missing, 1)}): complete '
            'the data set, or correct seg_map_path and seg_map_suffix' + f'. {near_file(missing[0])}'.rstrip('. ')
        )
    if problems or not (raw or labels):
        return problems
    report_palettes(dataset, palettes)
    alignment.report(maps)
    interpolation.report(maps)
    if num_classes is None:
        return []
    return loaded_label_problems(dataset, maps, raw, labels, num_classes, checked)


def image_fails(read: Optional[Callable[[dict], dict]], info: dict) -> bool:
    """Check whether the image of a sample cannot be loaded, independent of its segmentation map."""
    if read is None:
        return False
    try:
        return read({**info, 'seg_map_path': None}).get('img') is None
    except Exception:
        # Broad, because steps may be any code.
        return True


def loaded_label_problems(
    dataset: Any, maps: str, raw: Set[int], labels: Set[int], num_classes: int, checked: int
) -> List[str]:
    """Compare the labels in the files, and the labels as loaded, with the classes of the model."""
    shift = 1 if dataset.reduce_zero_label else 0
    ignored = dataset.ignore_index
    if shift and not dataset.label_map and raw - {ignored} == set(range(num_classes)):
        log_warning(
            f'segmentation maps in {maps} contain the labels 0 to {num_classes - 1}, and reduce_zero_label=True '
            'ignores 0 and makes 1 the first class: if 0 is the first class, set reduce_zero_label=False of the data '
            'set and of LoadAnnotations'
        )
    fractions = sorted(label for label in raw if label % 1)
    if fractions:
        return [
            f'segmentation maps in {maps} contain {shorten(f"{label:.3g}" for label in fractions)}, expected class '
            f'indices: they are loaded as integers, here {shorten(sorted(labels))}. Convert the values to indices'
        ]
    wrapped = sorted(label for label in raw if label > 255)
    if wrapped and not any(label > 255 for label in labels):
        return [
            f'segmentation maps in {maps} contain the labels {shorten(wrapped)}, but are loaded with 8 bits: labels '
            f'above 255 wrap around ({wrapped[0]} becomes {wrapped[0] % 256}). Use at most 255 classes, or your own '
            'loading step'
        ]
    wrong = sorted(label for label in labels if label >= num_classes and label != ignored)
    if wrong == [255] and shift:
        return [
            f'segmentation maps in {maps}: reduce_zero_label=True turns label 0 into 255, but the data set has '
            f'ignore_index={ignored}: set ignore_index=255 of the data set'
        ]
    if wrong:
        held = [label + shift for label in wrong] if not dataset.label_map else wrong
        is_far = len(wrong) == 1 and wrong[0] > num_classes
        return [
            f'segmentation maps in {maps} contain the labels {shorten(held)}, but the model has {num_classes} classes '
            f'(labels {shift} to {num_classes - 1 + shift}, {ignored} is ignored; '
            f'reduce_zero_label={dataset.reduce_zero_label}): correct num_classes or the maps'
            + ('. JPEG changes labels: save the maps as PNG' if has_jpeg_maps(dataset) else '')
            + (f'. If {held[0]} marks ignored pixels, replace it by {ignored} in the maps' if is_far else '')
        ]
    taught = labels - {ignored}
    # For a validation set, the check of the metric reports this.
    if labels == {ignored} and not dataset.test_mode and checked == min(len(dataset.data_list), SAMPLE_SIZE):
        return [
            f'segmentation maps in {maps}: all pixels of the {checked} checked maps are ignored ({ignored}); their '
            f'files contain {shorten(sorted(raw))} (reduce_zero_label={dataset.reduce_zero_label}): nothing can be '
            'learned. Correct reduce_zero_label or the maps'
        ]
    if len(taught) <= 1 < num_classes and (checked > 1 or not taught):
        log_warning(
            f'segmentation maps in {maps}: only {len(taught)} of {num_classes} classes occurs '
            f'({shorten(sorted(taught))}) in {checked} checked maps, whose files contain {shorten(sorted(raw))}; '
            f'{ignored} is ignored. If {ignored} means a class, replace it by the class index in the maps'
        )
    return []


def has_jpeg_maps(dataset: Any) -> bool:
    """Check whether the first segmentation map is a JPEG by its content."""
    path = next((info['seg_map_path'] for info in dataset.data_list if info.get('seg_map_path')), '')
    try:
        with open(path, 'rb') as file:
            return file.read(2) == JPEG
    except OSError:
        return False


def channels_of(path: str) -> str:
    """Describe the channels of a segmentation map that has several; empty if it has one, or Pillow cannot read it."""
    try:
        with open_image(path) as image:
            bands, mode = image.getbands(), image.mode
    except UnidentifiedImageError:
        return ''
    return '' if len(bands) == 1 else f'mode {mode}, {len(bands)} channels'
