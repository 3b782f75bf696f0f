"""Broken files of a data set: found before training where that is cheap; met in training, left out and counted."""

import logging
import os
import tempfile
from typing import Callable, Iterator, Optional

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ...images import image_problem, image_size, truncation_problem
from ...registry import HOOKS

#: Names under which the libraries' samples carry paths.
PATHS = ('img_path', 'seg_map_path')


class GuardedPipeline:
    """A data pipeline that answers for broken files.

    In training a sample with a broken file becomes ``None``, for which MMEngine's data sets draw another one
    (``max_refetch``), and is counted. In the validation of a training run, where every sample counts and days of
    training are at stake, it is read with an empty file in the broken one's place, and counted. In testing it is an
    error. Errors that no broken file explains stay errors, and name the sample.

    Args:
        pipeline (callable): Takes and returns a dict.
        marks (Tensor, optional): One for each sample, shared by all workers: 1 where a file is broken. ``None`` if
            nothing may be left out.
        limit (float): Part of the data set that may be broken.
        classes (int, optional): Least label that is out of range in maps of labels, where that is known.
        stand_ins (str, optional): Folder for the empty files of validation; ``None`` in training.
    """

    def __init__(
        self,
        pipeline: Callable,
        marks: Optional[torch.Tensor] = None,
        limit: float = 0.0,
        classes: Optional[int] = None,
        stand_ins: Optional[str] = None,
    ) -> None:
        self.pipeline = pipeline
        self.marks = marks
        self.limit = limit
        self.classes = classes
        self.stand_ins = stand_ins

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
            problems = list(filter(None, map(image_problem, paths)))
            if not problems:
                name = data.get('img_path', 'a sample without img_path')
                raise RuntimeError(f'data pipeline failed at {name}: {error}') from error
            return self._leave_out(data, problems, error)
        # Test pipelines leave the map as it is, for the metric, and resize the image.
        problem = None if self.marks is None or self.stand_ins else map_problem(results, self.classes)
        return self._leave_out(data, [problem], None) if problem else results

    def _leave_out(self, data: dict, problems: list, error: Optional[Exception]) -> Optional[dict]:
        message = f'data pipeline failed at {data.get("img_path")}: {"; ".join(problems)}'
        index = data.get('sample_idx')
        if self.marks is None or index is None:
            raise RuntimeError(message) from error
        if not self.marks[index]:
            self.marks[index] = 1
            broken = int(self.marks.sum())
            done = (
                'An empty one in its place, which the metrics count'
                if self.stand_ins
                else 'Left out, another sample in its place'
            )
            print_log(
                f'{message}. {done} ({broken} of {len(self.marks)} so far)', logger='current', level=logging.WARNING
            )
            if broken > max(1, self.limit * len(self.marks)):
                raise RuntimeError(
                    f'{message}. {broken} of {len(self.marks)} samples have broken files, more than the '
                    f'{self.limit:.1%} that may be left out: repair the data set, or raise the limit by '
                    "custom_hooks=[dict(type='SkipCorruptSamplesHook', limit=...)]"
                ) from error
        return self.pipeline(self._with_stand_ins(data)) if self.stand_ins else None

    def _with_stand_ins(self, data: dict) -> dict:
        """The sample with an empty image, or a map in which all is ignored, where its own is broken."""
        data = dict(data)
        paths = {key: data[key] for key in PATHS if data.get(key) and '://' not in str(data[key])}
        broken = [key for key, path in paths.items() if image_problem(path)]
        width, height = next(
            (image_size(paths[key]) for key in paths if key not in broken),
            (data.get('width') or 224, data.get('height') or 224),
        )
        for key in broken:
            data[key] = os.path.join(self.stand_ins, f'{key}_{width}x{height}.png')
            if not os.path.exists(data[key]):
                partial = f'{data[key]}.{os.getpid()}'  # several workers may be at it
                empty_image(key, width, height).save(partial, 'PNG')
                os.replace(partial, data[key])
        return data


def empty_image(key: str, width: int, height: int):
    """What stands in for a file of a sample: ImageNet's mean colour, or labels that are all ignored (255)."""
    from PIL import Image

    if key == 'seg_map_path':
        return Image.new('L', (width, height), 255)
    return Image.new('RGB', (width, height), (124, 116, 104))


def map_problem(results, classes: Optional[int] = None, ignored: int = 255) -> Optional[str]:
    """A map of labels that does not fit its image or the classes: it would end training, without a name."""
    if not isinstance(results, dict):
        return None
    sample, inputs = results.get('data_samples'), results.get('inputs')
    labels = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
    if not isinstance(labels, torch.Tensor) or not isinstance(inputs, torch.Tensor):
        return None
    name = getattr(sample, 'seg_map_path', '')
    if labels.shape[-2:] != inputs.shape[-2:]:
        return (
            f'the map of labels {name} is {tuple(labels.shape[-2:])} and its image {tuple(inputs.shape[-2:])} '
            '(height, width): not of the same image, or not resized alike'
        )
    if classes is not None and labels.numel() and labels.max() >= classes:
        wrong = labels[(labels >= classes) & (labels != ignored)]
        if wrong.numel():
            return (
                f'the map of labels {name} holds {int(wrong.min())}, but there are {classes} classes (0 to '
                f'{classes - 1} after reduce_zero_label, {ignored} is ignored)'
            )
    return None


@HOOKS.register_module()
class SkipCorruptSamplesHook(Hook):
    """Let training pass over broken files, with a warning for each and a count, and name them in any other case.

    Tools add it by themselves. A file is broken if it is missing, empty, cut off or no image. In the validation of a
    training run an empty image stands in for it; a run that only tests ends.

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
        self.stand_ins: Optional[tempfile.TemporaryDirectory] = None

    def before_run(self, runner) -> None:
        # The private attributes: the properties would build loaders that this run does not need.
        datasets = {
            name: getattr(getattr(getattr(runner, f'_{name}_loop', None), 'dataloader', None), 'dataset', None)
            for name in ('train', 'val', 'test')
        }
        if self.skip and datasets['train'] is not None and datasets['val'] is not None:
            self.stand_ins = tempfile.TemporaryDirectory(prefix='fcvit_mm_')
        for name, dataset in datasets.items():
            skip = self.skip and datasets['train'] is not None and name != 'test'
            for each in leaves(dataset):
                guard(each, self.limit, skip, self.stand_ins.name if skip and name == 'val' else None)

    def after_train_epoch(self, runner) -> None:
        for each in leaves(runner.train_dataloader.dataset):
            marks = getattr(getattr(each, 'pipeline', None), 'marks', None)
            if marks is not None and marks.any():
                runner.logger.warning(
                    f'{int(marks.sum())} of {len(marks)} samples were left out so far: broken files, named above'
                )


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


def guard(dataset, limit: float, skip: bool, stand_ins: Optional[str] = None) -> None:
    """Put :class:`GuardedPipeline` around a data set's pipeline. One for validation needs ``stand_ins`` to skip."""
    if isinstance(dataset.pipeline, GuardedPipeline):
        return
    marks, classes = None, None
    if skip and isinstance(dataset, BaseDataset) and (stand_ins or not dataset.test_mode):
        marks = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        if getattr(dataset, 'ignore_index', None) == 255 and dataset.metainfo.get('classes'):  # mmseg's
            classes = len(dataset.metainfo['classes'])
    dataset.pipeline = GuardedPipeline(dataset.pipeline, marks, limit, classes, stand_ins)
