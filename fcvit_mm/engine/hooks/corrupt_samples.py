"""Samples with corrupt files: skipped and counted in training, replaced in validation, refused in testing."""

import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import UserError, is_defect, library_error
from ...files import atomic_path
from ...images import image_problem, image_size, truncation_problem
from ...registry import HOOKS
from ..config import leaf_datasets

if TYPE_CHECKING:
    from PIL import Image

#: Names under which the libraries' samples carry paths.
PATHS = ('img_path', 'seg_map_path')


class CorruptSampleError(UserError):
    """A file of a sample is missing, empty, truncated, no image, or does not fit the sample's other file."""


class GuardedPipeline:
    """A data pipeline that handles corrupt files.

    In training a sample with a corrupt file becomes ``None``, for which MMEngine's data sets draw another one
    (``max_refetch``), and is counted. In the validation of a training run, where every sample counts and days of
    training are at stake, the sample is read with an empty file in place of the corrupt one, and counted. In testing it
    is an error. Any other error of the pipeline stays an error, and names the sample.

    Args:
        pipeline (callable): Takes and returns a dict.
        marks (Tensor, optional): One for each sample, shared by all workers: 1 where a file is corrupt. ``None`` if
            nothing may be skipped.
        limit (float): Part of the data set that may be corrupt.
        classes (int, optional): Least label that is out of range in maps of labels, where that is known.
        stand_ins (str, optional): Folder for the empty files of validation; ``None`` in training.
    """

    def __init__(
        self,
        pipeline: Callable[[dict], Any],
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

    def __getattr__(self, name: str) -> Any:
        # `pipeline` itself is looked up here only while this is being unpickled.
        if name == 'pipeline':
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, data: dict) -> Any:
        """Run the pipeline on a sample.

        Raises:
            CorruptSampleError: A file is corrupt, and the sample may not be skipped.
            LibraryError: The pipeline failed for another reason.
        """
        paths = list(_local_paths(data).values())
        # Only of files that are there: what a storage backend reads is none of these, and pipelines name what is not.
        problems = list(filter(None, map(truncation_problem, filter(os.path.isfile, paths))))
        if problems:
            return self._replace(data, problems, None)
        try:
            results = self.pipeline(data)
        except Exception as error:
            problems = list(filter(None, map(image_problem, paths)))
            if problems:
                return self._replace(data, problems, error)
            if isinstance(error, UserError) or is_defect(error):
                raise
            name = data.get('img_path', 'a sample without img_path')
            advice = 'Check the sample, its annotations and the steps of the pipeline'
            raise library_error(error, f'loading {name}', advice) from error
        # Test pipelines leave the map as it is, for the metric, and resize the image.
        problem = None if self.marks is None or self.stand_ins else map_problem(results, self.classes)
        return self._replace(data, [problem], None) if problem else results

    def _replace(self, data: dict, problems: List[str], error: Optional[Exception]) -> Any:
        """Count a sample as corrupt; return what stands in for it, ``None`` to let the data set draw another."""
        message = f'loading {data.get("img_path")} failed: {"; ".join(problems)}'
        index = data.get('sample_idx')
        if self.marks is None or index is None:
            raise CorruptSampleError(message) from error
        if not self.marks[index]:
            self.marks[index] = 1
            corrupt = int(self.marks.sum())
            done = (
                'An empty file stands in, which the metrics count'
                if self.stand_ins
                else 'Skipped, another sample stands in'
            )
            print_log(
                f'{message}. {done} ({corrupt} of {len(self.marks)} so far)', logger='current', level=logging.WARNING
            )
            if corrupt > max(1, self.limit * len(self.marks)):
                raise CorruptSampleError(
                    f'{message}. {corrupt} of {len(self.marks)} samples have corrupt files, more than the '
                    f'{self.limit:.1%} that may be skipped: repair the data set, or raise the limit by '
                    "custom_hooks=[dict(type='SkipCorruptSamplesHook', limit=...)]"
                ) from error
        return self.pipeline(_with_stand_ins(data, self.stand_ins)) if self.stand_ins else None


