"""The component of a model, or of its config, in which an error was raised."""

import traceback
from typing import Any, Iterator, Tuple

import torch.nn as nn

from ..engine.config import type_name


def failing_part(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost model component in an error's traceback; empty for the model itself.

    Components are modules whose class is from a library or the user, not from PyTorch.
    """
    names = {id(module): name for name, module in model.named_modules()}
    part = ''
    for module in _passed_through(error):
        part = names.get(id(module), part)
    return part


def named_in_config(model: Any, part: str) -> Tuple[str, str]:
    """Return dotted name and type of the innermost component of a config that contains a module.

    Args:
        model (dict): The config.
        part (str): Name of the module.
    """
    node, name, found = model, 'model', ('model', type_name(model))
    for key in filter(None, part.split('.')):
        index: Any = int(key) if isinstance(node, (list, tuple)) else key
        try:
            node = node[index]
        except (KeyError, IndexError, TypeError):
            break
        name = f'{name}.{key}'
        if isinstance(node, dict):
            found = (name, type_name(node))
    return found


def part_in_building(model: Any, error: BaseException) -> str:
    """Return dotted name and type of the config component whose constructor failed; empty if unknown.

    Args:
        model (dict): The config.
        error (BaseException): The error that building the model raised.
    """
    part = ''
    for module in _passed_through(error):
        kind = type(module).__name__
        found = [name for name, node in _named_nodes(model, 'model') if type_name(node) == kind]
        part = f'{found[0]} ({kind})' if found else part
    return part


def _passed_through(error: BaseException) -> Iterator[nn.Module]:
    """Yield the modules whose methods an error passed through, outermost first; also those of its ``__cause__``."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for each in chain:
        for frame, _ in traceback.walk_tb(each.__traceback__):
            module = frame.f_locals.get('self')
            foreign = ('torch.', 'mmcv.', 'mmengine.')
            if isinstance(module, nn.Module) and not type(module).__module__.startswith(foreign):
                yield module


def _named_nodes(node: Any, name: str) -> Iterator[Tuple[str, dict]]:
    if isinstance(node, dict):
        yield name, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in items:
        yield from _named_nodes(child, f'{name}.{key}')
