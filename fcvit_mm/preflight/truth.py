"""Evaluate the ground truth as predictions: every metric must be perfect."""

import logging
import math
import multiprocessing
import os.path as osp
import sys
from collections import Counter
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from unittest import mock

import numpy as np
import torch
from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement

from ..engine.config import type_name
from ..errors import advice_for, origin
from .annotations import SKIPPED, Mask, ask_metric, check_masks, corners, count_line, skip_reason
from .data import tolerated
from .limits import TimeLimit, quiet, remark, shorten, spread

#: Images whose truth is put through a metric; fields and ids are checked of all.
IMAGES = 500
#: Labels of images whose truth is put through a metric for classification.
LABELS = 10000
#: Seconds for putting them through it.
FEED_SECONDS = 2.5
#: Part of 1 that perfect metrics may lack: they are means in float32, rounded to three places.
TOLERANCE = 1e-3
#: Pairs of one image that pycocotools makes a precision of: 100 predictions.
COCO_DETECTIONS = 100


class Split:
    """Evaluation data of a metric: a validation or test data set, wrappers included.

    Args:
        dataset (Dataset): The outermost one.
        leaves (sequence): The data sets inside it that load samples.
        packed (dict): Index -> sample that went through the pipeline already.
        limit (TimeLimit): Of all checks.

    Attributes:
        scored (list[list[str]]): Names of the scores of each metric that evaluated the ground truth.
        score_names (list[str], optional): Names of all scores of the evaluator, if each metric was evaluated.
    """

    def __init__(self, dataset: Any, leaves: Sequence[Any], packed: Dict[int, Any], limit: TimeLimit) -> None:
        self.dataset = dataset
        self.leaves = list(leaves)
        self.packed = packed
        self.limit = limit
        self.scored: List[List[str]] = []
        self.score_names: Optional[List[str]] = None
        self._infos: Optional[List[dict]] = None

    @property
    def metainfo(self) -> dict:
        """Of the data set, as the runner gives it to metrics."""
        return self.dataset.metainfo

    @property
    def infos(self) -> List[dict]:
        """Return what the data set's list holds of each sample, in its order."""
        if self._infos is None:
            if self.dataset in self.leaves:
                self._infos = self.dataset.data_list
            else:
                self._infos = [self.dataset.get_data_info(index) for index in range(len(self.dataset))]
        return self._infos

    def sample(self, index: int, load: bool = False) -> Optional[dict]:
        """Return a sample as a metric gets it, without predictions.

        Args:
            index (int): Of the sample.
            load (bool): Whether to load it, if it is none of those that were loaded already.

        Returns:
            dict: Of the data sample that the pipeline packs; ``None`` if it was not loaded or its files are corrupt.
        """
        packed = self.packed.get(index)
        if load and packed is None:
            try:
                packed = self.dataset[index]
            except Exception:
                # Broad, because corrupt files, which are reported by themselves, fail in any way there is.
                return None
        data_sample = packed.get('data_samples') if isinstance(packed, dict) else None
        return data_sample.to_dict() if isinstance(data_sample, BaseDataElement) else None


