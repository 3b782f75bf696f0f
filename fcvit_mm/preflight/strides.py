"""Strides of the maps that a detector's heads and RoI extractors get, compared with those in its config."""

from typing import Any, Iterator, List, NamedTuple, Sequence

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor

from ..apis.load import input_channels
from ..apis.step import without_downloads
from ..engine.wrapped import backbone_config, find_inner_model, unwrap_model
from .contexts import quiet
from .model import built_model

#: Side of the image that the model is run on, in pixels; a map with a smaller side than the other gives no stride.
SIDE, SMALLEST_SIDE = 512, 4
#: Parts of a detector with anchors or points, and of its ``roi_head``.
HEADS = ('rpn_head', 'bbox_head', 'mask_head')
ROI_EXTRACTORS = ('bbox_roi_extractor', 'mask_roi_extractor')
#: Ratio of two strides from which they differ; those of SSD are rounded.
DIFFERENT = 1.5


class Strides(NamedTuple):
    """Strides that a part of a detector is configured for.

    Attributes:
        name (str): Dotted name of the setting, relative to the model.
        given (list[float]): The strides.
        maps (Sequence[Tensor]): Maps of these strides.
    """

    name: str
    given: List[float]
    maps: Sequence[Tensor]


def stride_problems(cfg: Config) -> List[str]:
    """Check that anchors, points and RoI extractors have the strides of the maps.

    No shape depends on these settings: with the outputs of other stages, all boxes are assigned to wrong positions. The
    model is run on PyTorch's meta device; models that cannot be run there are not checked.
    """
    place, node = find_inner_model(cfg.get('model') or {})
    if not backbone_config(node):
        return []
    cfg = without_downloads(unwrap_model(cfg))
    model: Any = built_model(cfg, 'meta')
    if not hasattr(model, 'extract_feat'):
        return []
    problems = []
    try:
        with torch.no_grad(), quiet():
            image = torch.zeros(1, input_channels(model, cfg), SIDE, SIDE, device='meta')
            found = list(find_strides(model.eval(), cfg.model, model.extract_feat(image)))
    except Exception:
        # Broad, because the model may be any code.
        return []
    for name, given, maps in found:
        sides = [each.shape[-1] for each in maps]
        real = [round(SIDE / max(side, 1)) for side in sides]
        wrong = [
            (one, other)
            for one, other, side in zip(given, real, sides)
            if side >= SMALLEST_SIDE and max(one, other) > DIFFERENT * min(one, other)
        ]
        if wrong:
            problems.append(
                f'{place}.{name} is {[round(each) for each in given]}, but the maps of {place}.backbone and its neck '
                f'have the strides {real}, so boxes would be assigned to wrong positions: set {place}.{name}={real}, '
                f'or {place}.backbone.out_indices and output_stride to what the strides are for'
            )
    return problems


def find_strides(model: Any, node: ConfigDict, maps: Sequence[Tensor]) -> Iterator[Strides]:
    """Yield the strides that the parts of a detector are configured for, with the maps that they get or return."""
    for part in HEADS:
        head: Any = getattr(model, part, None)
        generator = getattr(head, 'prior_generator', None)
        if generator is None:
            continue
        scores = head(maps)[0]
        given = [max(each) if isinstance(each, (list, tuple)) else each for each in generator.strides]
        if isinstance(scores, (list, tuple)) and len(scores) == len(given):
            yield Strides(f'{part}.{setting_of(node[part])}', given, scores)
    for part in ROI_EXTRACTORS:
        extractor: Any = getattr(getattr(model, 'roi_head', None), part, None)
        for number, each in enumerate(extractor if isinstance(extractor, torch.nn.ModuleList) else [extractor]):
            if hasattr(each, 'featmap_strides'):
                name = f'roi_head.{part}.{f"{number}." * isinstance(node.roi_head.get(part), list)}featmap_strides'
                yield Strides(name, list(each.featmap_strides), maps[: len(each.featmap_strides)])


def setting_of(head: dict) -> str:
    """Return the name of the strides in the config of a head, relative to it."""
    for generator in ('anchor_generator', 'prior_generator', 'point_generator'):
        if 'strides' in (head.get(generator) or {}):
            return f'{generator}.strides'
    return 'point_strides' if 'point_strides' in head else 'strides'
