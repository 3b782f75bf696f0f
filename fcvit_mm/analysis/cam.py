"""Class activation maps: which parts of an image are evidence for a class.

Computed by the library pytorch-grad-cam (extra ``analysis``); this module chooses the layer, turns tokens into maps and
draws. Source of the default method: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, section 3: the sum of a layer's
channels, each weighted by the mean over the positions of the class score's gradient; negative values become 0.
"""

import difflib
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch import Tensor

from ..dependencies import how_to_install
from ..options import CAM_METHODS as METHODS
from .plots import draw_grid, overlay, short_name
from .recording import (
    AnalysisError,
    as_map,
    as_single,
    backbone_of,
    collect_features,
    describe,
    find_layers,
    recording_grid,
)

#: Name of the norm before a transformer block's attention: this project's and timm's, and mmpretrain's.
FIRST_NORMS = ('norm1', 'ln1')
#: Number of class names that an error lists.
SHOWN = 20


class ClassMap(NamedTuple):
    """Result of :func:`class_activation_map`.

    Attributes:
        values (np.ndarray): ``(H, W)`` of the input, from 0 to 1; all 0 if there is no evidence for the class.
        layer (str): Name of the layer whose map it is.
        target (int): The class.
        score (float): Probability of ``target`` (softmax of the classifier's outputs).
        prediction (int): The class with the largest probability.
        prediction_score (float): Probability of ``prediction``.
    """

    values: np.ndarray
    layer: str
    target: int
    score: float
    prediction: int
    prediction_score: float


def load_method(method: str) -> Callable[..., Any]:
    """Return the library's class for a name of ``METHODS``.

    Raises:
        AnalysisError: No such method, or the library is not installed.
    """
    if method not in METHODS:
        raise AnalysisError(f'unknown method {method!r}, expected one of {", ".join(METHODS)}')
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise AnalysisError(
            f'class activation maps need pytorch-grad-cam ({error}): {how_to_install("analysis")}, '
            'or pip install grad-cam'
        ) from error
    cam_class: Callable[..., Any] = getattr(pytorch_grad_cam, METHODS[method])
    return cam_class


def find_class(target: Union[int, str], count: int, class_names: Optional[Sequence[str]] = None) -> int:
    """Return the index of a class given by its index or name.

    Args:
        target (int | str): An index, also as text, or a name, in upper or lower case.
        count (int): Number of classes.
        class_names (Sequence[str], optional): If known.

    Raises:
        AnalysisError: Out of range, or no such name; lists the choices.
    """
    text = str(target)
    if isinstance(target, str) and class_names:
        names = [name.lower() for name in class_names]
        if text.lower() in names:
            return names.index(text.lower())
    if not text.lstrip('-').isdigit():
        if not class_names:
            raise AnalysisError(
                f'target {target!r}: the checkpoint does not contain the names of its {count} classes, expected an '
                f'index, 0 to {count - 1}'
            )
        near = difflib.get_close_matches(text, class_names, SHOWN) if count > SHOWN else class_names
        raise AnalysisError(
            f'unknown class {target!r}, expected an index, 0 to {count - 1}, or one of '
            f'{", ".join(near or class_names[:SHOWN])}{", ..." if count > SHOWN else ""}'
        )
    if not 0 <= int(text) < count:
        raise AnalysisError(f'target is {target}, expected 0 to {count - 1} for the {count} classes of the classifier')
    return int(text)


