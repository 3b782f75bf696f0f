"""Faster versions of mmseg's training transforms: the same random draws and the same images, bit for bit.

Configs use them by name, and they are imported on demand like those of :mod:`fcvit_mm.datasets.transforms`; they need
mmseg.
"""

from typing import Any, Dict, Tuple

import cv2
import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets import transforms as library

from .layout import contiguous

#: All values of 8 bits: the result of an operation on them is its lookup table.
RAMP = np.arange(256, dtype=np.uint8).reshape(1, 256)


class FastPhotoMetricDistortion(library.PhotoMetricDistortion):
    """mmseg's ``PhotoMetricDistortion`` with its arguments; brightness, contrast, saturation and hue by tables."""

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """Multiply values and add to them."""
        if img.dtype != np.uint8:
            return super().convert(img, alpha, beta)
        return cv2.LUT(img, super().convert(RAMP, alpha, beta))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Multiply the saturation, or do nothing, at random."""
        if img.dtype != np.uint8:
            return super().saturation(img)
        if not np.random.randint(2):
            return img
        table = super().convert(RAMP, np.random.uniform(self.saturation_lower, self.saturation_upper))
        return _change_channel(img, 1, table)

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Shift the hue, or do nothing, at random."""
        if img.dtype != np.uint8:
            return super().hue(img)
        if not np.random.randint(2):
            return img
        table = (RAMP.astype(int) + np.random.randint(-self.hue_delta, self.hue_delta)) % 180
        return _change_channel(img, 0, table.astype(np.uint8))

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """Distort the colors of ``img``."""
        results['img'] = contiguous(results['img'])
        return super().transform(results)


def _change_channel(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Replace the values of hue (0), saturation (1) or value (2) of an image in BGR by the values of a table."""
    tables = np.repeat(RAMP[..., None], 3, axis=2)
    tables[..., channel] = table
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), tables), cv2.COLOR_HSV2BGR)


class FastSegRandomCrop(library.RandomCrop):
    """mmseg's ``RandomCrop`` with its arguments; the pixels of each class in a crop are counted without sorting."""

    @cache_randomness
    def crop_bbox(self, results: Dict[str, Any]) -> Tuple[int, int, int, int]:
        """Draw the rows and columns to keep: up to 11 times, until no class has more than ``cat_max_ratio`` of them."""
        labels = results.get('gt_seg_map')
        if (
            self.cat_max_ratio >= 1
            or not isinstance(labels, np.ndarray)
            or labels.dtype != np.uint8
            or labels.ndim != 2
        ):
            return super().crop_bbox(results)
        height, width = results['img'].shape[:2]

        def draw() -> Tuple[int, int, int, int]:
            top = np.random.randint(0, max(height - self.crop_size[0], 0) + 1)
            left = np.random.randint(0, max(width - self.crop_size[1], 0) + 1)
            return top, top + self.crop_size[0], left, left + self.crop_size[1]

        box = draw()
        for _ in range(10):
            counts = cv2.calcHist([self.crop(labels, box)], [0], None, [256], [0, 256]).ravel()
            if 0 <= self.ignore_index < 256:
                counts[self.ignore_index] = 0
            counts = counts[counts > 0].astype(np.int64)
            if len(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
            box = draw()
        return box
