"""The normalization of images that a checkpoint was trained with, compared with that of a config."""

import ast
import logging
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log

from ..engine.wrapped import find_inner_model

#: Options of the data preprocessors with which images, which the pipelines load as BGR, become RGB.
TO_RGB = ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')
#: Relative difference up to which two values are the same, rounded in two ways.
TOLERANCE = 0.01


class Normalization(NamedTuple):
    """Conversion of the values of images by a data preprocessor.

    Attributes:
        mean, std (tuple[float]): One value per channel; empty for none.
        rgb (bool): Whether the order of the channels is reversed.
    """

    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    rgb: bool

    def __str__(self) -> str:
        mean, std = ([round(value, 3) for value in values] for values in (self.mean, self.std))
        return f'mean={mean or None}, std={std or None}, {"RGB" if self.rgb else "BGR"}'


def other_normalization(cfg: Config, content: Dict[str, Any], checkpoint: str) -> str:
    """Describe how a checkpoint's images were normalized, if a config does it in another way; empty otherwise.

    Args:
        cfg (Config): A config.
        content (dict): Content of the checkpoint, in whose ``meta`` MMEngine stores the config as text.
        checkpoint (str): Its path, for the message.
    """
    meta = content.get('meta')
    trained = normalization_of(read_literals(meta.get('cfg') if isinstance(meta, dict) else None))
    own = normalization_of(cfg)
    if trained is None or own is None or is_same(trained, own):
        return ''
    return (
        f'{checkpoint} was trained on images with {trained}, but the config has {own} in data_preprocessor: give it '
        f'the values of the checkpoint ({" or ".join(TO_RGB[:2])} for RGB), unless this is intended'
    )


def report_other_normalization(cfg: Config, content: Dict[str, Any], checkpoint: str) -> None:
    """Log a warning if a config normalizes images in another way than those that a checkpoint was trained on."""
    text = other_normalization(cfg, content, checkpoint)
    if text:
        print_log(text, logger='current', level=logging.WARNING)


def is_same(one: Normalization, other: Normalization) -> bool:
    """Compare two normalizations; a single value is for all channels."""
    values = list(zip(one[:2], other[:2]))
    if one.rgb != other.rgb or any(bool(left) != bool(right) for left, right in values):
        return False
    comparable = all(len(left) == len(right) or 1 in (len(left), len(right)) for left, right in values)
    return comparable and all(np.allclose(left, right, TOLERANCE, TOLERANCE) for left, right in values)


def normalization_of(cfg: dict) -> Optional[Normalization]:
    """Return the normalization in a config; ``None`` if it has no data preprocessor."""
    model = cfg.get('model')
    _, model = find_inner_model(model if isinstance(model, dict) else {})
    node = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    if not isinstance(node, dict):
        return None
    try:
        mean, std = (tuple(float(value) for value in np.ravel(node.get(key) or ())) for key in ('mean', 'std'))
    except (TypeError, ValueError, OverflowError):
        return None
    return Normalization(mean, std, any(bool(node.get(key)) for key in TO_RGB))


def read_literals(text: Any) -> dict:
    """Return the dicts of literals that a config's text assigns to names, without running it; empty if that fails."""
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
        return {
            each.targets[0].id: literal(each.value)
            for each in statements
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return {}


def literal(node: ast.AST) -> Any:
    """Return the value of an expression of literals and ``dict(...)``; ``None`` in place of any other part."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {each.arg: literal(each.value) for each in node.keywords}
    if isinstance(node, ast.Dict):
        return {literal(key): literal(value) for key, value in zip(node.keys, node.values) if key is not None}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
