"""Checking an evaluator: each of its metrics evaluates the ground truth, by the check for its type."""

import inspect
import logging
import os.path as osp
import re
import traceback
from collections import Counter
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ...engine.config import TASKS, type_name, walk
from ...errors import advice_for, origin
from ..contexts import quiet
from ..data.kinds import is_url
from ..log import log_warning, shorten
from ..messages import name_values, short_message
from .classification import check_labels
from .coco import check_coco
from .iou import check_iou
from .panoptic import check_panoptic
from .scores import Split
from .voc import check_voc

#: Type of a metric, or a base class of it -> check.
METRIC_CHECKS: Dict[str, Callable[[Any, dict, Split], List[str]]] = {
    'CocoMetric': check_coco,
    'VOCMetric': check_voc,
    'CocoPanopticMetric': check_panoptic,
    'IoUMetric': check_iou,
    'Accuracy': check_labels,
    'SingleLabelMetric': check_labels,
    'MultiLabelMetric': check_labels,
    'AveragePrecision': check_labels,
    'ConfusionMatrix': check_labels,
}
BOXES_OF_OPEN_IMAGES = (
    "OpenImagesMetric reads the ground truth from 'instances', which the pipeline does not pack: add it, and "
    "'image_level_labels', to meta_keys of PackDetInputs"
)
#: Type of a metric that is not checked -> reason.
NOT_CHECKED = {
    'LVISMetric': 'the package lvis evaluates only the categories that an image is annotated for',
    'CocoVideoMetric': 'it evaluates tracks',
    'OVCocoMetric': 'it divides the categories into seen and unseen ones',
    'CocoOccludedSeparatedMetric': 'it evaluates its own annotation file',
    'CityScapesMetric': 'it reads files that its package names and writes',
    'CityscapesMetric': 'it reads files that its package names and writes',
    'CrowdHumanMetric': 'it evaluates a file in its own format',
    'OpenImagesMetric': 'it evaluates a hierarchy of classes',
    'DepthMetric': 'its ground truth is not a segmentation map',
    'MultiTasksMetric': 'its metrics depend on the tasks of the model',
}


def ground_truth_problems(evaluator: Any, split: Split, name: str) -> List[str]:
    """Check an evaluator: the annotations of a data set, as predictions, must score perfectly.

    Args:
        evaluator (dict | list): Its config, built in the current scope.
        split (Split): The data set.
        name (str): Name of the evaluator in messages.

    Returns:
        list[str]: Reasons why the metrics are not perfect, one line each.
    """
    problems: List[str] = []
    pairs = metrics_and_data(evaluator, split, name, problems)
    for config, part in pairs:
        problems += [f'{name}: {line}' for line in metric_problems(config, part, name)]
    kind = type_name(evaluator) if isinstance(evaluator, dict) and 'metrics' in evaluator else ''
    if kind in ('', 'Evaluator') and len(split.scored) == sum(not is_dump(config) for config, _ in pairs):
        names = Counter(key for keys in split.scored for key in keys)
        split.score_names = list(names)
        twice = [key for key, number in names.items() if number > 1]
        if twice:
            problems.append(
                f'{name}: two metrics compute {shorten(twice)}, which ends the evaluation: give one of them '
                "prefix='...', or remove it"
            )
    return problems


def foreign_metric_problem(evaluator: Any, model: Any, name: str) -> List[str]:
    """Check that no metric is of another of the three libraries than the model, which predicts other things.

    Args:
        evaluator (dict | list): Its config.
        model (type): Class of the model.
        name (str): Name of the evaluator in messages.
    """
    library = getattr(model, '__module__', '').partition('.')[0]
    for config in walk(evaluator):
        kind = config.get('type')
        if isinstance(kind, str):
            with METRICS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        other = getattr(kind, '__module__', '').partition('.')[0]
        if library in TASKS and other in TASKS and library != other and not is_dump(config):
            return [
                f'{name}: {type_name(config)} is a metric of {other}, but the model ({model.__name__}) is one of '
                f'{library}, whose predictions it cannot read: use a metric of {library}'
            ]
    return []