def truth_problems(evaluator: Any, split: Split, name: str) -> List[str]:
    """Check an evaluator: the annotations of a data set, as predictions, must score perfectly.

    Args:
        evaluator (dict | list): Its config, built in the current scope.
        split (Split): The data set.
        name (str): What to call the evaluator.

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
    if not isinstance(config, dict):
        remark(f'{name}: {kind} is not checked with the ground truth: it is already built')
        return []
    metric_type = config.get('type')
    if isinstance(metric_type, str):
        with METRICS.switch_scope_and_registry(None) as registry:
            metric_type = registry.get(metric_type)
    feed, reason = feed_of(metric_type)
    if feed is None and metric_type is not None:
        remark(f'{name}: {kind} is not checked with the ground truth: {reason}')
        return []
    config = {**config, **{key: None for key in ('outfile_prefix', 'output_dir') if key in config}}
    if config.get('format_only'):
        remark(
            f'{name}: {kind} is not checked with the ground truth: with format_only=True it writes results without '
            'scores'
        )
        path = config.get('ann_file')
        return [f'ann_file {path} does not exist'] if isinstance(path, str) and not osp.exists(path) else []
    try:
        with quiet(logging.ERROR):
            metric = METRICS.build(config)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [unbuilt_problem(config, split, error)]
    metric.dataset_meta = split.metainfo
    try:
        return feed(metric, config, split)  # type: ignore[misc]
    except (KeyError, TypeError, AttributeError) as error:
        # A data set of somebody's own, whose list holds other things: no reason to stop a run.
        found, message, _ = origin(error)
        remark(
            f'{name}: {kind} is not checked with the ground truth: the data set lists other annotations ({found}: '
            f'{message})'
        )
        return []


def feed_of(metric_type: Any) -> Tuple[Optional[Callable], str]:
    """Return the check of a metric type, or the reason why there is none."""
    for base in getattr(metric_type, '__mro__', ()):
        if base.__name__ in NOT_FED:
            return None, NOT_FED[base.__name__]
        if base.__name__ in FEEDS:
            return FEEDS[base.__name__], ''
    return None, 'the predictions that it expects are unknown'


def unbuilt_problem(config: dict, split: Split, error: Exception) -> str:
    """Describe why a metric cannot be built, usually its file."""
    path, own = config.get('ann_file'), shorten(getattr(leaf, 'ann_file', None) for leaf in split.leaves)
    kind, message, _ = origin(error)
    if kind == 'KeyError' and f'{config.get("type")} is not in the' in message:  # the registry's own words
        return f'{config["type"]} cannot be built ({kind}: {message}): correct the name, or import its module'
    if isinstance(path, str) and not osp.exists(path):
        return f'ann_file {path} does not exist: give the annotation file of the data set, {own}'
    if isinstance(path, str) and not isinstance(error, (RuntimeError, ImportError)):
        return f'{type_name(config)}: ann_file {path} cannot be read ({kind}: {message}): copy it again or correct it'
    advice = advice_for(error, 'correct its settings, or install what it needs')
    return f'{type_name(config)} cannot be built ({kind}: {message}): {advice}'


def feeding_problem(metric: Any, error: Exception, packed: bool) -> str:
    """Describe why a metric does not accept the ground truth."""
    kind, message, _ = origin(error)
    name = type(metric).__name__
    if packed and isinstance(error, KeyError):
        return (
            f'{name} reads {message} of each sample, which the pipeline of the data set does not pack: add it to '
            "meta_keys of the pipeline's last step, or load it (LoadAnnotations)"
        )
    return f'{name} fails on the data set ({kind}: {message or "no message"}): correct its settings or the annotations'


def evaluate(metric: Any, number: int, split: Split) -> Dict[str, float]:
    """Return the scores of a metric for the processed samples, without output and in this process.

    Their names are noted in the split.

    mmdet's average precision forks processes and waits for them without a limit: from a process with threads, as one
    that trains is, a copy may wait for a lock that nobody holds there. Threads do for the few samples.
    """
    forking, own = multiprocessing.Pool, 'mmdet.evaluation'
    modules = [multiprocessing, *(module for name, module in sys.modules.items() if name.startswith(own))]
    with ExitStack() as stack:
        stack.enter_context(quiet(logging.ERROR))
        for module in modules:
            if getattr(module, 'Pool', None) == forking:
                stack.enter_context(mock.patch.object(module, 'Pool', ThreadPool))
        scores: Dict[str, float] = metric.evaluate(number)
    split.scored.append(list(scores))
    return scores


def undefined_or_low(scores: Dict[str, float], best: float) -> Tuple[Dict[str, float], Dict[str, float]]:
    """Return the undefined scores (-1, NaN) and those that are not perfect."""
    numbers = {key: float(value) for key, value in scores.items() if np.ndim(value) == 0}
    undefined = {key: value for key, value in numbers.items() if math.isnan(value) or value < 0}
    low = {key: value for key, value in numbers.items() if key not in undefined and value < best * (1 - TOLERANCE)}
    return undefined, low


def scores_text(scores: Dict[str, float]) -> str:
    """Return scores as text."""
    return shorten((f'{key} {value:.4g}' for key, value in scores.items()), 3)


# ---------------------------------------------------------------------------------------------------- detection


def coco_truth(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``CocoMetric``: its file is the data set's, pycocotools reads it, and the ground truth scores 1."""
    infos = split.infos
    if not all('instances' in info and 'img_id' in info for info in infos):
        remark(f'{type(metric).__name__} is not checked with the ground truth: the data set lists no instances')
        return []
    path, api = config.get('ann_file'), metric._coco_api
    if api is not None:
        problems = coco_file_problems(metric, path, split) or coco_annotation_problems(metric, path, split)
        if problems:
            return problems
    return coco_score_problems(metric, path or 'the data set', split)


