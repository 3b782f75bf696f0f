"""Palettes of segmentation maps, which show whether labels mean the same classes in all files and in the config."""

from typing import Any, Dict, Tuple

import numpy as np
from PIL import UnidentifiedImageError

from ...images import open_image
from ..log import log_warning

#: Red, green and blue.
Color = Tuple[int, ...]


def is_color(value: Any) -> bool:
    """Check whether a value is red, green and blue."""
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)


def report_unusable_palette(dataset: Any) -> None:
    """Report a palette with which predictions cannot be drawn: values that are no colors, or too few of them."""
    classes, palette = (dataset.metainfo.get(key) for key in ('classes', 'palette'))
    if not isinstance(palette, (list, tuple)) or not classes or is_color(palette):  # mmdet accepts a single color
        return
    wrong = [color for color in palette if not is_color(color)]
    if wrong:
        found = f'the color {wrong[0]!r:.60}, expected [red, green, blue]'
    elif len(palette) < len(classes):  # mmseg does not build such a data set
        found = f'{len(palette)} colors for {len(classes)} classes'
    else:
        return
    log_warning(
        f'{type(dataset).__name__}: metainfo.palette has {found}, so predictions cannot be drawn: set palette in '
        'metainfo, one color per class'
    )


def palette_of(path: str) -> Dict[int, Color]:
    """Return the colors of the labels in a segmentation map with a palette; empty for any other."""
    try:
        with open_image(path) as image:
            if image.mode != 'P':
                return {}
            colors = image.getpalette('RGB') or []
            labels = np.unique(np.asarray(image)).tolist()
    except UnidentifiedImageError:
        return {}
    return {label: tuple(colors[3 * label : 3 * label + 3]) for label in labels if 3 * label + 3 <= len(colors)}


def report_palettes(dataset: Any, palettes: Dict[str, Dict[int, Color]]) -> None:
    """Report labels with different colors in different maps, and labels with the colors of other classes.

    Programs that reduce an image to a palette number its colors by frequency, so the same color differs between files.

    Args:
        dataset (Dataset): A data set for segmentation.
        palettes (dict): Path -> result of :func:`palette_of`.
    """
    first: Dict[int, Tuple[Color, str]] = {}
    for path, colors in palettes.items():
        for label, color in colors.items():
            other, where = first.setdefault(label, (color, path))
            if color != other:
                log_warning(
                    f'segmentation maps: label {label} has the color {color} in the palette of {path}, but {other} in '
                    f'that of {where}: if the colors stand for classes, the labels mean others in each file. Convert '
                    'the colors to class indices'
                )
                return
    classes, palette = (list(dataset.metainfo.get(key) or ()) for key in ('classes', 'palette'))
    shift = 1 if dataset.reduce_zero_label else 0
    known = {tuple(map(int, color)): index for index, color in enumerate(palette[: len(classes)]) if is_color(color)}
    indices = {label: (label - shift, known[color]) for label, (color, _) in first.items() if color in known}
    moved = {label: given for label, (own, given) in indices.items() if own != given}
    if len(moved) > 1 and len(moved) == len(indices) and len(known) == len(classes):
        label, given = next(iter(moved.items()))
        log_warning(
            f'segmentation maps: label {label} has the color of {classes[given]!r} in the palette of '
            f'{first[label][1]}, but that class has label {given + shift}: correct the order of metainfo.classes and '
            'palette, or the maps'
        )