def is_dump(config: Any) -> bool:
    """Check whether a metric only writes the predictions."""
    return type_name(config).startswith('Dump')


def metrics_and_data(evaluator: Any, split: Split, name: str, problems: List[str]) -> List[Tuple[Any, Split]]:
    """Return each metric's config of an evaluator with the data that it evaluates."""
    kind, nested = type_name(evaluator) if isinstance(evaluator, dict) else '', evaluator
    if isinstance(evaluator, dict) and evaluator.get('metrics') is not None:
        nested = evaluator['metrics']
    metrics = list(nested) if isinstance(nested, (list, tuple)) else [nested] if nested else []
    if kind != 'MultiDatasetsEvaluator':
        if not isinstance(split.metainfo, dict):
            problems.append(
                f'{name}: the concatenated data sets differ in their metainfo, which only MultiDatasetsEvaluator '
                'accepts: use it, or give all of them the same classes and palette'
            )
            return []
        return [(config, split) for config in metrics]
    parts = list(getattr(split.dataset, 'datasets', ()))
    prefixes = list(evaluator.get('dataset_prefixes') or ())
    if not len(metrics) == len(parts) == len(prefixes):
        problems.append(
            f'{name}: MultiDatasetsEvaluator has {len(metrics)} metrics and {len(prefixes)} dataset_prefixes for '
            f'{len(parts)} data sets of a ConcatDataset: give one metric and one prefix per data set, in the order of '
            'the data sets'
        )
        return []
    return [(config, Split(part, split.leaves, {}, split.limit)) for config, part in zip(metrics, parts)]


def metric_problems(config: Any, split: Split, name: str) -> List[str]:
    """Build a metric and evaluate the ground truth."""
    kind = type_name(config)
    if is_dump(config):
        return []
    if isinstance(config, str):
        return [
            f'{name} has metrics={config!r}, expected metrics, such as dict(type="IoUMetric"): the key metrics holds '
            'complete metrics, and settings of a metric have other names, such as metric of CocoMetric'
        ]
    if not isinstance(config, dict):
        log_warning(f'{name}: {kind} is not checked with the ground truth: it is already built')
        return []
    metric_type = config.get('type')
    if isinstance(metric_type, str):
        with METRICS.switch_scope_and_registry(None) as registry:
            metric_type = registry.get(metric_type)
    check, reason = metric_check(metric_type)
    if check is None and metric_type is not None:
        log_warning(f'{name}: {kind} is not checked with the ground truth: {reason}')
        return unchecked_problems(config, metric_type, split)
    # Not built with a path, because building makes the folder.
    written = any(config.get(key) for key in ('outfile_prefix', 'output_dir'))
    config = {**config, **{key: None for key in ('outfile_prefix', 'output_dir') if key in config}}
    if config.get('format_only') and not written:
        try:
            with quiet(logging.ERROR):
                metric = METRICS.build(config)
        except AssertionError as error:
            return [
                f'{kind} has format_only=True, but no path to write results to ({error}): set outfile_prefix, or '
                'output_dir if the metric has that argument'
            ]
        except Exception as error:
            # Broad, because the metric may be any code.
            return [unbuilt_problem(config, split, error)]
        if getattr(metric, 'output_dir', '') is None:
            return [f'{kind} has format_only=True, but no output_dir to write results to: set output_dir']
    if config.get('format_only'):
        log_warning(
            f'{name}: {kind} is not checked with the ground truth: with format_only=True it writes results without '
            'scores'
        )
        path = config.get('ann_file')
        return [f'ann_file {path} does not exist'] if isinstance(path, str) and not osp.exists(path) else []
    try:
        with quiet(logging.ERROR):
            metric = METRICS.build(config)
    except Exception as error:
        # Broad, because the metric may be any code.
        return [unbuilt_problem(config, split, error)]
    metric.dataset_meta = split.metainfo
    try:
        return check(metric, config, split)  # type: ignore[misc]
    except (KeyError, TypeError, AttributeError) as error:
        # A data set from elsewhere, whose list has another format, must not stop a run.
        found, message, _ = origin(error)
        log_warning(
            f'{name}: {kind} is not checked with the ground truth: the data set lists other annotations ({found}: '
            f'{message})'
        )
        return []


