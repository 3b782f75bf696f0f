"""The ground truth of a ``CocoMetric``: boxes and masks in COCO's format."""

import os.path as osp
from collections import Counter
from typing import Any, Dict, List, Optional, Tuple

import torch

from ..annotations import SKIPPED, corners, count_line, skip_reason
from ..limits import spread
from ..log import log_warning, shorten
from ..masks import Mask, check_masks, metric_reader
from .scores import EVALUATION_SECONDS, IMAGES, Split, evaluate, input_problem, scores_text, undefined_or_low

#: Maximum number of predictions per image that pycocotools evaluates.
COCO_DETECTIONS = 100


def check_coco(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``CocoMetric``: its file is the data set's, pycocotools reads it, and the ground truth scores 1."""
    infos = split.infos
    if not all('instances' in info and 'img_id' in info for info in infos):
        log_warning(f'{type(metric).__name__} is not checked with the ground truth: the data set lists no instances')
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
        log_warning(
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
        ids = [each.get('id') for each in annotations if each.get(key) is None]
        if ids:
            advice = 'add "iscrowd": 0 to each of them' if key == 'iscrowd' else 'complete them'
            words = f'have no {key!r}, which the metric reads'
            problems.append(f'{path}: {count_line(ids, len(annotations), words)}: {advice}')
    typed = [each['id'] for each in annotations if isinstance(each.get('id'), str)]
    if typed:
        words = 'have an id that is text, but the metric computes with it'
        problems.append(f'{path}: {count_line(typed, len(annotations), words)}: number the annotations from 1')
    if 'segm' not in metric.metrics or problems:
        return problems
    masks = [
        Mask(each.get('segmentation'), image['width'], image['height'], each, each['image_id'])
        for each in annotations
        for image in [api.imgs.get(each['image_id'])]
        if image is not None
    ]
    found, _ = check_masks(masks, metric_reader(api), split.limit, str(path))
    words = 'have a segmentation that the metric cannot read'
    return [
        f'{path}: {count_line([mask.owner.get("id") for mask in faulty], len(masks), words)}: {reason}. Give polygons '
        '[[x1, y1, x2, y2, x3, y3, ...]] with three or more points, or remove them'
        for reason, faulty in found.items()
    ]


def coco_score_problems(metric: Any, path: Any, split: Split) -> List[str]:
    """Check that a data set's boxes and masks, as predictions, score 1."""
    infos, api, kind = split.infos, metric._coco_api, type(metric).__name__
    chosen = spread(range(len(infos)), IMAGES)
    fed: List[dict] = []
    empty_masks: List[Any] = []
    for index in split.limit.part(chosen, EVALUATION_SECONDS, f'{path}: ground truth of images evaluated by {kind}'):
        info, packed = infos[index], split.sample(index)
        try:
            metric.process({}, [coco_sample(metric, info, packed, empty_masks)])
        except Exception as error:
            # Broad, because the metric may be any code.
            return [input_problem(metric, error, packed is not None)]
        fed.append(info)
    if len(fed) < len(infos):
        log_warning(f'{path}: the ground truth of {len(fed)} of {len(infos)} images is evaluated by {kind}')
        ids = {info['img_id'] for info in fed}
        metric.img_ids = [each for each in api.get_img_ids() if each in ids] if api is not None else None
    if not any(not each['ignore_flag'] for info in fed for each in info['instances']):
        log_warning(f'{path}: no object in the {len(fed)} images tested: their AP is undefined (-1)')
        return []
    try:
        scores = evaluate(metric, len(fed), split)
    except Exception as error:
        # Broad, because the metric may be any code.
        return [input_problem(metric, error, False)]
    undefined, low = undefined_or_low(scores, 1.0)
    # Undefined scores of object sizes that do not occur are not reported.
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
    log_warning(f'{text}: {"; ".join(causes) or "the reason is unknown"}')
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
