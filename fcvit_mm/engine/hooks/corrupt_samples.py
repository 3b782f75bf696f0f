"""Samples with corrupt files: skipped and counted in training, replaced in validation, rejected in testing.

Images that differ in size from their annotations are skipped or replaced in all three.
"""

import copy
import io
import logging
import os
import shutil
import sys
import tempfile
import traceback
import uuid
import weakref
from contextlib import suppress
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import UserError, is_defect, library_error
from ...files import write_atomic
from ...images import ARRAY_SUFFIXES, EXIF_ORIENTATION, image_problem, image_size, truncation_problem
from ...registry import HOOKS
from ..config import leaf_datasets

#: The ignored label of segmentation maps.
IGNORED = 255
#: Maximum number of samples loaded to determine the number of image channels.
NEIGHBOURS = 8
#: Maximum number of characters for a pipeline step with its settings in a message.
STEP_LENGTH = 80
#: Keys of paths in the libraries' samples.
PATHS = ('img_path', 'seg_map_path')


class CorruptSampleError(UserError):
    """A file of a sample is missing, empty, truncated, not an image, or does not match the sample's other file."""


class GuardedLoading:
    """A data set's ``prepare_data`` that handles corrupt files, for any pipeline.

    In training a sample with a corrupt file becomes ``None``, for which MMEngine's data sets draw another one
    (``max_refetch``), and is counted. In the validation of a training run the corrupt file is replaced by an empty one,
    and counted. In testing it is an error. An image that differs in size from its annotations (rotated by EXIF data) is
    treated like a corrupt one, but is replaced by an empty one in testing, too. Other errors name the sample.

    Args:
        dataset (Dataset): Has ``prepare_data(index)``.
        marks (Tensor, optional): One for each sample, shared by all workers: 1 where a file is corrupt. ``None`` if
            nothing may be skipped.
        limit (float): Fraction of the data set that may be corrupt.
        classes (int, optional): Smallest label that is out of range in segmentation maps, if known.
        stand_ins (str, optional): Folder for the empty files that replace corrupt ones in validation and testing,
            created when the first is needed; ``None`` in training.
        tests (bool): Whether a corrupt file is an error; images of another size are still replaced.
    """

    def __init__(
        self,
        dataset: Any,
        marks: Optional[torch.Tensor] = None,
        limit: float = 0.0,
        classes: Optional[int] = None,
        stand_ins: Optional[str] = None,
        tests: bool = False,
    ) -> None:
        self.dataset = dataset
        self.original = vars(dataset).get('prepare_data')  # set on the instance; None: defined by the class
        self.marks = marks
        self.limit = limit
        self.classes = classes
        self.stand_ins = stand_ins
        self.tests = tests
        self.checked: Set[int] = set()

    def __call__(self, index: Any) -> Any:
        """Load a sample.

        Raises:
            CorruptSampleError: A file is corrupt, and the sample may not be skipped.
            LibraryError: Loading failed for another reason.
        """
        info = self._info(index)
        paths = _local_paths(info)
        # Only existing files: files of a storage backend are not local, and pipelines report missing ones themselves.
        problems = list(filter(None, map(truncation_problem, filter(os.path.isfile, paths.values()))))
        if problems:
            return self._replace(index, info, problems, None)
        if index not in self.checked:
            problem = self._size_problem(info, paths)
            if problem:
                return self._replace(index, info, [problem], None, corrupt=False)
            self.checked.add(index)
        try:
            results = self._load(index)
        except Exception as error:
            problems = list(filter(None, map(image_problem, paths.values())))
            if problems and self._loaded_size(info) is None:
                return self._replace(index, info, problems, error)
            if isinstance(error, UserError) or is_defect(error):
                raise
            name = info.get('img_path', f'sample {index} of {type(self.dataset).__name__}')
            advice = 'Check the sample, its annotations and the steps of the pipeline'
            raise library_error(error, f'loading {name}{failing_step(error)}', advice) from error
        # Only in training, because test pipelines resize the image but not the map.
        problem = None if self.marks is None or self.stand_ins else map_problem(results, self.classes)
        return self._replace(index, info, [problem], None) if problem else results

    def _load(self, index: Any) -> Any:
        if self.original is not None:
            return self.original(index)
        return type(self.dataset).prepare_data(self.dataset, index)

    def _info(self, index: Any) -> dict:
        """Return the entry of a sample in the data set's list; empty for data sets without MMEngine's list."""
        if isinstance(index, tuple):  # a frame of a video
            return {}
        if hasattr(self.dataset, 'get_data_info'):
            return self.dataset.get_data_info(index)
        rows = getattr(self.dataset, 'data_list', None)
        return dict(rows[index]) if isinstance(rows, list) and isinstance(rows[index], dict) else {}

    def _size_problem(self, info: dict, paths: Dict[str, str]) -> Optional[str]:
        """Return whether the loaded image differs in size from its annotations; usually the header suffices."""
        path, annotated = paths.get('img_path'), _annotated_size(info, paths)
        if path is None or annotated is None:
            return None
        if _header_size(path) == annotated:
            return None
        loaded = self._loaded_size(info)  # the pipeline decides whether EXIF data rotates it
        if loaded is None or loaded == annotated:
            return None
        return (
            f'{path} is loaded as {loaded[0]}x{loaded[1]}, but its annotations are for {annotated[0]}x{annotated[1]} '
            '(width x height): EXIF data rotates it, or the annotations belong to another image'
        )

    def _loaded_size(self, info: dict) -> Optional[Tuple[int, int]]:
        """Return width and height of an image as loaded by the pipeline; ``None`` if loading fails."""
        image = self._loaded_image(info)
        return None if image is None else image.shape[1::-1]

    def _loaded_image(self, info: dict) -> Optional[np.ndarray]:
        """Return an image as loaded by the pipeline; ``None`` if loading fails."""
        data = copy.deepcopy(info)
        try:
            for step in getattr(self.dataset.pipeline, 'transforms', None) or ():
                name = type(step).__name__
                if not name.startswith('Load') or 'Annotation' in name:
                    break
                data = step(data)
            return np.asarray(data['img'])
        except Exception:
            # Broad, because loaders raise any kind of error.
            return None

    def _channels(self, index: int) -> int:
        """Return the number of channels of images as loaded by the pipeline, from the next readable sample."""
        number = len(self.dataset)
        for other in range(index + 1, index + 1 + min(NEIGHBOURS, number - 1)):
            image = self._loaded_image(self._info(other % number))
            if image is not None:
                return 1 if image.ndim == 2 else image.shape[2]
        return 3

    def _replace(
        self, index: Any, info: dict, problems: List[str], error: Optional[Exception], corrupt: bool = True
    ) -> Any:
        """Count a sample as corrupt; return its replacement, or ``None`` to let the data set draw another."""
        message = f'loading {info.get("img_path")} failed: {"; ".join(problems)}'
        if self.marks is None or (self.tests and corrupt):
            raise CorruptSampleError(message) from error
        if not self.marks[index]:
            self.marks[index] = 1
            number = int(self.marks.sum())
            done = (
                'Replaced by an empty file, which the metrics count'
                if self.stand_ins
                else 'Skipped and replaced by another sample'
            )
            print_log(
                f'{message}. {done} ({number} of {len(self.marks)} so far)', logger='current', level=logging.WARNING
            )
            if number > max(1, self.limit * len(self.marks)):
                raise CorruptSampleError(
                    f'{message}. {number} of {len(self.marks)} samples have corrupt files, more than the '
                    f'{self.limit:.1%} that may be skipped: repair the data set, or raise the limit in the config '
                    "file: custom_hooks=[dict(type='SkipCorruptSamplesHook', limit=...)]"
                ) from error
        return self._load_with_stand_ins(index, info, self.stand_ins) if self.stand_ins else None

    def _load_with_stand_ins(self, index: Any, info: dict, folder: str) -> Any:
        info = _with_stand_ins(info, folder, self._channels(index))
        before = vars(self.dataset).get('get_data_info')
        self.dataset.get_data_info = lambda _: info  # called by prepare_data
        try:
            return self._load(index)
        finally:
            del self.dataset.get_data_info
            if before is not None:
                self.dataset.get_data_info = before


