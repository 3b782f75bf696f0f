"""The ground truth of an ``IoUMetric``: segmentation maps as the pipeline loads them."""

from collections import Counter
from typing import Any, List

import torch

from ..data.images import tolerated
from ..limits import spread
from ..log import log_warning, shorten
from .scores import EVALUATION_SECONDS, IMAGES, Split, evaluate, input_problem, scores_text, undefined_or_low


def check_iou(metric: Any, config: dict, split: Split) -> List[str]:
    """Check an ``IoUMetric``: the segmentation maps loaded by the pipeline, as predictions of image size, score 100."""
    if split.metainfo.get('classes') is None:
        return [
            f'{type(metric).__name__} reads the names of the classes, which the data set lacks: set '
            'metainfo=dict(classes=(...), palette=[...]) of the data set, as for training'
        ]
    if not isinstance(metric.ignore_index, int):
        return [
            f'{type(metric).__name__} has ignore_index={metric.ignore_index!r}, expected the label of ignored pixels, '
            'such as 255'
        ]
    number = len(split.metainfo['classes'])
    turned: List[str] = []
    wrong: Counter = Counter()
    fed, ignored = 0, 0
    chosen = spread(range(len(split.infos)), IMAGES)
    what = f'ground truth of images evaluated by {type(metric).__name__}'
    for index in split.limit.part(chosen, EVALUATION_SECONDS, what):
        sample = split.sample(index, load=True)
        if sample is None:
            continue
        try:
            annotated = torch.as_tensor(sample['gt_sem_seg']['data']).squeeze()
            size = tuple(sample['ori_shape'][:2])
        except KeyError as error:
            return [input_problem(metric, error, True)]
        if tuple(annotated.shape) != size:
            turned.append(f'{split.infos[index].get("seg_map_path")} is {tuple(annotated.shape)}, its image {size}')
            continue
        out = (annotated < 0) | (annotated >= number)
        ignored += int((annotated == metric.ignore_index).sum())
        wrong.update(annotated[out & (annotated != metric.ignore_index)].unique().tolist())
        sample['pred_sem_seg'] = dict(data=torch.where(out, torch.zeros_like(annotated), annotated))
        try:
            metric.process({}, [sample])
        except Exception as error:
            # Broad, because the metric may be any code.
            return [input_problem(metric, error, True)]
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
        # Broad, because the metric may be any code.
        return [input_problem(metric, error, False)]
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
        log_warning(
            f'{type(metric).__name__}: the ground truth itself scores only {scores_text(low)}, not 100, which no '
            f'model can exceed: the classes {shorten(absent)} occur in none of {fed} segmentation maps'
        )
    elif absent and fed == len(split.infos) and len(absent) < number - 1:  # reported elsewhere
        also = f'; {ignored} pixels have the ignored label {metric.ignore_index}' if ignored else ''
        log_warning(
            f'{len(absent)} of {number} classes ({shorten(absent)}) occur in none of the {fed} segmentation maps '
            f'tested{also}'
        )
    return []
