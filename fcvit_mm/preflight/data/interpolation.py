"""Checking whether maps were resized with interpolation, which puts means of two labels between their regions."""

from typing import Any, Dict, List

import numpy as np

from ..log import log_warning, shorten

#: Part of the changes of label along rows and columns that are steps of a slope (a pixel between a smaller and a larger
#: label). Measured in maps of 8 data sets: at most 0.035, after interpolation 0.28 and more, in JPEG 0.20 and more.
SLOPES = 0.1
#: Minimum fraction of these pixels at which a label counts as an outline, such as 1 in maps of background, border and
#: object.
OUTLINE = 0.8


class Interpolation:
    """Counter of the changes of label in segmentation maps."""

    def __init__(self) -> None:
        self.changes = 0
        self.slopes = 0
        self.between: Dict[int, int] = {}
        self.first = ''

    def add(self, path: str, labels: Any) -> None:
        """Take a segmentation map.

        Args:
            path (str): Its file.
            labels (np.ndarray): Shape (H, W), with the labels of the file.
        """
        if np.ndim(labels) != 2:
            return
        values = np.asarray(labels).astype(np.int32)
        before = self.slopes
        for lines in (values, values.T):
            left, middle, right = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
            slope = ((left < middle) & (middle < right)) | ((left > middle) & (middle > right))
            self.changes += int((left != middle).sum())
            self.slopes += int(slope.sum())
            for label, number in zip(*np.unique(middle[slope], return_counts=True)):
                self.between[int(label)] = self.between.get(int(label), 0) + int(number)
        if self.slopes > before and not self.first:
            self.first = path

    def report(self, maps: str) -> None:
        """Log a warning if the maps seem to be interpolated."""
        if self.slopes <= SLOPES * self.changes or max(self.between.values()) >= OUTLINE * self.slopes:
            return
        found: List[int] = sorted(self.between, key=lambda label: -self.between[label])
        log_warning(
            f'segmentation maps in {maps}: {self.slopes} of {self.changes} changes of label lead over a label between '
            f'two others (mostly {shorten(found)}; such as in {self.first}), as after resizing with interpolation or '
            'saving as JPEG, so labels at the borders of regions are wrong: resize maps with the nearest neighbor, and '
            'save them as PNG'
        )