def _local_paths(data: dict) -> Dict[str, str]:
    return {key: data[key] for key in PATHS if isinstance(data.get(key), str) and data[key] and '://' not in data[key]}


def _header_size(path: str) -> Optional[Tuple[int, int]]:
    """Return width and height from a file's header, unless EXIF data rotates the image by 90 degrees."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            return None if turned else image.size
    except Exception:
        # Broad, because the pipeline's loader may read files that Pillow cannot open.
        return None


def _annotated_size(data: dict, paths: Dict[str, str]) -> Optional[Tuple[int, int]]:
    """Return width and height of a sample's annotations: of its segmentation map, or from the data set."""
    if 'seg_map_path' in paths:
        return _header_size(paths['seg_map_path'])
    width, height = data.get('width'), data.get('height')
    return (int(width), int(height)) if width and height else None


def _with_stand_ins(data: dict, folder: str, channels: int) -> dict:
    """Return a sample whose corrupt files are replaced by an empty image or a fully ignored map.

    The replacements have the names of these files, because results are named after them.
    """
    data = dict(data)
    paths = _local_paths(data)
    # If both files decode, the image counts as the file that does not fit.
    corrupt = [key for key, path in paths.items() if image_problem(path)] or ['img_path']
    width, height = _annotated_size(data, {key: path for key, path in paths.items() if key not in corrupt}) or next(
        (image_size(paths[key]) for key in paths if key not in corrupt), (224, 224)
    )
    for key in corrupt:
        below = os.path.join(folder, f'{key}_{width}x{height}x{channels}')
        data[key] = os.path.join(below, os.path.basename(data[key]))
        if not os.path.exists(data[key]):
            os.makedirs(folder, 0o700, exist_ok=True)
            os.makedirs(below, exist_ok=True)
            pixels = empty_image(key, width, height, channels)
            write_atomic(data[key], encode(pixels, data[key]))  # several workers may write it
    return data