def _local_paths(data: dict) -> Dict[str, str]:
    return {key: str(data[key]) for key in PATHS if data.get(key) and '://' not in str(data[key])}


def _with_stand_ins(data: dict, folder: str) -> dict:
    """Return a sample with an empty image, or a map in which all is ignored, in place of its corrupt files."""
    data = dict(data)
    paths = _local_paths(data)
    corrupt = [key for key, path in paths.items() if image_problem(path)]
    width, height = next(
        (image_size(paths[key]) for key in paths if key not in corrupt),
        (data.get('width') or 224, data.get('height') or 224),
    )
    for key in corrupt:
        data[key] = os.path.join(folder, f'{key}_{width}x{height}.png')
        if not os.path.exists(data[key]):
            with atomic_path(data[key]) as temporary:  # several workers may write it
                empty_image(key, width, height).save(temporary, 'PNG')
    return data


def empty_image(key: str, width: int, height: int) -> 'Image.Image':
    """Build what stands in for a file of a sample: ImageNet's mean colour, or labels that are all ignored (255)."""
    from PIL import Image

    if key == 'seg_map_path':
        return Image.new('L', (width, height), 255)
    return Image.new('RGB', (width, height), (124, 116, 104))


def map_problem(results: Any, classes: Optional[int] = None, ignored: int = 255) -> Optional[str]:
    """Return why a map of labels does not fit its image or the classes, which would end training without a name."""
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
    """Skip samples whose files are corrupt, warn and count. ``tools/train.py`` and ``tools/test.py`` add it.

    A file is corrupt if it is missing, empty, truncated or no image. In the validation of a training run an empty image
    stands in for it; a run that only tests ends. Other errors of a data pipeline name their sample.

    Args:
        limit (float): Training ends when more than this part of a data set, and more than one file, is corrupt. 0:
            it ends at the second.
        skip (bool): Whether to skip any; if not, training ends at the first.

    Raises:
        UserError: ``limit`` is not within 0 and 1.
    """

    priority = 'HIGH'

    def __init__(self, limit: float = 0.01, skip: bool = True) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f'limit={limit}, expected a part of the data set, 0 to 1')
        self.limit = limit
        self.skip = skip
        self.stand_ins: Optional[tempfile.TemporaryDirectory] = None

    def before_run(self, runner: Runner) -> None:
        # The private attributes: the properties would build loaders that this run does not need.
        datasets = {
            name: getattr(getattr(getattr(runner, f'_{name}_loop', None), 'dataloader', None), 'dataset', None)
            for name in ('train', 'val', 'test')
        }
        trains = self.skip and datasets['train'] is not None
        if trains and datasets['val'] is not None:
            self.stand_ins = tempfile.TemporaryDirectory(prefix='fcvit_mm_')
        for name, dataset in datasets.items():
            stand_ins = self.stand_ins.name if self.stand_ins is not None and name == 'val' else None
            for leaf in leaf_datasets(dataset):
                if callable(getattr(leaf, 'pipeline', None)):
                    guard(leaf, self.limit, trains and name != 'test', stand_ins)

    def after_train_epoch(self, runner: Runner) -> None:
        for leaf in leaf_datasets(runner.train_dataloader.dataset):
            marks = getattr(getattr(leaf, 'pipeline', None), 'marks', None)
            if marks is not None and marks.any():
                runner.logger.warning(
                    f'{int(marks.sum())} of {len(marks)} samples were skipped so far: corrupt files, named above'
                )


def guard(dataset: Any, limit: float, skip: bool, stand_ins: Optional[str] = None) -> None:
    """Put :class:`GuardedPipeline` around a data set's pipeline. One for validation needs ``stand_ins`` to skip."""
    if isinstance(dataset.pipeline, GuardedPipeline):
        return
    marks, classes = None, None
    if skip and isinstance(dataset, BaseDataset) and (stand_ins or not dataset.test_mode):
        marks = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        if getattr(dataset, 'ignore_index', None) == 255 and dataset.metainfo.get('classes'):  # mmseg's
            classes = len(dataset.metainfo['classes'])
    dataset.pipeline = GuardedPipeline(dataset.pipeline, marks, limit, classes, stand_ins)
