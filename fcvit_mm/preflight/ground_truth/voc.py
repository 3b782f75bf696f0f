"""The ground truth of a ``VOCMetric``: boxes as the pipeline loads them."""

from typing import Any, List

import torch

from ..limits import spread
from ..log import log_warning, shorten
from .scores import EVALUATION_SECONDS, IMAGES, Split, evaluate, input_problem, scores_text, undefined_or_low


def check_voc(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``VOCMetric``, which compares with the annotations loaded by the pipeline."""
    classes = split.metainfo['classes']
    if metric.metric == 'recall' and len(classes) > 1:
        log_warning(
            'VOCMetric(metric="recall") is not checked with the ground truth: it only evaluates predictions of the '
            'first class'
        )
        return []
    chosen, fed, moved = spread(range(len(split.infos)), IMAGES), 0, []
    for index in split.limit.part(chosen, EVALUATION_SECONDS, 'ground truth of images evaluated by VOCMetric'):
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
            # Broad, because the metric may be any code.
            return [input_problem(metric, error, True)]
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
        # Broad, because the metric may be any code.
        return [input_problem(metric, error, False)]
    _, low = undefined_or_low(scores, 1.0)
    if low and moved:
        return [
            f'the ground truth itself scores only {scores_text(low)}, not 1: the pipeline passes boxes of the resized '
            f'image to the metric ({shorten(moved, 1)}), but predictions are for the original image. Load the '
            'annotations after Resize'
        ]
    if low:
        log_warning(
            f'VOCMetric: the ground truth itself scores only {scores_text(low)}, not 1, which no model can exceed: '
            'objects of one class with the same box count as one'
        )
    return []
