"""The truth must score perfectly: a config's evaluators, fed with a data set's own annotations as predictions."""

import contextlib
import io
import json
import logging
import math
import time
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.registry import METRICS, DefaultScope

from ..engine.config import type_name
from ..errors import origin

#: Images whose truth is put through a metric; fields and ids are checked of all.
IMAGES = 500
#: Seconds for reading the masks of a file as the metric does.
MASK_SECONDS = 6
#: Part of 1 that perfect metrics may lack: they are means in float32.
TOLERANCE = 1e-3
SHOWN = 3


def truth_problems(cfg: Config, split: str, dataset: Any) -> List[str]:
    """Check the evaluators of a split: its own annotations, given as predictions, must score perfectly.

    Args:
        cfg (Config): Its ``{split}_evaluator`` is built in its scope.
        split (str): ``'val'`` or ``'test'``.
        dataset (Dataset): The split's data set, with its list of data.

    Returns:
        list[str]: What keeps the metrics from being perfect, one line each.
    """
    name = f'{split}_evaluator'
    evaluator = cfg.get(name)
    if isinstance(evaluator, dict) and isinstance(evaluator.get('metrics'), (list, tuple)):
        evaluator = evaluator['metrics']
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []
    problems = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet():
        for config in metrics:
            feed = FEEDS.get(type_name(config))
            if feed is None:
                remark(f'{name}: {type_name(config)} is not tried: how to feed it with the truth is not known')
                continue
            problems += [f'{name}: {line}' for line in feed(config, dataset)]
    return problems


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep tables and progress of the libraries' metrics from the output."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def remark(text: str) -> None:
    """Say what ends nothing."""
    print_log(text, logger='current', level=logging.WARNING)


def listed(items: List[Any]) -> str:
    """Return the first few items as text."""
    return ', '.join(map(str, items[:SHOWN])) + (', ...' if len(items) > SHOWN else '')


def coco_truth(config: dict, dataset: Any) -> List[str]:
    """Check a ``CocoMetric``: its file is the data set's, pycocotools reads it, and the truth scores 1."""
    path = config.get('ann_file')
    if path is None:
        remark('CocoMetric without ann_file takes the annotations of each sample: not tried')
        return []
    try:
        metric: Any = METRICS.build({**config, 'outfile_prefix': None})
    except FileNotFoundError:
        return [f'ann_file {path} does not exist: name the annotation file of the data set, {dataset.ann_file}']
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        return [f'ann_file {path} is not read ({type(error).__name__}: {error}): copy or correct it']
    api = metric._coco_api
    classes = tuple(dataset.metainfo['classes'])
    other = f'give the annotation file of the data set, {dataset.ann_file}'
    images = {info['img_id']: info for info in dataset.data_list}
    unknown = [key for key in images if key not in api.imgs]
    if unknown:
        return [
            f'{len(unknown)} of {len(images)} images of the data set (ids {listed(unknown)}) are not in ann_file '
            f'{path}: {other}'
        ]
    names = [category['name'] for category in api.dataset.get('categories', ())]
    category_ids = api.get_cat_ids(cat_names=classes)
    lacking = [each for each in classes if each not in names]
    if lacking:
        return [f'ann_file {path} lacks the categories {listed(lacking)} of the data set: {other}']
    problems = []
    if list(category_ids) != list(dataset.cat_ids):
        order = [api.cats[key]['name'] for key in category_ids]
        problems.append(
            f'ann_file {path} has the categories in another order ({listed(order)}) or with other ids than the data '
            f'set ({listed(list(classes))}), so that right predictions would count as wrong: {other}'
        )
    problems += coco_annotation_problems(api, path, metric.metrics)
    if problems:
        return problems
    return coco_score_problems(metric, path, images, dataset)


def coco_annotation_problems(api: Any, path: str, metrics: List[str]) -> List[str]:
    """Check that pycocotools can evaluate each annotation of a file."""
    problems = []
    annotations = list(api.anns.values())
    needed = [key for key in ('iscrowd', 'bbox', 'area', 'id') if any(key not in each for each in annotations)]
    for key in needed:
        ids = [each.get('id') for each in annotations if key not in each]
        advice = 'add "iscrowd": 0 to each of them' if key == 'iscrowd' else 'complete them'
        problems.append(
            f'{len(ids)} of {len(annotations)} annotations of {path} (ids {listed(ids)}) have no {key!r}, which the '
            f'metric reads: {advice}'
        )
    if any(each.get('id') == 0 for each in annotations):
        remark(
            f'an annotation of {path} has the id 0, which pycocotools takes for "not found": its object counts as '
            'missed, and AP is too low. Number the annotations from 1'
        )
    if 'segm' not in metrics:
        return problems
    faults: Dict[str, list] = {}
    end = time.monotonic() + MASK_SECONDS
    for number, each in enumerate(annotations):
        fault = mask_fault(api, each)
        if fault:
            faults.setdefault(fault, []).append(each.get('id'))
        if time.monotonic() > end:
            remark(f'{path}: the masks of {number + 1} of {len(annotations)} annotations were read')
            break
    return problems + [
        f'{len(ids)} of {len(annotations)} annotations of {path} (ids {listed(ids)}) have a segmentation that the '
        f'metric cannot read ({fault}): give polygons [[x1, y1, x2, y2, x3, y3, ...]] of three points or more, or '
        'remove them'
        for fault, ids in faults.items()
    ]


