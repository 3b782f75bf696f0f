"""The ground truth of mmpretrain's metrics: labels."""

from collections import Counter
from typing import Any, List

import numpy as np
import torch

from ..limits import spread
from ..log import log_warning, shorten
from .scores import EVALUATION_SECONDS, Split, evaluate, input_problem, scores_text, undefined_or_low

#: Maximum number of images whose labels are evaluated.
LABELS = 10000


def check_labels(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a metric of mmpretrain: the data set's labels, as predictions, score 100."""
    classes, infos, kind = split.metainfo.get('classes'), split.infos, type(metric).__name__
    if infos and all(info.get('gt_label') is None for info in infos) and lacks_labels(split):
        return [
            f'{kind} reads labels, but the data set has none (with_label=False): give the labels, or predict with '
            'tools/predict.py, which needs none'
        ]
    if classes is None or any(info.get('gt_label') is None for info in infos):
        log_warning(
            f'{kind} is not checked with the ground truth: the data set has no class names, or images without labels'
        )
        return []
    number = len(classes)
    wrong_topk = topk_problem(metric, number)
    if wrong_topk:
        return [wrong_topk]
    several = any(base.__name__ in ('MultiLabelMetric', 'AveragePrecision') for base in type(metric).__mro__)
    occurring: Counter = Counter()
    fed = 0
    for index in split.limit.part(spread(range(len(infos)), LABELS), EVALUATION_SECONDS, f'labels evaluated by {kind}'):
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
            # Broad, because the metric may be any code.
            return [input_problem(metric, error, packed is not None)]
        fed += 1
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric may be any code.
        return [input_problem(metric, error, False)]
    undefined, low = undefined_or_low(scores, 100.0)
    low = {key: value for key, value in {**undefined, **low}.items() if 'support' not in key}
    if low:
        absent = [name for index, name in enumerate(classes) if not occurring[index]]
        why = (
            f'the classes {shorten(absent)} never occur and count as 0'
            if absent
            else f'its settings (thr={config.get("thr")}, topk={config.get("topk")}) do not fit the labels'
        )
        log_warning(
            f'{kind}: the ground truth itself scores only {scores_text(low)}, not 100, which no model can exceed: {why}'
        )
    return []


def lacks_labels(split: Split) -> bool:
    """Check whether the samples that were loaded have no labels, which a pipeline may add."""
    samples = [sample for sample in map(split.sample, split.packed) if sample is not None]
    return bool(samples) and not any('gt_label' in sample or 'gt_score' in sample for sample in samples)


def extra_of(info: dict) -> dict:
    """Return the additional entries of a sample in a multi-label data set."""
    return {'gt_label_difficult': info.get('gt_label_difficult') or []} if 'gt_label_difficult' in info else {}


def topk_problem(metric: Any, number: int) -> str:
    """Describe a top-k that is no number of classes; empty if there is none."""
    given = getattr(metric, 'topk', None)
    topk = [1] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    name = type(metric).__name__
    if not topk or not all(isinstance(each, int) and each > 0 for each in topk):
        return f'{name} has topk={given!r}, expected numbers of classes, 1 or more, such as topk=(1, 5)'
    if max(topk) <= number:
        return ''
    fitting = tuple(each for each in topk if each <= number) or (1,)
    return (
        f'{name} has topk={tuple(topk)}, but there are {number} classes: set topk={fitting} in '
        'val_evaluator and test_evaluator'
    )