def coco_file_problems(metric: Any, path: Any, split: Split) -> List[str]:
    """Check that a metric's annotation file has the images and classes of the data set."""
    api, infos = metric._coco_api, split.infos
    other = f'give the annotation file of the data set, {shorten(leaf.ann_file for leaf in split.leaves)}'
    unknown = [info['img_id'] for info in infos if info['img_id'] not in api.imgs]
    if unknown:
        return [
            f'{len(unknown)} of {len(infos)} images of the data set (ids {shorten(unknown, 3)}) are not in ann_file '
            f'{path}: {other}'
        ]
    renamed = [
        f'{info["img_id"]} is {osp.basename(api.imgs[info["img_id"]]["file_name"])} in the file and '
        f'{osp.basename(info["img_path"])} in the data set'
        for info in infos
        if osp.basename(str(api.imgs[info['img_id']].get('file_name', ''))) != osp.basename(info['img_path'])
        and 'file_name' in api.imgs[info['img_id']]
    ]
    if renamed:
        return [
            f'{len(renamed)} of {len(infos)} images have the ids of others in ann_file {path} ({shorten(renamed, 2)}): '
            f'{other}'
        ]
    classes = tuple(split.metainfo['classes'])
    names = [category['name'] for category in api.dataset.get('categories', ())]
    lacking = [each for each in classes if each not in names]
    if lacking:
        return [f'ann_file {path} lacks the categories {shorten(lacking)} of the data set: {other}']
    category_ids = list(api.get_cat_ids(cat_names=classes))
    own = next((list(leaf.cat_ids) for leaf in split.leaves if hasattr(leaf, 'cat_ids')), None)
    order = [api.cats[key]['name'] for key in category_ids]
    if (order != list(classes)) if own is None else (category_ids != own):
        return [
            f'ann_file {path} has the categories in another order ({shorten(order)}) or with other ids than the data '
            f'set ({shorten(classes)}), so correct predictions would count as wrong: {other}'
        ]
    if order != list(classes):
        remark(
            f'ann_file {path} names the same categories differently ({shorten(order)}) from the data set '
            f'({shorten(classes)}): results of single classes will have wrong names'
        )
    return []


def coco_annotation_problems(metric: Any, path: Any, split: Split) -> List[str]:
    """Check that pycocotools can evaluate each annotation of a file."""
    api = metric._coco_api
    annotations = list(api.anns.values())
    problems = []
    for key in ('iscrowd', 'bbox', 'area', 'id'):
        ids = [each.get('id') for each in annotations if key not in each]
        if ids:
            advice = 'add "iscrowd": 0 to each of them' if key == 'iscrowd' else 'complete them'
            words = f'have no {key!r}, which the metric reads'
            problems.append(f'{path}: {count_line(ids, len(annotations), words)}: {advice}')
    if 'segm' not in metric.metrics or problems:
        return problems
    masks = [
        Mask(each.get('segmentation'), image['width'], image['height'], each, each['image_id'])
        for each in annotations
        for image in [api.imgs.get(each['image_id'])]
        if image is not None
    ]
    found, _ = check_masks(masks, ask_metric(api), split.limit, str(path))
    words = 'have a segmentation that the metric cannot read'
    return [
        f'{path}: {count_line([mask.owner.get("id") for mask in faulty], len(masks), words)}: {said}. Give polygons '
        '[[x1, y1, x2, y2, x3, y3, ...]] with three or more points, or remove them'
        for said, faulty in found.items()
    ]