def unchecked_problems(config: dict, metric_type: Any, split: Split) -> List[str]:
    """Check what a metric needs that is not checked with the ground truth: its file, boxes, and the package of LVIS."""
    path = config.get('ann_file')
    if isinstance(path, str) and not is_url(path) and not osp.exists(path):
        return [unbuilt_problem(config, split, FileNotFoundError(path))]
    bases = [base.__name__ for base in getattr(metric_type, '__mro__', ())]
    if 'OpenImagesMetric' in bases:
        packed = [sample['data_samples'].metainfo for sample in split.packed.values()]
        return [] if all('instances' in meta for meta in packed) else [BOXES_OF_OPEN_IMAGES]
    if 'LVISMetric' not in bases:
        return []
    try:
        with quiet(logging.ERROR):
            METRICS.build(config)
    except Exception as error:
        # Broad, because the metric may be any code.
        return [unbuilt_problem(config, split, error)]
    return lvis_problems()


def lvis_problems() -> List[str]:
    """Check that the evaluation of the package lvis runs with the installed NumPy; that of lvis 0.5.3 may not."""
    import lvis.eval

    if hasattr(np, 'float') or not re.search(r'\bnp\.float\b', inspect.getsource(lvis.eval)):
        return []
    return [
        f'the installed package lvis uses np.float, which NumPy {np.__version__} lacks, so the first evaluation would '
        f'end the run: replace np.float by float in {lvis.eval.__file__}'
    ]


def metric_check(metric_type: Any) -> Tuple[Optional[Callable], str]:
    """Return the check of a metric type, or the reason why there is none."""
    for base in getattr(metric_type, '__mro__', ()):
        if base.__module__.partition('.')[0] not in TASKS:  # others have names in common, as MMPose's CocoMetric
            continue
        if base.__name__ in NOT_CHECKED:
            return None, NOT_CHECKED[base.__name__]
        if base.__name__ in METRIC_CHECKS:
            return METRIC_CHECKS[base.__name__], ''
    return None, 'the predictions that it expects are unknown'


def unbuilt_problem(config: dict, split: Split, error: Exception) -> str:
    """Describe why a metric cannot be built, usually its file."""
    path, own = config.get('ann_file'), shorten(getattr(leaf, 'ann_file', None) for leaf in split.leaves)
    kind, message, _ = origin(error)
    if kind == 'KeyError' and f'{config.get("type")} is not in the' in message:  # message of the registry
        message = short_message(error)
        end = '' if message.endswith('?') else '.'
        return f'{config["type"]} cannot be built: {message}{end} Correct the name, or import its module'
    if isinstance(path, str) and not osp.exists(path):
        return f'ann_file {path} does not exist: give the annotation file of the data set, {own}'
    if is_about_settings(error):
        message = short_message(error) + name_values(error, [config])
        end = '' if message.endswith('?') else '.'
        return f'{type_name(config)} cannot be built: {message}{end} Correct its settings'
    if isinstance(path, str) and not isinstance(error, (RuntimeError, ImportError)):
        return f'{type_name(config)}: ann_file {path} cannot be read ({kind}: {message}): copy it again or correct it'
    advice = advice_for(error, 'correct its settings, or install what it needs')
    return f'{type_name(config)} cannot be built ({kind}: {message}): {advice}'


def is_about_settings(error: Exception) -> bool:
    """Check whether a metric's own constructor rejects an argument; errors of its file come from further inside."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or isinstance(error, (OSError, ImportError, RuntimeError)):
        return False
    return frames[-1].f_code.co_name == 'build_from_cfg' or isinstance(frames[-1].f_locals.get('self'), BaseMetric)
