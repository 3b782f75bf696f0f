"""Models that wrap another one, as for semi-supervised training, distillation, pruning and architecture search."""

import copy
from typing import Any, Tuple

from mmengine.config import Config


def find_inner_model(model: Any, place: str = 'model') -> Tuple[str, Any]:
    """Find the model with a backbone in the config of a model that may wrap it.

    Args:
        model (dict): The config.
        place (str): Its dotted name.

    Returns:
        tuple[str, dict]: Dotted name and config of the outermost model with a backbone, the first of several; ``place``
        and ``model`` if there is none.
    """
    level = [(place, model)]
    while level:
        for name, node in level:
            if isinstance(node.get('backbone'), dict):
                return name, node
        level = [
            (f'{name}.{key}', child) for name, node in level for key, child in node.items() if isinstance(child, dict)
        ]
    return place, model


def backbone_config(model: Any) -> Any:
    """Return the config of a model's backbone; empty without one, or if its class takes it as text."""
    backbone = (model or {}).get('backbone')
    return backbone if isinstance(backbone, dict) else {}


def unwrap_model(cfg: Config) -> Config:
    """Return a config whose model is the wrapped model with a backbone; ``cfg`` itself if no model wraps it."""
    model = cfg.get('model') or {}
    _, inner = find_inner_model(model)
    if inner is model:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.model = inner
    return cfg
