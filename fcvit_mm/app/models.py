"""The models of the web demo: finding, loading on demand, predicting."""

import itertools
import os.path as osp
import time
from collections import OrderedDict
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmengine.device import get_device
from torch import Tensor

from ..analysis.attention import similarity_layers
from ..analysis.plots import overlay, short_name
from ..analysis.similarity import shared_limits, similarity_maps
from ..apis.draw import Drawer, build_drawer
from ..apis.load import load_network
from ..apis.preprocessing import image_reader
from ..checkpoints import is_published
from ..engine.config import load_config
from ..errors import UserError
from ..images import ImageReader, reduce_image, swap_channels

#: Longer side, in pixels, to which larger images are reduced before the prediction; detectors are tested at this size.
MAX_SIDE = 1333
#: Maximum number of models in memory.
LOADED = 2


class Model(NamedTuple):
    """A model that users can choose: its config and its checkpoint."""

    config: str
    checkpoint: str


class Similarity(NamedTuple):
    """Similarity maps of an FCViT and the image that they are of.

    Attributes:
        pixels (np.ndarray): ``(H, W, 3)`` uint8 RGB, as the network saw it.
        maps (dict[str, Tensor]): ``(heads, h, w)`` by the title of the token mix.
    """

    pixels: np.ndarray
    maps: Dict[str, Tensor]


class Loaded(NamedTuple):
    """A model in memory.

    Attributes:
        read (ImageReader): Reader that loads images as the model's config does.
        draw (callable): Draws its predictions on an image, see :func:`~fcvit_mm.apis.draw.build_drawer`.
        find_similarity (callable, optional): Function from an image to :class:`Similarity`; ``None`` for networks other
            than FCViT.
    """

    read: ImageReader
    draw: Drawer
    find_similarity: Optional[Callable[[np.ndarray], Similarity]]


class Prediction(NamedTuple):
    """The prediction of a model for an image.

    Attributes:
        drawn (np.ndarray): ``(H, W, 3)`` uint8 RGB.
        seconds (float): Time for predicting and drawing.
        similarity (Similarity, optional): ``None`` for networks other than FCViT.
        similarity_seconds (float): Time for the similarity maps.
    """

    drawn: np.ndarray
    seconds: float
    similarity: Optional[Similarity]
    similarity_seconds: float


def find_models(pairs: Sequence[str], runs: Optional[str] = None) -> Dict[str, Model]:
    """Find the models to choose from, by name.

    Args:
        pairs (Sequence[str]): Config, checkpoint, config, checkpoint, ...
        runs (str, optional): A work directory of ``tools/train.py``, or a folder of several. Each needs the config that
            the runner wrote; its best checkpoint is used or, if there is none, its last.

    Raises:
        UserError: A file is missing, a config has no checkpoint, or there is no model at all.
    """
    if len(pairs) % 2:
        raise UserError(f'{pairs[-1]} has no checkpoint: give pairs of a config and a checkpoint')
    models: Dict[str, Model] = {}
    for config, checkpoint in zip(pairs[::2], pairs[1::2]):
        for path, what in ((config, 'config'), (checkpoint, 'checkpoint')):
            if not osp.isfile(path) and not is_published(path):
                raise UserError(f'{what} {path} does not exist: give pairs of a config and a checkpoint')
        models[_free_name(models, Path(config).stem, checkpoint)] = Model(config, checkpoint)
    if runs is not None:
        if not osp.isdir(runs):
            raise UserError(
                f'--runs {runs} is not a folder: give a work directory of tools/train.py, or a folder of them'
            )
        for folder in dict.fromkeys(each.resolve() for each in (Path(runs), *sorted(Path(runs).iterdir()))):
            model = _run_model(folder) if folder.is_dir() else None
            if model is not None:
                models[_free_name(models, folder.name, model.checkpoint)] = model
    if not models:
        raise UserError(
            f'no run in {runs}, expected work directories of tools/train.py, each with a config (.py) and a '
            'checkpoint (.pth)'
            if runs
            else 'no model given: give a config and a checkpoint, or --runs with a folder of tools/train.py runs'
        )
    return models


