"""Modules that replace mmdet's, without branches that depend on the data: box coders and region extractors."""

import warnings
from typing import Any, Optional, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from .steps import clip
from .supported import defining_class, refuse

BOX_CODERS = ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder')


class BoxCoder:
    """A box coder of mmdet whose decoding does not branch on the number of boxes.

    Args:
        coder (BaseBBoxCoder): A ``DeltaXYWHBBoxCoder`` or ``DistancePointBBoxCoder``.
    """

    encode_size = 4

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def decode(self, priors: Tensor, deltas: Tensor, max_shape: Sequence[Any]) -> Tensor:
        """Return boxes ``(N, 4 * C)`` of priors ``(N, 2 or 4)``, clipped to ``max_shape`` if the coder clips."""
        with warnings.catch_warnings():
            # With a batch dimension the coder takes its code for export, without branches, and warns of deprecation.
            warnings.simplefilter('ignore')
            boxes = self.coder.decode(priors[None], deltas[None])[0]
        return clip(boxes, *max_shape) if self.coder.clip_border else boxes


class RoIExtractor(nn.Module):
    """mmdet's ``SingleRoIExtractor`` without branches, with torchvision's RoIAlign, which exporters support.

    Args:
        extractor (SingleRoIExtractor): Source of the level assignment, strides and sizes.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def num_inputs(self) -> int:
        return self.extractor.num_inputs

    def forward(self, maps: Sequence[Tensor], regions: Tensor, roi_scale_factor: Optional[float] = None) -> Tensor:
        """Extract RoI features of regions ``(R, 5)``: ``(R, channels, height, width)``."""
        levels = self.extractor.map_roi_levels(regions, len(maps))
        if roi_scale_factor is not None:
            regions = self.extractor.roi_rescale(regions, roi_scale_factor)
        if len(maps) == 1:
            return self._align(0, maps[0], regions)
        places = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
        found = torch.cat([self._align(i, x, regions[place]) for i, (x, place) in enumerate(zip(maps, places))])
        # The inverse permutation, back into the order of the regions.
        order = torch.zeros_like(levels)
        where = torch.cat(places)
        return found[order.scatter(0, where, torch.arange(where.shape[0], device=where.device))]

    def _align(self, level: int, x: Tensor, regions: Tensor) -> Tensor:
        import torchvision

        layer = self.extractor.roi_layers[level]
        return torchvision.ops.roi_align(
            x, regions, layer.output_size, layer.spatial_scale, max(layer.sampling_ratio, 0), layer.aligned
        )


def box_coder(head: Any) -> BoxCoder:
    coder = head.bbox_coder
    if type(coder).__name__ not in BOX_CODERS:
        refuse(coder, 'decodes boxes in its own way')
    return BoxCoder(coder)


def region_extractor(extractor: Any) -> RoIExtractor:
    if defining_class(extractor, 'forward') != 'SingleRoIExtractor':
        refuse(extractor, 'extracts regions in its own way')
    for layer in extractor.roi_layers:
        if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
            refuse(layer, f'pools regions by {getattr(layer, "pool_mode", "its own rule")}')
    return RoIExtractor(extractor)
