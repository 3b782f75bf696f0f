"""Faster versions of mmpretrain's training transforms: the same random draws, the same images, less time.

Each is the library's class with the arithmetic of its ``transform`` in fewer passes. From the same seed it draws the
same numbers, so crops, operations and magnitudes are the library's. Results are equal to the last bit with two
exceptions: resizing (differences of one in fewer than 1 % of the values, 3 % with torch 2.1) and the noise of erasing
(drawn by torch from the same distribution). Images other than 8-bit, 3-channel ones are processed by the library.

Configs use the classes listed in ``fcvit_mm.datasets.NAMES``. ``import fcvit_mm`` registers them; this module, which
needs mmpretrain, is imported when the first of them is built.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmcv.transforms import RandomFlip
from mmcv.transforms.utils import cache_randomness
from mmpretrain.datasets import transforms as library

from ..errors import UserError
from .layout import contiguous

Results = Dict[str, Any]

#: All 8-bit values. Applied to them, a transform of single values returns its lookup table.
RAMP = np.arange(256, dtype=np.uint8).reshape(1, 256)
RAMP.setflags(write=False)
#: Weights of the smooth image that sharpening starts from, Pillow's ``SMOOTH``.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float64) / 13
#: Interpolations that PyTorch computes as Pillow does.
INTERPOLATIONS = ('bilinear', 'bicubic')


def is_color(image: np.ndarray) -> bool:
    """Return whether an image has three channels of 8 bits."""
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resize an image as Pillow does, with weights of 16 bits in place of 22.

    Args:
        image (np.ndarray): ``(H, W, 3)`` uint8; any strides.
        height (int): Height of the result.
        width (int): Width of the result.
        interpolation (str): One of :data:`INTERPOLATIONS`.

    Returns:
        np.ndarray: ``(height, width, 3)`` uint8, contiguous. If the image is reduced, it is antialiased.
    """
    # view(), not [None], whose stride PyTorch does not recognize as channels_last, and would copy.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).view(1, *image.shape).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def histograms(image: np.ndarray) -> Tuple[np.ndarray, ...]:
    """Count the values of each channel: three arrays ``(256,)`` of integers."""
    counts = (cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3))
    return tuple(each.ravel().astype(np.int64) for each in counts)


def apply_tables(image: np.ndarray, tables: Tuple[np.ndarray, ...]) -> np.ndarray:
    """Replace each value of a channel by its entry in the channel's table, ``(256,)`` uint8."""
    return cv2.LUT(image, np.stack(tables, axis=-1)[None])


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Return the result of :func:`mmcv.auto_contrast`, ``(H, W, 3)`` uint8: each channel from 0 to 255."""
    tables = []
    for counts in histograms(image):
        used = np.flatnonzero(counts)
        low, high = used[0], used[-1]
        scale = 255.0 / (high - low) if low < high else 1.0
        offset = -low * scale if low < high else 0.0
        tables.append(np.clip(np.arange(256) * scale + offset, 0, 255).astype(np.uint8))
    return apply_tables(image, tuple(tables))


def equalize(image: np.ndarray) -> np.ndarray:
    """Return the result of :func:`mmcv.imequalize`, ``(H, W, 3)`` uint8: each channel's values spread evenly."""
    tables = []
    for counts in histograms(image):
        step = (image.shape[0] * image.shape[1] - counts[np.flatnonzero(counts)[-1]]) // 255
        table = np.arange(256)
        if step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1] + step // 2]) // step
            table = np.minimum(before, 255)
        tables.append(table.astype(np.uint8))
    return apply_tables(image, tuple(tables))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Return the result of :func:`mmcv.adjust_contrast`, ``(H, W, 3)`` uint8: scaled around the mean by ``factor``."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    mean = round(float(np.sum(grey)) / grey.size)
    table = cv2.addWeighted(RAMP.astype(np.float32), factor, np.full(RAMP.shape, mean, np.float32), 1 - factor, 0)
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def adjust_color(image: np.ndarray, factor: float) -> np.ndarray:
    """Return the result of :func:`mmcv.adjust_color`, ``(H, W, 3)`` uint8: colors ``factor`` times as far from grey."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def adjust_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Return the result of :func:`mmcv.adjust_sharpness`, ``(H, W, 3)`` uint8: details ``factor`` times as strong."""
    smooth = cv2.filter2D(image, -1, SMOOTH)
    sharpened = cv2.addWeighted(image, factor, smooth, 1 - factor, 0, dtype=cv2.CV_32F)
    return np.clip(sharpened, 0, 255, out=sharpened).astype(np.uint8)