@torch.no_grad()
def class_scores(model: nn.Module, image: Tensor) -> Tensor:
    """Compute a classifier's probabilities ``(classes, )``, float64, for an image ``(1, 3, H, W)``.

    Raises:
        AnalysisError: The network is not a classifier, or does not take the image.
    """
    # In detectors and segmentors, forward returns raw maps.
    head = getattr(model, 'head', None)
    if backbone_of(model) is not model and not isinstance(head, nn.Module):
        raise AnalysisError(
            f'{describe(model)} is not a classifier: give a classifier, whose class scores the maps explain'
        )
    try:
        scores = model(image)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise AnalysisError(
            f'{describe(model)} does not take an image of {tuple(image.shape[2:])} pixels (height, width): {error}. '
            'Give a size that it takes'
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise AnalysisError(
            f'{describe(model)} returns {got}, expected scores (B, classes): give a classifier, not its backbone alone'
        )
    return scores[0].double().softmax(0)


@contextmanager
def _frozen_for_evaluation(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, without gradients of parameters, within the context."""
    modes = {module: module.training for module in model.modules()}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in learned:
            parameter.requires_grad_(True)


def class_activation_map(
    model: nn.Module,
    image: Tensor,
    target: Union[None, int, str] = None,
    layer: Optional[str] = None,
    method: str = 'gradcam',
    class_names: Optional[Sequence[str]] = None,
) -> ClassMap:
    """Compute where in an image the evidence for a class is.

    Args:
        model (nn.Module): A classifier of mmpretrain, with one of this project's backbones or another, or of timm.
        image (Tensor): ``(3, H, W)`` or ``(1, 3, H, W)``, normalized.
        target (int | str, optional): The class, by index or name. Default: the predicted one.
        layer (str, optional): A module of the backbone by its name. Default: the last block whose output is a map; if
            the class does not depend on that map, since only a class token is read after it, the block's first norm.
        method (str): A name of ``METHODS``.
        class_names (Sequence[str], optional): Class names, needed to find ``target`` by name.

    Raises:
        AnalysisError: Not a classifier; no such class, layer or method; a layer that the class does not depend on; the
            library is not installed.
    """
    image = as_single(model, image)
    with _frozen_for_evaluation(model):
        scores = class_scores(model, image)  # first, so that a detector is rejected before the library is needed
        cam_class = load_method(method)
        prediction = int(scores.argmax())
        target = prediction if target is None else find_class(target, len(scores), class_names)
        block, maps = list(collect_features(model, image, None if layer is None else [layer]).items())[-1]
        if maps.shape[2:].numel() == 1:
            raise AnalysisError(
                f'the map at {block} of {describe(model)} has a single position for an image of '
                f'{tuple(image.shape[2:])} pixels: use a larger size or an earlier layer'
            )
        children = dict(find_layers(model, [block])[block].named_children())
        choices = [block, *(f'{block}.{norm}' for norm in FIRST_NORMS if norm in children and layer is None)]
        for name in choices:
            values = _run(cam_class, model, image, target, name)
            if values is not None:
                return ClassMap(values, name, target, scores[target].item(), prediction, scores[prediction].item())
    raise AnalysisError(
        f'the score of class {target} does not depend on the map at {" or ".join(choices)} of {describe(model)}, for '
        'example because only a class token is used after it: choose an earlier layer'
    )


def _run(
    cam_class: Callable[..., Any], model: nn.Module, image: Tensor, target: int, name: str
) -> Optional[np.ndarray]:
    """Run the library on one layer: its map ``(H, W)``, or ``None`` if the class does not depend on that layer."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module = find_layers(model, [name])[name]
    with recording_grid(backbone_of(model)) as grid, torch.enable_grad():
        cam = cam_class(model, [module], reshape_transform=lambda output: as_map(module, output, grid.get('grid')))
        try:
            values: np.ndarray = cam(image.detach().clone().requires_grad_(), [ClassifierOutputTarget(target)])[0]
        except AttributeError:
            if cam.activations_and_grads.gradients:
                raise
            return None  # the library fails on a layer whose output nothing uses
        finally:
            gradients = list(cam.activations_and_grads.gradients)
            cam.activations_and_grads.release()
    if cam.uses_gradients and not any(gradient.any() for gradient in gradients):
        return None
    return values


def describe_class_map(found: ClassMap, class_names: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Return the numbers of a :class:`ClassMap` for a JSON file.

    ``peak``: row and column of the largest value, as fractions of the height and width; ``null`` for an empty map.
    ``area_above_half``: fraction of the pixels with at least half of that value.
    """
    peak = np.unravel_index(found.values.argmax(), found.values.shape)
    empty = not found.values.any()
    return dict(
        layer=found.layer,
        target=found.target,
        target_name=name_of(found.target, class_names),
        score=found.score,
        prediction=found.prediction,
        prediction_name=name_of(found.prediction, class_names),
        prediction_score=found.prediction_score,
        peak=None if empty else [(place + 0.5) / side for place, side in zip(peak, found.values.shape)],
        area_above_half=float((found.values >= 0.5).mean()),
    )


def name_of(index: int, class_names: Optional[Sequence[str]]) -> str:
    """Return the name of a class, or its number where names are not known."""
    return class_names[index] if class_names and index < len(class_names) else f'class {index}'


def draw_class_maps(
    images: Sequence[np.ndarray],
    maps: Sequence[Sequence[ClassMap]],
    class_names: Optional[Sequence[str]] = None,
    title: Optional[str] = None,
) -> Figure:
    """Draw images side by side, and below each its maps.

    Args:
        images (Sequence[np.ndarray]): ``(H, W, 3)`` uint8 RGB each.
        maps (Sequence[Sequence[ClassMap]]): Maps of each image: of the same layers for all, and of the same targets or
            the class predicted for each.
        class_names (Sequence[str], optional): If known.
        title (str, optional): Title of the figure.
    """
    cells: List[List[np.ndarray]] = [list(images)]
    row_titles = ['image']
    for row in zip(*maps):
        cells.append([overlay(image, found.values, (0.0, 1.0)) for image, found in zip(images, row)])
        predicted = all(found.target == found.prediction for found in row)
        what = 'the class above' if predicted else name_of(row[0].target, class_names)
        layer, part = short_name(row[0].layer), row[0].layer.rpartition('.')[2]
        row_titles.append(f'for {what}\n{layer}' if part.isdigit() else f'for {what}\n{layer}, {part}')
    column_titles = [f'{name_of(found[0].prediction, class_names)} {found[0].prediction_score:.0%}' for found in maps]
    return draw_grid(cells, row_titles, column_titles, title, 'class activation / its largest', (0.0, 1.0), side=1.6)
