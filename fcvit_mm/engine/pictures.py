"""Broken files of a data set: found before training where that is cheap; met in training, left out and counted."""
import logging
import os
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ..registry import HOOKS

#: What the inferencers of the three libraries take for a picture.
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
#: How files of a kind begin and, when nothing is missing, end.
ENDINGS = ((b'\xff\xd8', b'\xff\xd9'), (b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'))
#: Names under which the libraries' samples carry paths.
PATHS = ('img_path', 'seg_map_path')


def picture_problem(path) -> Optional[str]:
    """Why a picture cannot be used, in one line; ``None`` if it decodes completely.

    OpenCV, which the pipelines decode with, fills what a truncated JPEG lacks with grey; Pillow notices.
    """
    from PIL import Image
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return f'{path} is empty (0 bytes): copy it again or remove it from the data set'
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return f'{path} does not exist: complete the data set, or correct data_root, data_prefix or the annotations'
    except Exception as error:
        # Broad, because damaged bytes make decoders fail in any way there is.
        return f'{path} does not decode ({type(error).__name__}: {error}): copy it again or remove it from the data set'
    return None


def truncation_problem(path: str) -> Optional[str]:
    """:func:`picture_problem`, at the cost of reading a few bytes for the files that are whole.

    A JPEG or PNG that ends as its kind ends is taken to be whole. One that does not is decoded: bytes may follow the
    picture. Other kinds are left to the decoders, which refuse what is cut off.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
            for start, end in ENDINGS:
                if head.startswith(start):
                    file.seek(-len(end), os.SEEK_END)
                    return None if file.read() == end else picture_problem(path)
            return None if head else picture_problem(path)
    except OSError:
        return picture_problem(path)


class GuardedPipeline:
    """A data pipeline that answers for broken files.

    In training a sample with a broken file becomes ``None``, for which MMEngine's data sets draw another one
    (``max_refetch``), and is counted; in validation and testing, where every sample counts, it is an error. Errors
    that no broken file explains stay errors, and name the sample.

    Args:
        pipeline (callable): Takes and returns a dict.
        marks (Tensor, optional): One for each sample, shared by all workers: 1 where a file is broken. ``None`` if
            nothing may be left out.
        limit (float): Part of the data set that may be broken.
        classes (int, optional): Least label that is out of range in maps of labels, where that is known.
    """

    def __init__(self, pipeline: Callable, marks: Optional[torch.Tensor] = None, limit: float = 0.,
                 classes: Optional[int] = None) -> None:
        self.pipeline = pipeline
        self.marks = marks
        self.limit = limit
        self.classes = classes

    def __getattr__(self, name):
        # `pipeline` itself is looked up here only while this is being unpickled.
        if name == 'pipeline':
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, data: dict):
        paths = [str(data[key]) for key in PATHS if data.get(key) and '://' not in str(data[key])]
        # Only of files that are there: what a storage backend reads is none of these, and pipelines name what is not.
        problems = list(filter(None, map(truncation_problem, filter(os.path.isfile, paths))))
        if problems:
            return self._leave_out(data, problems, None)
        try:
            results = self.pipeline(data)
        except Exception as error:
            problems = list(filter(None, map(picture_problem, paths)))
            if not problems:
                name = data.get('img_path', 'a sample without img_path')
                raise RuntimeError(f'data pipeline failed at {name}: {error}') from error
            return self._leave_out(data, problems, error)
        # Test pipelines leave the map as it is, for the metric, and resize the picture.
        problem = None if self.marks is None else map_problem(results, self.classes)
        return self._leave_out(data, [problem], None) if problem else results

    def _leave_out(self, data: dict, problems: list, error: Optional[Exception]) -> None:
        message = f'data pipeline failed at {data.get("img_path")}: {"; ".join(problems)}'
        index = data.get('sample_idx')
        if self.marks is None or index is None:
            raise RuntimeError(message) from error
        if not self.marks[index]:
            self.marks[index] = 1
            broken = int(self.marks.sum())
            print_log(f'{message}. Left out, another sample in its place ({broken} of {len(self.marks)} so far)',
                      logger='current', level=logging.WARNING)
            if broken > max(1, self.limit * len(self.marks)):
                raise RuntimeError(
                    f'{message}. {broken} of {len(self.marks)} samples have broken files, more than the '
                    f'{self.limit:.1%} that may be left out: repair the data set, or raise the limit by '
                    "custom_hooks=[dict(type='BrokenPictureHook', limit=...)]") from error


def map_problem(results, classes: Optional[int] = None, ignored: int = 255) -> Optional[str]:
    """A map of labels that does not fit its picture or the classes: it would end training, without a name."""
    if not isinstance(results, dict):
        return None
    sample, inputs = results.get('data_samples'), results.get('inputs')
    labels = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
    if not isinstance(labels, torch.Tensor) or not isinstance(inputs, torch.Tensor):
        return None
    name = getattr(sample, 'seg_map_path', '')
    if labels.shape[-2:] != inputs.shape[-2:]:
        return (f'the map of labels {name} is {tuple(labels.shape[-2:])} and its picture {tuple(inputs.shape[-2:])} '
                '(height, width): not of the same picture, or not resized alike')
    if classes is not None and labels.numel() and labels.max() >= classes:
        wrong = labels[(labels >= classes) & (labels != ignored)]
        if wrong.numel():
            return (f'the map of labels {name} holds {int(wrong.min())}, but there are {classes} classes (0 to '
                    f'{classes - 1} after reduce_zero_label, {ignored} is ignored)')
    return None


@HOOKS.register_module()
class BrokenPictureHook(Hook):
    """Let training pass over broken files, with a warning for each and a count, and name them in any other case.

    Tools add it by themselves. A file is broken if it is missing, empty, cut off or no picture.

    Args:
        limit (float): Training ends when more than this part of a data set, and more than one file, is broken. 0:
            it ends at the second.
        skip (bool): Whether to pass over any; if not, training ends at the first.
    """

    priority = 'HIGH'

    def __init__(self, limit: float = 0.01, skip: bool = True) -> None:
        if not 0 <= limit <= 1:
            raise ValueError(f'limit={limit}, expected a part of the data set, 0 to 1')
        self.limit = limit
        self.skip = skip

    def before_run(self, runner) -> None:
        for name in ('train', 'val', 'test'):
            # The private attribute: the property would build a loader that this run does not need.
            loop = getattr(runner, f'_{name}_loop', None)
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            for each in leaves(dataset):
                guard(each, self.limit, skip=self.skip and name == 'train')

    def after_train_epoch(self, runner) -> None:
        for each in leaves(runner.train_dataloader.dataset):
            marks = getattr(getattr(each, 'pipeline', None), 'marks', None)
            if marks is not None and marks.any():
                runner.logger.warning(f'{int(marks.sum())} of {len(marks)} samples were left out so far: broken files, '
                                      'named above')


def leaves(dataset) -> Iterator:
    """The data sets inside wrappers that repeat, balance or concatenate."""
    if dataset is None:
        return
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]
    inner = [each for each in inner if each is not None]
    if callable(getattr(dataset, 'pipeline', None)):
        yield dataset
    for each in inner:
        yield from leaves(each)


def guard(dataset, limit: float, skip: bool) -> None:
    """Put :class:`GuardedPipeline` around a data set's pipeline."""
    if isinstance(dataset.pipeline, GuardedPipeline):
        return
    marks, classes = None, None
    if skip and isinstance(dataset, BaseDataset) and not dataset.test_mode:
        marks = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        if getattr(dataset, 'ignore_index', None) == 255 and dataset.metainfo.get('classes'):  # mmseg's
            classes = len(dataset.metainfo['classes'])
    dataset.pipeline = GuardedPipeline(dataset.pipeline, marks, limit, classes)