def empty_image(key: str, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Build the replacement of a corrupt file: an image of ImageNet's mean color, or a map of ignored labels.

    Args:
        key (str): One of :data:`PATHS`.
        width (int): Width in pixels.
        height (int): Height in pixels.
        channels (int): Number of channels of an image; if it is not three, all values are the mean grey value.

    Returns:
        np.ndarray: uint8, ``(height, width, channels)``; for a map ``(height, width)``.
    """
    if key == 'seg_map_path':
        return np.full((height, width), IGNORED, np.uint8)
    color = (124, 116, 104) if channels == 3 else (116,) * channels
    return np.tile(np.array(color, np.uint8), (height, width, 1))


def encode(pixels: np.ndarray, name: str) -> bytes:
    """Encode an image in a format that readers of files with this name accept.

    Args:
        pixels (np.ndarray): uint8, ``(H, W)`` or ``(H, W, C)``, RGB where there are three channels.
        name (str): File name. NumPy arrays and TIFF keep their format; others become PNG, which decoders detect.

    Raises:
        ImportError: tifffile is not installed, which images with two or more than four channels need.
    """
    from PIL import Image

    suffix, file = os.path.splitext(name)[1].lower(), io.BytesIO()
    if suffix in ARRAY_SUFFIXES:
        np.lib.format.write_array(file, pixels)
    elif pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        import tifffile

        tifffile.imwrite(file, pixels, photometric='minisblack', planarconfig='contig')
    else:
        image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
        image.save(file, 'TIFF' if suffix in ('.tif', '.tiff') else 'PNG')
    return file.getvalue()


def map_problem(results: Any, classes: Optional[int] = None, ignored: int = IGNORED) -> Optional[str]:
    """Return why a segmentation map does not match its image or the classes; the libraries' error names no file."""
    if not isinstance(results, dict):
        return None
    sample, inputs = results.get('data_samples'), results.get('inputs')
    labels = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
    if not isinstance(labels, torch.Tensor) or not isinstance(inputs, torch.Tensor):
        return None
    name = getattr(sample, 'seg_map_path', '')
    if labels.shape[-2:] != inputs.shape[-2:]:
        return (
            f'the segmentation map {name} is {tuple(labels.shape[-2:])}, its image {tuple(inputs.shape[-2:])} '
            '(height, width): they are of different images, or are resized differently'
        )
    if classes is not None and labels.numel() and labels.max() >= classes:
        wrong = labels[(labels >= classes) & (labels != ignored)]
        if wrong.numel():
            return (
                f'the segmentation map {name} contains {int(wrong.min())}, but there are {classes} classes (0 to '
                f'{classes - 1} after reduce_zero_label, {ignored} is ignored)'
            )
    return None


@HOOKS.register_module()
class SkipCorruptSamplesHook(Hook):
    """Hook that skips samples with corrupt files, with a warning for each, and counts them.

    ``tools/train.py`` and ``tools/test.py`` add it.

    A file counts as corrupt if it is missing, empty, truncated or not an image, or an image that differs in size from
    its annotations. In training, the sample is skipped; in validation, the file is replaced by an empty one. In
    testing, a corrupt file raises an error, and an image of the wrong size is replaced. Other errors of a data pipeline
    name their sample.

    The hook wraps the method that loads a sample (``prepare_data``), so other hooks may switch pipelines. Data sets
    that cannot be wrapped are logged at the start.

    Args:
        limit (float): Training ends when more than this fraction of a data set, and more than one file, is corrupt.
            With 0 it ends at the second corrupt file.
        skip (bool): Whether to skip corrupt samples; if not, training ends at the first one.

    Raises:
        UserError: ``limit`` is not within 0 and 1.
    """

    priority = 'HIGH'

    def __init__(self, limit: float = 0.01, skip: bool = True) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f'limit is {limit}, expected a fraction of the data set, 0 to 1')
        self.limit = limit
        self.skip = skip
        self.stand_ins: Optional[str] = None

    def before_run(self, runner: Runner) -> None:
        self._guard(runner, True)

    def before_train_epoch(self, runner: Runner) -> None:
        self._guard(runner)  # hooks may have replaced the data set

    def before_val_epoch(self, runner: Runner) -> None:
        self._guard(runner)

    def _guard(self, runner: Runner, report: bool = False) -> None:
        # Private attributes, because the properties would build loaders that this run does not need.
        datasets = {
            name: getattr(getattr(getattr(runner, f'_{name}_loop', None), 'dataloader', None), 'dataset', None)
            for name in ('train', 'val', 'test')
        }
        trains = self.skip and datasets['train'] is not None
        evaluated = [name for name in ('val', 'test') if datasets[name] is not None]
        if self.skip and evaluated and self.stand_ins is None:
            # Only a name: the folder is created by the process that needs it first; most runs need none.
            self.stand_ins = os.path.join(tempfile.gettempdir(), f'fcvit_mm_{uuid.uuid4().hex}')
            weakref.finalize(self, shutil.rmtree, self.stand_ins, ignore_errors=True)
        for name, dataset in datasets.items():
            tests = name == 'test' or not trains
            stand_ins = self.stand_ins if name in evaluated else None
            for leaf in loading_datasets(dataset):
                skips = trains and name != 'test'
                if not guard(leaf, self.limit, self.skip, stand_ins, tests) and skips and report and leaf is not None:
                    reason = (
                        'has test_mode=True'
                        if isinstance(leaf, BaseDataset)
                        else "does not load samples by prepare_data and get_data_info, as MMEngine's BaseDataset does"
                    )
                    print_log(
                        f'{name}_dataloader.dataset: a corrupt file ends training, because {type(leaf).__name__} '
                        f'{reason}',
                        logger='current',
                        level=logging.WARNING,
                    )

    def after_train_epoch(self, runner: Runner) -> None:
        for leaf in loading_datasets(runner.train_dataloader.dataset):
            marks = getattr(getattr(leaf, 'prepare_data', None), 'marks', None)
            if marks is not None and marks.any():
                runner.logger.warning(
                    f'{int(marks.sum())} of {len(marks)} samples were skipped so far because of corrupt files, listed '
                    'above'
                )