def _free_name(models: Dict[str, Model], name: str, checkpoint: str) -> str:
    """Return a name that no other model has: with the checkpoint's, and a number, if there are several of a name."""
    longer = f'{name}, {Path(checkpoint).name}'
    names = itertools.chain((name, longer), (f'{longer} ({number})' for number in itertools.count(2)))
    return next(each for each in names if each not in models)


def _run_model(folder: Path) -> Optional[Model]:
    """Return the model of a run's work directory; ``None`` without a config or checkpoint."""
    configs = sorted(folder.glob('*.py'))
    checkpoints = sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime)
    if len(configs) != 1 or not checkpoints:
        return None
    best = [path for path in checkpoints if path.name.startswith('best_')]
    return Model(str(configs[0]), str((best or checkpoints)[-1]))


class Predictor:
    """Models that are loaded on demand, and their predictions.

    Args:
        models (dict[str, Model]): Models by name.
        device (str, optional): Default: a GPU if there is one.
        score_thr (float): Minimum detection score to draw.
    """

    def __init__(self, models: Dict[str, Model], device: Optional[str] = None, score_thr: float = 0.3) -> None:
        self.models = models
        self.device = device
        self.score_thr = score_thr
        self._loaded: 'OrderedDict[str, Loaded]' = OrderedDict()

    def load(self, name: str) -> Loaded:
        """Load a model, unless it is cached.

        Raises:
            UserError: No such model, or its config or checkpoint cannot be used.
        """
        if name not in self.models:
            raise UserError(f'unknown model {name!r}, expected one of {", ".join(self.models)}')
        if name not in self._loaded:
            model = self.models[name]
            cfg = load_config(model.config)
            read = image_reader(cfg)
            draw = build_drawer(cfg, model.checkpoint, self.device, self.score_thr)
            self._loaded[name] = Loaded(read, draw, similarity_of(model, self.device))
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def __call__(self, name: str, pixels: np.ndarray) -> Prediction:
        """Predict for an image, as the model's reader gives it: RGB if it has three channels."""
        _, draw, find_similarity = self.load(name)
        start = time.perf_counter()
        drawn = swap_channels(draw(swap_channels(pixels)))
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        similarity = find_similarity(pixels) if find_similarity else None
        return Prediction(drawn, seconds, similarity, time.perf_counter() - start)


def similarity_of(model: Model, device: Optional[str] = None) -> Optional[Callable[[np.ndarray], Similarity]]:
    """Build a function from an image to the similarity maps of a model's FCViT; ``None`` for other networks."""
    network = load_network(model.config, model.checkpoint, device or get_device())
    try:
        similarity_layers(network.model)
    except UserError:  # the network has no similarity maps
        return None

    def find_similarity(pixels: np.ndarray) -> Similarity:
        prepared = network.prepare(pixels)
        maps = similarity_maps(network.model, prepared.image)
        return Similarity(prepared.pixels, {short_name(name): values.cpu() for name, values in maps.items()})

    return find_similarity


def draw_similarity(found: Similarity, title: str) -> List[Tuple[np.ndarray, str]]:
    """Draw the maps of one token mix over the image: the mean of its heads, then all heads in one scale of colors.

    Returns:
        list[tuple[np.ndarray, str]]: Images ``(H, W, 3)`` uint8 RGB and their captions.
    """
    heads = found.maps[title]
    limits = shared_limits([heads])
    return [
        (overlay(found.pixels, heads.mean(0)), 'mean of the heads'),
        *((overlay(found.pixels, head, limits), f'head {i + 1}') for i, head in enumerate(heads)),
    ]


def shrink(pixels: np.ndarray, side: int = MAX_SIDE) -> np.ndarray:
    """Reduce an image so that its longer side is at most ``side``; a smaller one is returned unchanged."""
    return reduce_image(pixels, side / max(pixels.shape[:2]))
