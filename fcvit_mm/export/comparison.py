"""Comparing an exported file with PyTorch: outputs, detections and speed."""

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .errors import ExportError, naming_operators
from .matching import UNMATCHED, Matches, match
from .parts import Part
from .runtimes import Runnable

#: Largest difference from PyTorch, relative to the largest output.
TOLERANCE = 1e-4


class Difference(NamedTuple):
    """Largest difference between a file and PyTorch on some images.

    Attributes:
        shape (tuple[int, int, int]): Batch, height and width of the images.
        largest (float): The difference; of detections, that of their scores.
        of (float): Largest value of the output with the largest difference.
        detections (int, optional): Number of detections of the library, if detections are compared.
        matched (int, optional): Number of these that the file finds.
        found (int, optional): Number of detections of the file.
        real (bool): Whether the images were given instead of random.
    """

    shape: Tuple[int, int, int]
    largest: float
    of: float
    detections: Optional[int] = None
    matched: Optional[int] = None
    found: Optional[int] = None
    real: bool = False


def compare(part: Part, run: Runnable, kind: str, images: Tensor, real: bool = False) -> Difference:
    """Compare the outputs of a file on images with those of the part that it was exported from.

    Args:
        part (nn.Module): The exported part.
        run (callable): Result of :func:`load_exported`.
        kind (str): A key of :data:`FORMATS`, for messages.
        images (Tensor): Images as the part expects them.
        real (bool): Whether they are images of the user. One detection per image may then have no match, because
            rounding can move its score over the threshold; :func:`check_detections` counts them over all images.

    Raises:
        ExportError: The file does not run on them, or an output differs by more than :data:`TOLERANCE` of its largest;
            or its detections differ from the library's.
    """
    height, width = (images.shape[axis] for axis, name in part.axes.items() if name in ('height', 'width'))
    shape = batch, _, _ = (len(images), height, width)
    with torch.no_grad():
        expected = part.expected(images)
    with naming_operators(f'the {kind} file does not run on {batch} images of {height}x{width}'):
        found = run(images)
    worst = Difference(shape, 0.0, 1.0, real=real)
    if part.output == 'detections':
        matches = match(expected, part.complete(found, images))
        if not matches.agree(spare=int(real)):
            raise ExportError(
                f'the {kind} file finds {matches.found} objects on a {height}x{width} image, of which '
                f'{matches.matched} match the {matches.expected} detections of mmdet. Please report this with the '
                'config'
            )
        of = expected[1].max().item() if matches.expected else 1.0
        return Difference(shape, matches.score, of, matches.expected, matches.matched, matches.found, real)
    for name, want, have in zip(part.names(len(expected)), expected, found):
        if want.shape != have.shape:
            raise ExportError(
                f'for {batch} images of {height}x{width}, {name} of the {kind} file has the shape '
                f'{tuple(have.shape)}, expected {tuple(want.shape)} as in PyTorch: a size was recorded as a constant. '
                'Please report this with the config'
            )
        largest, difference = want.abs().max().item(), (have - want).abs().max().item()
        # Not with `>`, which is False for NaN.
        if not difference <= TOLERANCE * largest:
            raise ExportError(
                f'the {kind} file differs from PyTorch by {difference:.3g} in {name} (largest value {largest:.3g}) on '
                f'{batch} images of {height}x{width}, more than the tolerance of {TOLERANCE:g} of it. Please report '
                'this with the config; another --format may work'
            )
        if difference / max(largest, 1e-30) >= worst.largest / worst.of:
            worst = worst._replace(largest=difference, of=largest)
    return worst


def check_detections(kind: str, differences: Sequence[Difference]) -> None:
    """Check that enough of the detections on all images have a match.

    Raises:
        ExportError: Too few have one.
    """
    expected, found, matched = (
        sum(getattr(each, name) for each in differences) for name in ('detections', 'found', 'matched')
    )
    matches = Matches(expected, found, matched, 0.0)
    if not matches.agree():
        raise ExportError(
            f'the {kind} file finds {matches.found} objects on {len(differences)} images, of which {matches.matched} '
            f'match the {matches.expected} detections of mmdet, fewer than {1 - UNMATCHED:.0%}. Compare on more images '
            'with --compare, and if that does not help, report this with the config'
        )


def time_in_turn(calls: Dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> Dict[str, float]:
    """Measure the median milliseconds of calls, timed A B C A B C ..., so that other load falls on all of them."""
    times: Dict[str, List[float]] = {name: [] for name in calls}
    for done in range(-warmup, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if done >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}
