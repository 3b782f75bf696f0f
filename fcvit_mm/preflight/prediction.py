"""Checking settings that only predictions read: a mistake in them would end the run at its first validation."""

from typing import Any, Iterator, List, Tuple

import torch
from mmengine.config import Config

from ..engine.config import library_of
from ..engine.wrapped import find_inner_model
from ..errors import origin


def prediction_problems(cfg: Config) -> List[str]:
    """Check sliding windows of segmentors, and the suppression of boxes of detectors, in a model's ``test_cfg``."""
    place, model = find_inner_model(cfg.get('model') or {})
    settings, library = model.get('test_cfg'), library_of(cfg)
    if not isinstance(settings, dict):
        return []
    if library == 'mmseg' and settings.get('mode') == 'slide':
        return window_problems(settings, f'{place}.test_cfg')
    # Only for mmdet itself, because boxes of libraries built on it may have more numbers.
    return suppression_problems(settings, f'{place}.test_cfg') if cfg.default_scope == 'mmdet' else []


def window_problems(settings: dict, place: str) -> List[str]:
    """Check that sliding windows have a size and a stride that leaves no gaps."""
    size, stride = (settings.get(key) for key in ('crop_size', 'stride'))
    for key, value in (('crop_size', size), ('stride', stride)):
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if not (pair and all(isinstance(each, int) and each > 0 for each in value)):  # type: ignore[union-attr]
            return [
                f"{place}.{key} is {value!r}, but mode='slide' needs two positive numbers: height and width of the "
                'window in crop_size, their steps in stride'
            ]
    if stride[0] > size[0] or stride[1] > size[1]:  # type: ignore[index]
        return [f'{place}.stride is {stride}, larger than crop_size={size}, which leaves gaps: give at most crop_size']
    return []


def suppression_problems(settings: dict, place: str) -> List[str]:
    """Let mmcv suppress two boxes with each ``nms`` of the settings."""
    problems = []
    for name, node in nms_of(settings, place):
        from mmcv.ops import batched_nms

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10]])
        try:
            batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), dict(node))
        except Exception as error:
            # Broad, because mmcv evaluates the type as code.
            problems.append(
                f'{name} cannot be applied ({origin(error).message}), which would end the run at the first validation: '
                "give type='nms' or 'soft_nms', iou_threshold, and arguments of that function of mmcv.ops"
            )
    return problems


def nms_of(node: Any, place: str) -> Iterator[Tuple[str, dict]]:
    """Yield dotted name and config of each ``nms`` that is given by its type."""
    for key, child in node.items() if isinstance(node, dict) else ():
        if key == 'nms' and isinstance(child, dict) and isinstance(child.get('type', 'nms'), str):
            yield f'{place}.{key}', child
        else:
            yield from nms_of(child, f'{place}.{key}')