class FastRandomResizedCrop(library.RandomResizedCrop):
    """A random part of an image, resized: mmpretrain's ``RandomResizedCrop`` with ``backend='pillow'``.

    PyTorch resizes with Pillow's filters and 16-bit weights: fewer than 1 % of the values (3 % with torch 2.1) differ,
    by one. Several interpolations draw like ``RandomChoice`` of one such transform for each.

    Args:
        scale (int | Sequence[int]): Side of the result, or height and width.
        crop_ratio_range (tuple[float]): Part of the image's area, drawn evenly.
        aspect_ratio_range (tuple[float]): Width over height, drawn evenly of its logarithm.
        max_attempts (int): Draws before the centre is taken.
        interpolation (str | Sequence[str]): ``'bilinear'`` or ``'bicubic'``, or both to draw one for each image.

    Raises:
        UserError: Another interpolation.
    """

    def __init__(
        self,
        scale: Any,
        crop_ratio_range: Tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: Tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        interpolation: Union[str, Sequence[str]] = 'bilinear',
    ) -> None:
        self.interpolations = (interpolation,) if isinstance(interpolation, str) else tuple(interpolation)
        if not self.interpolations or not set(self.interpolations) <= set(INTERPOLATIONS):
            raise UserError(
                f'interpolation of FastRandomResizedCrop is {interpolation!r}, expected one of '
                f'{", ".join(INTERPOLATIONS)}; '
                "RandomResizedCrop(backend='pillow') supports others"
            )
        first = self.interpolations[0]
        super().__init__(scale, crop_ratio_range, aspect_ratio_range, max_attempts, first, backend='pillow')

    def transform(self, results: Results) -> Results:
        """Crop and resize ``img``."""
        image = results['img']
        if len(self.interpolations) > 1:
            self.interpolation = self.interpolations[np.random.randint(len(self.interpolations))]
        if not is_color(image):
            return super().transform(results)
        top, left, height, width = self.rand_crop_params(image)
        part = image[top : top + height, left : left + width]
        results['img'] = resize(part, self.scale[0], self.scale[1], self.interpolation)
        results['img_shape'] = results['img'].shape
        return results


class FastRandomFlip(RandomFlip):
    """mmcv's ``RandomFlip`` for images without annotations; the result is contiguous, so nothing copies it again.

    Args:
        prob (float): Probability of flipping.
        direction (str): ``'horizontal'``, ``'vertical'`` or ``'diagonal'``.
    """

    def __init__(self, prob: float, direction: str = 'horizontal') -> None:
        super().__init__(prob, direction)

    @cache_randomness
    def _choose_direction(self) -> Optional[str]:
        # The number that np.random.choice draws, in a tenth of its time.
        return self.direction if np.random.random_sample() < self.prob else None

    def transform(self, results: Results) -> Results:
        """Flip ``img``, or not."""
        results = super().transform(results)
        results['img'] = contiguous(results['img'])
        return results


class _TableTransform:
    """A transform of single values, computed by a table with the result of each.

    Args:
        transform (callable): A transform of samples that changes each value of ``img`` independently, or nothing.
    """

    def __init__(self, transform: Callable[[Results], Results]) -> None:
        self.transform = transform

    def __call__(self, results: Results) -> Results:
        table = self.transform(dict(img=RAMP))['img']
        if table is not RAMP:
            results['img'] = cv2.LUT(results['img'], table)
        return results


class _ReplacedTransform:
    """A transform that calls a faster implementation of its function in mmcv.

    Args:
        transform (BaseAugTransform): Transform of mmpretrain, which draws the random numbers.
        change (callable): Function of an image and, if ``has_factor``, 1 plus the magnitude; returns an image.
        has_factor (bool): Whether it has a magnitude.
    """

    def __init__(self, transform: Any, change: Callable[..., np.ndarray], has_factor: bool) -> None:
        self.transform = transform
        self.change = change
        self.has_factor = has_factor

    def __call__(self, results: Results) -> Results:
        draws = self.transform
        if draws.random_disable():
            return results
        factors: Tuple[float, ...] = ()
        if self.has_factor:
            magnitude = draws.random_magnitude() if draws.magnitude is None else draws.magnitude
            factors = (1 + draws.random_negative(magnitude),)
        results['img'] = self.change(results['img'], *factors)
        return results


#: Transforms that treat values one by one.
BY_TABLES = (library.Invert, library.Posterize, library.Solarize, library.SolarizeAdd, library.Brightness)
#: Transform -> faster version of the function that it calls, and whether it has a magnitude.
REPLACED: Dict[type, Tuple[Callable[..., np.ndarray], bool]] = {
    library.AutoContrast: (auto_contrast, False),
    library.Equalize: (equalize, False),
    library.Contrast: (adjust_contrast, True),
    library.ColorTransform: (adjust_color, True),
    library.Sharpness: (adjust_sharpness, True),
}


def faster(transform: Any) -> Any:
    """Return a faster version of one of mmpretrain's color transforms; other transforms are returned unchanged."""
    if type(transform) in BY_TABLES:
        return _TableTransform(transform)
    if type(transform) in REPLACED:
        return _ReplacedTransform(transform, *REPLACED[type(transform)])
    return transform


class FastRandAugment(library.RandAugment):
    """mmpretrain's ``RandAugment`` with its arguments; operations on colors by tables of 256 values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.faster = [faster(each) for each in self.transforms]

    @cache_randomness
    def random_policy_indices(self) -> List[int]:
        """Draw the numbers that ``np.random.choice`` draws, in a fifth of its time."""
        return [int(each) for each in np.random.randint(len(self.policies), size=(self.num_policies,))]

    def transform(self, results: Results) -> Any:
        """Apply some operations, drawn at random, to ``img``."""
        results['img'] = contiguous(results['img'])
        chosen = self.faster if is_color(results['img']) else self.transforms
        for number in self.random_policy_indices():
            results = chosen[number](results)
            if results is None:
                return None
        return results


class FastRandomErasing(library.RandomErasing):
    """mmpretrain's ``RandomErasing`` with its arguments; torch draws the noise, of the same normal distribution."""

    def _fill_pixels(self, img: np.ndarray, top: int, left: int, h: int, w: int) -> np.ndarray:
        if self.mode == 'const' or self.fill_std is None or not is_color(img):
            return super()._fill_pixels(img, top, left, h, w)
        noise = torch.randn(h, w, 3).mul_(torch.tensor(self.fill_std)).add_(torch.tensor(self.fill_color))
        # Truncated, not rounded, as in the library.
        img[top : top + h, left : left + w] = noise.clamp_(0, 255).to(torch.uint8).numpy()
        return img