def coco_score_problems(metric: Any, path: Any, split: Split) -> List[str]:
    """Check that a data set's boxes and masks, as predictions, score 1."""
    infos, api, kind = split.infos, metric._coco_api, type(metric).__name__
    chosen = spread(range(len(infos)), IMAGES)
    fed: List[dict] = []
    empty_masks: List[Any] = []
    for index in split.limit.part(chosen, FEED_SECONDS, f'{path}: ground truth of images evaluated by {kind}'):
        info, packed = infos[index], split.sample(index)
        try:
            metric.process({}, [coco_sample(metric, info, packed, empty_masks)])
        except Exception as error:
            # Broad, because the metric is another library's.
            return [feeding_problem(metric, error, packed is not None)]
        fed.append(info)
    if len(fed) < len(infos):
        remark(f'{path}: the ground truth of {len(fed)} of {len(infos)} images is evaluated by {kind}')
        ids = {info['img_id'] for info in fed}
        metric.img_ids = [each for each in api.get_img_ids() if each in ids] if api is not None else None
    if not any(not each['ignore_flag'] for info in fed for each in info['instances']):
        remark(f'{path}: no object in the {len(fed)} images tested: their AP is undefined (-1)')
        return []
    try:
        scores = evaluate(metric, len(fed), split)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [feeding_problem(metric, error, False)]
    undefined, low = undefined_or_low(scores, 1.0)
    # Of sizes that do not occur.
    undefined = {key: value for key, value in undefined.items() if key.endswith(('mAP', 'mAP_50', 'mAP_75'))}
    if undefined and COCO_DETECTIONS not in metric.proposal_nums:
        return [
            f'{kind} cannot compute {scores_text(undefined)} with proposal_nums={tuple(metric.proposal_nums)}, which '
            f'lacks {COCO_DETECTIONS}: add it'
        ]
    if not low:
        return []
    causes, wrong = coco_causes(metric, fed, infos, empty_masks)
    text = f'{path}: the ground truth itself scores only {scores_text(low)}, not 1, which no model can exceed'
    if wrong:
        return [f'{text}: {"; ".join(wrong + causes)}: give the annotation file of the data set']
    remark(f'{text}: {"; ".join(causes) or "the reason is unknown"}')
    return []


def coco_sample(metric: Any, info: dict, packed: Optional[dict], empty_masks: List[Any]) -> dict:
    """Return a sample with a perfect prediction."""
    from pycocotools import mask as masks

    instances = [each for each in info['instances'] if not each['ignore_flag']]
    sample = packed
    if sample is None:
        sample = dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']), instances=info['instances'])
    sample['pred_instances'] = dict(
        bboxes=torch.tensor([each['bbox'] for each in instances], dtype=torch.float64).reshape(-1, 4),
        labels=torch.tensor([each['bbox_label'] for each in instances], dtype=torch.long),
        scores=torch.full((len(instances),), 0.9),
    )
    if 'segm' in metric.metrics:
        from mmdet.datasets.api_wrappers import COCO

        api = COCO()
        api.imgs = {0: info}
        runs = [api.annToRLE(dict(image_id=0, segmentation=each.get('mask'))) for each in instances]
        empty_masks += [info['img_id'] for run in runs if masks.area(run) == 0]
        sample['pred_instances']['masks'] = runs
    return sample


def coco_causes(metric: Any, fed: List[dict], infos: List[dict], empty_masks: List[Any]) -> Tuple[List[str], List[str]]:
    """Find out why the ground truth scores less than 1.

    Returns:
        tuple[list[str], list[str]]: Causes in the data, and signs that the file belongs to other data.
    """
    causes: List[str] = []
    wrong: List[str] = []
    api = metric._coco_api
    most = max(sum(not each['ignore_flag'] for each in info['instances']) for info in fed)
    if most > COCO_DETECTIONS:
        causes.append(f'an image has {most} objects, but the metric counts {COCO_DETECTIONS} per image')
    twice = [key for key, number in Counter(info['img_id'] for info in infos).items() if number > 1]
    if twice:
        causes.append(f'{len(twice)} images occur more than once in the data set (ids {shorten(twice, 3)})')
    if empty_masks:
        causes.append(f'{len(empty_masks)} masks cover no pixel (images {shorten(empty_masks, 3)})')
    if api is None:
        return causes, wrong
    cat_ids, ids = set(metric.cat_ids), {info['img_id'] for info in infos}
    if 'proposal_fast' in metric.metrics and [info['img_id'] for info in fed] != list(metric.img_ids):
        wrong.append('proposal_fast pairs images by index, but the file lists other images or another order')
    evaluated = [each for each in api.anns.values() if each['category_id'] in cat_ids and not each['iscrowd']]
    if any(each['id'] == 0 for each in evaluated):
        causes.append(
            'an annotation has the id 0, which pycocotools treats as "not found", so its object counts as missed: '
            'number the annotations from 1'
        )
    others = [each for each in api.imgs if each not in ids and api.imgToAnns.get(each)]
    if others and len(fed) == len(infos):
        causes.append(
            f'{len(others)} images of the file (ids {shorten(others, 3)}) are not in the data set and count as missed'
        )
    left: Counter = Counter()
    by_id = {info['img_id']: info for info in fed}
    for info in by_id.values():
        left.update((info['img_id'], *each['bbox']) for each in info['instances'] if not each['ignore_flag'])
    kinds: Dict[str, list] = {}
    for each in evaluated:
        if each['image_id'] not in by_id:
            continue
        box = (each['image_id'], *corners(each['bbox']))
        if left[box] > 0:
            left[box] -= 1
        else:
            info = by_id[each['image_id']]
            kinds.setdefault(skip_reason(each, info, metric.cat_ids), []).append(each['id'])
    extra = sum(left.values())
    for kind, found in kinds.items():
        line = count_line(found, len(evaluated), SKIPPED[kind])
        (wrong if kind == 'unknown' and extra else causes).append(f'{line}, and are skipped by the data set')
    if extra:
        wrong.append(f'{extra} objects of the data set are not in the file')
    return causes, wrong