def loading_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that load samples, inside wrappers of any kind that keep them as attributes."""
    for leaf in leaf_datasets(dataset):
        yield from [leaf] if _loads(leaf) else list(_inside(leaf)) or [leaf]


def _inside(wrapper: Any) -> Iterator[Any]:
    for each in getattr(wrapper, '__dict__', {}).values():
        if _loads(each):
            yield each
        elif hasattr(each, '__getitem__') and hasattr(each, '__len__'):
            yield from _inside(each)


def _loads(dataset: Any) -> bool:
    return hasattr(dataset, '__getitem__') and callable(getattr(dataset, 'prepare_data', None))


def guard(dataset: Any, limit: float, skip: bool, stand_ins: Optional[str] = None, tests: bool = False) -> bool:
    """Replace a data set's ``prepare_data`` by :class:`GuardedLoading`.

    Args:
        dataset (Dataset): A data set that loads samples, not a wrapper.
        limit (float): Fraction of it that may be corrupt.
        skip (bool): Whether to skip any.
        stand_ins (str, optional): Folder for empty files. A data set for validation or testing needs it to skip.
        tests (bool): Whether only images of another size than annotated are skipped.

    Returns:
        bool: Whether corrupt samples are handled, within the limits of ``skip``.
    """
    if not _loads(dataset):
        return False
    if isinstance(dataset.prepare_data, GuardedLoading):
        return not skip or dataset.prepare_data.marks is not None
    marks, classes = None, None
    if skip and isinstance(dataset, BaseDataset) and (stand_ins or not dataset.test_mode):
        marks = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        if getattr(dataset, 'ignore_index', None) == 255 and dataset.metainfo.get('classes'):  # mmseg's
            classes = len(dataset.metainfo['classes'])
    dataset.prepare_data = GuardedLoading(dataset, marks, limit, classes, stand_ins, tests)
    return not skip or marks is not None


def failing_step(error: BaseException) -> str:
    """Return `` in STEP(SETTINGS)``, the innermost pipeline step in an error's traceback; empty if there is none."""
    base = getattr(sys.modules.get('mmcv.transforms'), 'BaseTransform', ())
    callers = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    steps = [each for each in callers if isinstance(each, base)]
    if not steps:
        return ''
    name, text = type(steps[-1]).__name__, ''
    with suppress(Exception):  # a faulty __repr__, as that of mmdet's PackTrackInputs, must not hide the error
        text = ' '.join(repr(steps[-1]).split())
    if not text.startswith(f'{name}('):  # a step that does not show its settings
        return f' in {name}'
    return f' in {text}' if len(text) <= STEP_LENGTH else f' in {text[:STEP_LENGTH]}...'
