"""Test results that are written as one file per image: no collisions of file names."""

import functools
import os
import os.path as osp
from collections import defaultdict
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional

from mmengine.runner import Runner

from .config import ConfigError, leaf_datasets

#: Metrics of the libraries that name files after images, in a folder that cannot be split.
BY_NAME = ('CityscapesMetric', 'CityScapesMetric', 'CocoPanopticMetric')


class Writer(NamedTuple):
    """A metric or hook that writes a file for each image, named after it.

    Attributes:
        attribute (str): Attribute that stores its folder.
        method (str): Method that writes the files.
        keeps_suffix (bool): Whether the file name contains the suffix of the image.
        alone (callable): Generator function ``alone(original, arguments, state)`` that calls the original ``method``
            once per sample, and yields the path of the sample's image before each call.
    """

    attribute: str
    method: str
    keeps_suffix: bool
    alone: Callable[[Callable[..., Any], tuple, Any], Iterator[Optional[str]]]


def _metric(original: Callable[..., Any], arguments: tuple, state: Any) -> Iterator[Optional[str]]:
    batch, samples = arguments
    for sample in samples:
        yield sample.get('img_path')
        original(batch, [sample])


def _detections(original: Callable[..., Any], arguments: tuple, state: Any) -> Iterator[Optional[str]]:
    runner, number, batch, samples = arguments
    for sample in samples:
        yield sample.get('img_path')
        original(runner, number, batch, [sample])


def _classes(original: Callable[..., Any], arguments: tuple, state: Any) -> Iterator[Optional[str]]:
    runner, _, batch, samples = arguments
    for image, sample in zip(batch['inputs'], samples):
        yield sample.get('img_path')
        original(runner, state['number'], dict(batch, inputs=[image]), [sample])
        state['number'] += 1


METRIC = Writer('output_dir', 'process', False, _metric)
DETECTIONS = Writer('test_out_dir', 'after_test_iter', True, _detections)
CLASSES = Writer('out_dir', 'after_test_iter', True, _classes)


def keep_every_result(runner: Runner) -> None:
    """Let metrics and hooks that write one file per test image do so for images of equal names, too.

    If images of different folders have the same name, the files go to folders like those of the images, below their
    common one; otherwise all stay in one folder.

    Args:
        runner (Runner): A runner that has not started testing.

    Raises:
        ConfigError: Two images would still get the same file.
    """
    found = []
    for hook in runner.hooks:
        kind = type(hook).__name__
        if kind == 'DetVisualizationHook' and getattr(hook, 'draw', False) and hook.test_out_dir:
            found.append((hook, DETECTIONS))
        elif kind == 'VisualizationHook' and getattr(hook, 'enable', False) and getattr(hook, 'out_dir', None):
            found.append((hook, CLASSES))
    metrics = getattr(runner.test_evaluator, 'metrics', ())
    found += [(metric, METRIC) for metric in metrics if getattr(metric, 'output_dir', None)]
    fixed = [metric for metric in metrics if type(metric).__name__ in BY_NAME]
    if not found and not fixed:
        return
    paths = list(image_paths(runner.test_dataloader.dataset))
    for metric in fixed:
        _refuse_duplicates(paths, lambda path: osp.splitext(osp.basename(path))[0], type(metric).__name__)
    for target, writer in found:
        if type(target).__name__ not in BY_NAME:
            _split(target, writer, paths)


def image_paths(dataset: Any) -> Iterator[str]:
    """Yield the paths of a data set's images, each once, as far as its samples have them."""
    seen = set()
    for leaf in leaf_datasets(dataset):
        for index in range(len(leaf) if hasattr(leaf, 'get_data_info') else 0):
            path = leaf.get_data_info(index).get('img_path')
            if isinstance(path, str) and path not in seen:
                seen.add(path)
                yield path


def _split(target: Any, writer: Writer, paths: List[str]) -> None:
    """Give a writer several folders, if file names in one folder collide."""

    def name(path: str) -> str:
        return path if writer.keeps_suffix else osp.splitext(path)[0]

    if len({name(osp.basename(path)) for path in paths}) == len(paths):
        return
    root = osp.commonpath([osp.dirname(path) for path in paths])
    relative = {path: osp.relpath(path, root) for path in paths}
    _refuse_duplicates(paths, lambda path: name(relative[path]), f'{type(target).__name__}.{writer.attribute}')
    original = getattr(target, writer.method)
    state: Dict[str, int] = defaultdict(int)

    @functools.wraps(original)
    def write(*args: Any, **kwargs: Any) -> None:
        folder = getattr(target, writer.attribute)
        try:
            for path in writer.alone(original, (*args, *kwargs.values()), state):
                below = osp.join(folder, osp.dirname(relative.get(path, '') if path else ''))
                os.makedirs(below, exist_ok=True)
                setattr(target, writer.attribute, below)
        finally:
            setattr(target, writer.attribute, folder)

    setattr(target, writer.method, write)


def _refuse_duplicates(paths: Iterable[str], name: Callable[[str], str], writer: str) -> None:
    first: Dict[str, str] = {}
    for path in paths:
        other = first.setdefault(name(path), path)
        if other != path:
            raise ConfigError(
                f'{writer} writes one file per image, named after the image without its suffix, so {path} would '
                f'overwrite the file of {other}: give them different names, or test one folder at a time'
            )