def voc_truth(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``VOCMetric``, which compares with the annotations loaded by the pipeline."""
    classes = split.metainfo['classes']
    if metric.metric == 'recall' and len(classes) > 1:
        remark(
            'VOCMetric(metric="recall") is not checked with the ground truth: it only evaluates predictions of the '
            'first class'
        )
        return []
    chosen, fed, moved = spread(range(len(split.infos)), IMAGES), 0, []
    for index in split.limit.part(chosen, FEED_SECONDS, 'ground truth of images evaluated by VOCMetric'):
        info, sample = split.infos[index], split.sample(index, load=True)
        if sample is None:
            continue
        instances = [each for each in info['instances'] if not each['ignore_flag']]
        boxes = torch.tensor([each['bbox'] for each in instances], dtype=torch.float32).reshape(-1, 4)
        sample['pred_instances'] = dict(
            bboxes=boxes,
            labels=torch.tensor([each['bbox_label'] for each in instances], dtype=torch.long),
            scores=torch.full((len(instances),), 0.9),
        )
        try:
            metric.process({}, [sample])
        except Exception as error:
            # Broad, because the metric is another library's.
            return [feeding_problem(metric, error, True)]
        loaded = sample['gt_instances']['bboxes']
        loaded = torch.as_tensor(getattr(loaded, 'tensor', loaded))
        if loaded.shape == boxes.shape and not torch.allclose(loaded.float(), boxes, atol=1.0):
            moved.append(info['img_path'])
        fed += 1
    if not fed:
        return []
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [feeding_problem(metric, error, False)]
    _, low = undefined_or_low(scores, 1.0)
    if low and moved:
        return [
            f'the ground truth itself scores only {scores_text(low)}, not 1: the pipeline passes boxes of the resized '
            f'image to the metric ({shorten(moved, 1)}), but predictions are for the original image. Load the '
            'annotations after Resize'
        ]
    if low:
        remark(
            f'VOCMetric: the ground truth itself scores only {scores_text(low)}, not 1, which no model can exceed: '
            'objects of one class with the same box count as one'
        )
    return []


def panoptic_truth(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``CocoPanopticMetric``: maps and file match, and the ground truth scores 100."""
    import mmcv
    from mmdet.evaluation.functional import INSTANCE_OFFSET
    from panopticapi.utils import rgb2id

    infos, fed = split.infos, 0
    if not all(info.get('segments_info') is not None and info.get('seg_map_path') for info in infos):
        return ['CocoPanopticMetric needs panoptic segmentation maps: set data_prefix=dict(seg=...) of the data set']
    number = len(split.metainfo['classes'])
    for index in split.limit.part(
        spread(range(len(infos)), IMAGES), FEED_SECONDS, 'segmentation maps evaluated by the metric'
    ):
        info, packed = infos[index], split.sample(index)
        keys = ('img_id', 'img_path', 'segments_info', 'seg_map_path')
        sample = packed or {**{key: info[key] for key in keys}, 'ori_shape': (info['height'], info['width'])}
        try:
            ids = rgb2id(mmcv.imread(info['seg_map_path'])[:, :, ::-1])
        except Exception:
            # Broad, because corrupt bytes make decoders fail in any way there is.
            return [
                f'{info["seg_map_path"]} is missing or cannot be decoded: complete the data set, or correct '
                'data_prefix.seg'
            ]
        labels = np.full(ids.shape, number, np.int64)
        for place, segment in enumerate(info['segments_info'], 1):
            labels[ids == segment['id']] = segment['category'] + place * INSTANCE_OFFSET
        sample['pred_panoptic_seg'] = dict(sem_seg=torch.from_numpy(labels)[None])
        try:
            metric.process({}, [sample])
        except Exception as error:
            # Broad, because the metric is another library's.
            return [feeding_problem(metric, error, packed is not None)]
        fed += 1
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [feeding_problem(metric, error, False)]
    occurring = {segment['is_thing'] for info in infos for segment in info['segments_info']}
    _, low = undefined_or_low(
        {
            key: value
            for key, value in scores.items()
            if not (key.endswith('_th') and True not in map(bool, occurring))
            and not (key.endswith('_st') and False not in map(bool, occurring))
        },
        100.0,
    )
    if not low:
        return []
    return [
        f'the ground truth itself scores only {scores_text(low)}, not 100: segmentation maps ({metric.seg_prefix}) '
        f'and annotations ({config.get("ann_file")}) do not match. Give those of the data set'
    ]


# ------------------------------------------------------------------------------------------------- segmentation


def iou_truth(metric: Any, config: dict, split: Split) -> List[str]:
    """Check an ``IoUMetric``: the segmentation maps loaded by the pipeline, as predictions of image size, score 100."""
    number = len(split.metainfo['classes'])
    turned: List[str] = []
    wrong: Counter = Counter()
    fed, ignored = 0, 0
    chosen = spread(range(len(split.infos)), IMAGES)
    for index in split.limit.part(chosen, FEED_SECONDS, f'ground truth of images evaluated by {type(metric).__name__}'):
        sample = split.sample(index, load=True)
        if sample is None:
            continue
        try:
            truth = torch.as_tensor(sample['gt_sem_seg']['data']).squeeze()
            size = tuple(sample['ori_shape'][:2])
        except KeyError as error:
            return [feeding_problem(metric, error, True)]
        if tuple(truth.shape) != size:
            turned.append(f'{split.infos[index].get("seg_map_path")} is {tuple(truth.shape)}, its image {size}')
            continue
        out = (truth < 0) | (truth >= number)
        ignored += int((truth == metric.ignore_index).sum())
        wrong.update(truth[out & (truth != metric.ignore_index)].unique().tolist())
        sample['pred_sem_seg'] = dict(data=torch.where(out, torch.zeros_like(truth), truth))
        try:
            metric.process({}, [sample])
        except Exception as error:
            # Broad, because the metric is another library's.
            return [feeding_problem(metric, error, True)]
        fed += 1
    if len(turned) > tolerated(len(split.infos)):
        return [
            f'{len(turned)} of {fed + len(turned)} segmentation maps differ in size from their images as loaded '
            f'(height, width: {shorten(turned, 2)}): they belong to other images, or EXIF data rotates the images. '
            'Correct the maps, or save the images without EXIF rotation'
        ]
    if not fed:
        return []
    occurring = sum(result[3] for result in metric.results) if metric.results and len(metric.results[0]) == 4 else None
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [feeding_problem(metric, error, False)]
    own = {getattr(leaf, 'ignore_index', None) for leaf in split.leaves}
    if wrong and set(wrong) <= own:
        (label,) = wrong if len(wrong) == 1 else [shorten(sorted(wrong))]
        return [
            f'the data set has ignore_index={label}, but {type(metric).__name__} ignores the label '
            f'{metric.ignore_index}: set ignore_index={label} of the metric in val_evaluator and test_evaluator'
        ]
    if wrong:
        return [
            f'segmentation maps contain the labels {shorten(sorted(wrong))} as loaded, but the data set has {number} '
            f'classes (0 to {number - 1}, {metric.ignore_index} is ignored): correct metainfo.classes, '
            'reduce_zero_label or the maps'
        ]
    undefined, low = undefined_or_low(scores, 100.0)
    if 'aAcc' in {key.rpartition('/')[2] for key in undefined}:
        return [
            f'all pixels of the {fed} segmentation maps tested are ignored ({metric.ignore_index}): nothing could be '
            'evaluated. Correct reduce_zero_label or the maps'
        ]
    absent = (
        []
        if occurring is None
        else [name for name, area in zip(split.metainfo['classes'], torch.as_tensor(occurring).tolist()) if not area]
    )
    if low:
        remark(
            f'{type(metric).__name__}: the ground truth itself scores only {scores_text(low)}, not 100, which no '
            f'model can exceed: the classes {shorten(absent)} occur in none of {fed} segmentation maps'
        )
    elif absent and fed == len(split.infos) and len(absent) < number - 1:  # one alone is said of the data set
        also = f'; {ignored} pixels have the ignored label {metric.ignore_index}' if ignored else ''
        remark(
            f'{len(absent)} of {number} classes ({shorten(absent)}) occur in none of the {fed} segmentation maps '
            f'tested{also}'
        )
    return []


# ----------------------------------------------------------------------------------------------- classification


def labels_truth(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a metric of mmpretrain: the data set's labels, as predictions, score 100."""
    classes, infos, kind = split.metainfo.get('classes'), split.infos, type(metric).__name__
    if classes is None or any(info.get('gt_label') is None for info in infos):
        remark(
            f'{kind} is not checked with the ground truth: the data set has no class names, or images without labels'
        )
        return []
    number = len(classes)
    several = any(base.__name__ in ('MultiLabelMetric', 'AveragePrecision') for base in type(metric).__mro__)
    occurring: Counter = Counter()
    fed = 0
    for index in split.limit.part(spread(range(len(infos)), LABELS), FEED_SECONDS, f'labels evaluated by {kind}'):
        info, packed = infos[index], split.sample(index)
        target = torch.as_tensor(np.atleast_1d(np.asarray(info['gt_label'], int)), dtype=torch.long)
        score = torch.zeros(number)
        score[target] = 1.0
        occurring.update(target.tolist())
        sample = packed if packed is not None else dict(gt_label=target, num_classes=number, **extra_of(info))
        sample['pred_score'], sample['pred_label'] = score, target
        if several and packed is None:
            sample['gt_score'] = score.clone()
        try:
            metric.process({}, [sample])
        except Exception as error:
            # Broad, because the metric is another library's.
            return [feeding_problem(metric, error, packed is not None)]
        fed += 1
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric is another library's.
        return [topk_problem(metric, number) or feeding_problem(metric, error, False)]
    undefined, low = undefined_or_low(scores, 100.0)
    low = {key: value for key, value in {**undefined, **low}.items() if 'support' not in key}
    if low:
        absent = [name for index, name in enumerate(classes) if not occurring[index]]
        why = (
            f'the classes {shorten(absent)} never occur and count as 0'
            if absent
            else f'its settings (thr={config.get("thr")}, topk={config.get("topk")}) do not fit the labels'
        )
        remark(
            f'{kind}: the ground truth itself scores only {scores_text(low)}, not 100, which no model can exceed: {why}'
        )
    return []


def extra_of(info: dict) -> dict:
    """Return the additional entries of a sample in a multi-label data set."""
    return {'gt_label_difficult': info.get('gt_label_difficult') or []} if 'gt_label_difficult' in info else {}


def topk_problem(metric: Any, number: int) -> str:
    """Describe a top-k larger than the number of classes; empty if there is none."""
    topk = np.atleast_1d(np.asarray(getattr(metric, 'topk', None) or 1, int)).tolist()
    if max(topk) <= number:
        return ''
    fitting = tuple(each for each in topk if each <= number) or (1,)
    return (
        f'{type(metric).__name__} has topk={tuple(topk)}, but there are {number} classes: set topk={fitting} in '
        'val_evaluator and test_evaluator'
    )


#: How the truth is put through a metric, by its type or one that it inherits from.
FEEDS: Dict[str, Callable[[Any, dict, Split], List[str]]] = {
    'CocoMetric': coco_truth,
    'VOCMetric': voc_truth,
    'CocoPanopticMetric': panoptic_truth,
    'IoUMetric': iou_truth,
    'Accuracy': labels_truth,
    'SingleLabelMetric': labels_truth,
    'MultiLabelMetric': labels_truth,
    'AveragePrecision': labels_truth,
    'ConfusionMatrix': labels_truth,
}
#: Why others are not fed, by their type.
NOT_FED = {
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
