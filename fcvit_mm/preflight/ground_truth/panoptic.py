"""The ground truth of a ``CocoPanopticMetric``: segmentation maps and their segments."""

from typing import Any, List

import numpy as np
import torch

from ..limits import spread
from .scores import EVALUATION_SECONDS, IMAGES, Split, evaluate, input_problem, scores_text, undefined_or_low


def check_panoptic(metric: Any, config: dict, split: Split) -> List[str]:
    """Check a ``CocoPanopticMetric``: maps and file match, and the ground truth scores 100."""
    import mmcv
    from mmdet.evaluation.functional import INSTANCE_OFFSET
    from panopticapi.utils import rgb2id

    infos, fed = split.infos, 0
    if not all(info.get('segments_info') is not None and info.get('seg_map_path') for info in infos):
        return ['CocoPanopticMetric needs panoptic segmentation maps: set data_prefix=dict(seg=...) of the data set']
    number = len(split.metainfo['classes'])
    for index in split.limit.part(
        spread(range(len(infos)), IMAGES), EVALUATION_SECONDS, 'segmentation maps evaluated by the metric'
    ):
        info, packed = infos[index], split.sample(index)
        keys = ('img_id', 'img_path', 'segments_info', 'seg_map_path')
        sample = packed or {**{key: info[key] for key in keys}, 'ori_shape': (info['height'], info['width'])}
        try:
            ids = rgb2id(mmcv.imread(info['seg_map_path'])[:, :, ::-1])
        except Exception:
            # Broad, because decoders raise any kind of error for corrupt files.
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
            # Broad, because the metric may be any code.
            return [input_problem(metric, error, packed is not None)]
        fed += 1
    try:
        scores = evaluate(metric, fed, split)
    except Exception as error:
        # Broad, because the metric may be any code.
        return [input_problem(metric, error, False)]
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