def mask_fault(api: Any, annotation: dict) -> str:
    """Return why pycocotools cannot read an annotation's mask; empty if it can."""
    image = api.imgs.get(annotation.get('image_id'))
    if image is None:
        return ''
    try:
        size = list(api.annToRLE(annotation)['size'])
    except Exception as error:
        # Broad, because pycocotools has no error of its own.
        if not annotation.get('segmentation'):
            return 'it is empty or missing'
        return f'{type(error).__name__}: {error}'
    wanted = [image['height'], image['width']]
    return '' if size == wanted else f'its size is {size}, that of its image {wanted} (height, width)'


def coco_score_problems(metric: Any, path: str, images: Dict[Any, dict], dataset: Any) -> List[str]:
    """Check that a data set's boxes and masks, as predictions, score 1."""
    chosen = list(images)
    if len(chosen) > IMAGES:
        chosen = [chosen[int(index)] for index in np.linspace(0, len(chosen) - 1, IMAGES)]
        remark(f'{path}: the truth of {len(chosen)} of {len(images)} images is put through {type(metric).__name__}')
    metric.dataset_meta, metric.img_ids = dataset.metainfo, chosen
    crowded = False
    objects = 0
    for key in chosen:
        info = images[key]
        instances = [each for each in info['instances'] if not each['ignore_flag']]
        objects += len(instances)
        crowded |= len(instances) > min(metric.proposal_nums)
        sample = dict(
            img_id=key,
            ori_shape=(info['height'], info['width']),
            pred_instances=dict(
                bboxes=torch.tensor([each['bbox'] for each in instances], dtype=torch.float64).reshape(-1, 4),
                labels=torch.tensor([each['bbox_label'] for each in instances], dtype=torch.long),
                scores=torch.full((len(instances),), 0.9),
            ),
        )
        if 'segm' in metric.metrics:
            sample['pred_instances']['masks'] = [encode(metric._coco_api, info, each) for each in instances]
        metric.process({}, [sample])
    if not objects:
        return [f'{path} has no object that the data set keeps: nothing could be evaluated']
    try:
        scores = metric.evaluate(len(chosen))
    except Exception as error:
        # Broad, because the metric is another library's.
        return [f'{type(metric).__name__} fails on {path} ({origin(error).message}): correct the file']
    low = {
        key: value
        for key, value in scores.items()
        if key.endswith(('bbox_mAP', 'segm_mAP')) and not value >= 1 - TOLERANCE and not math.isnan(value)
    }
    if low:
        kept = set(chosen)
        there = sum(not each['iscrowd'] for each in metric._coco_api.anns.values() if each['image_id'] in kept)
        why = (
            f'{there - objects} of {there} objects of the file are skipped by the data set'
            if there > objects
            else ('some images have more objects than the metric counts' if crowded else 'see the remarks above')
        )
        remark(
            f'{path}: the truth itself scores {", ".join(f"{key} {value}" for key, value in low.items())}, not 1, '
            f'which no model can exceed ({why})'
        )
    return []


def encode(api: Any, info: dict, instance: dict) -> dict:
    """Return the mask of an instance as run lengths, as pycocotools encodes it."""
    from pycocotools import mask as masks

    segmentation = instance.get('mask')
    if isinstance(segmentation, list):
        return masks.merge(masks.frPyObjects(segmentation, info['height'], info['width']))
    if isinstance(segmentation, dict) and isinstance(segmentation['counts'], list):
        return masks.frPyObjects(segmentation, info['height'], info['width'])
    return json.loads(json.dumps(segmentation))


def accuracy_truth(config: dict, dataset: Any) -> List[str]:
    """Check a metric of mmpretrain: the data set's labels, as predictions, score 100."""
    classes = dataset.metainfo.get('classes')
    labels = [info.get('gt_label') for info in dataset.data_list]
    if classes is None or any(label is None for label in labels):
        remark(f'{type_name(config)} is not tried: the data set has no names of classes, or images without labels')
        return []
    number = len(classes)
    if any(not 0 <= int(each) < number for label in labels for each in np.atleast_1d(np.asarray(label, int))):
        return []  # reported with the data set
    try:
        metric: Any = METRICS.build(dict(config))
        metric.dataset_meta = dataset.metainfo
        chosen = labels[:: max(1, len(labels) // (20 * IMAGES))]
        for label in chosen:
            score = torch.zeros(number)
            score[torch.as_tensor(label, dtype=torch.long)] = 1.0
            target = torch.as_tensor(label, dtype=torch.long).reshape(-1)
            sample = dict(pred_score=score, gt_label=target, pred_label=target, num_classes=number)
            if type_name(config) in MULTI_LABEL:
                sample['gt_score'] = score
            metric.process({}, [sample])
        metric.evaluate(len(chosen))
    except Exception as error:
        # Broad, because the metric is another library's.
        topk = np.atleast_1d(np.asarray(config.get('topk', 1), int)).tolist()
        if max(topk) > number:
            fitting = tuple(each for each in topk if each <= number)
            return [
                f'{type_name(config)} has topk={tuple(topk)}, but there are {number} classes: set topk={fitting} in '
                'val_evaluator and test_evaluator'
            ]
        return [f'{type_name(config)} fails on the labels of the data set ({origin(error).message})']
    return []


MULTI_LABEL = ('MultiLabelMetric', 'AveragePrecision')
#: How the truth is put through a metric, by its type.
FEEDS: Dict[str, Callable[[dict, Any], List[str]]] = {
    'CocoMetric': coco_truth,
    'Accuracy': accuracy_truth,
    'SingleLabelMetric': accuracy_truth,
    'MultiLabelMetric': accuracy_truth,
    'AveragePrecision': accuracy_truth,
    'IoUMetric': lambda config, dataset: [],  # the maps are loaded, and compared with their images, with the data set
}
