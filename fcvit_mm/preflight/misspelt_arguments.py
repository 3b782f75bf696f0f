"""Misspelt arguments that a class accepts and ignores, because it accepts any argument (``**kwargs``)."""

import inspect
from difflib import get_close_matches
from typing import Any, Iterator, List, Set, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS, DefaultScope, Registry

from .contexts import quiet
from .log import log_warning

#: Minimum similarity at which an unknown argument counts as a misspelt one.
SIMILAR = 0.85
#: Keys of a config that the registries read themselves.
OF_REGISTRIES = {'type', '_scope_', '_delete_', 'priority'}


def report_misspelt_arguments(cfg: Config) -> None:
    """Log a warning for arguments that a class ignores and whose names resemble one of its arguments."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet():
        texts = [
            f'{where}: {name} has no argument {key!r} of its own; did you mean {near!r}?'
            for where, registry, node in nodes_of(cfg)
            for name, key, near in misspelt(registry, node)
        ]
    for text in dict.fromkeys(texts):
        log_warning(text)


def nodes_of(cfg: Config) -> Iterator[Tuple[str, Registry, dict]]:
    """Yield the dotted name, the registry and the config of each part of a run."""
    parts: List[Tuple[str, Registry]] = [('model', MODELS), ('default_hooks', HOOKS), ('custom_hooks', HOOKS)]
    for split in ('train', 'val', 'test'):
        parts += [(f'{split}_dataloader.dataset', DATASETS), (f'{split}_evaluator', METRICS)]

    def visit(node: Any, where: str, registry: Registry) -> Iterator[Tuple[str, Registry, dict]]:
        if isinstance(node, dict):
            if node.get('type'):
                yield where, registry, node
            children = node.items()
        elif isinstance(node, (list, tuple)):
            children = enumerate(node)  # type: ignore[assignment]
        else:
            return
        for key, child in children:
            inner = TRANSFORMS if key in ('pipeline', 'transforms') else registry
            yield from visit(child, f'{where}.{key}', inner)

    for path, registry in parts:
        key, _, rest = path.partition('.')
        given = cfg.get(key) or {}
        yield from visit(given.get(rest) if rest and isinstance(given, dict) else given, path, registry)


def misspelt(registry: Registry, node: dict) -> Iterator[Tuple[str, str, str]]:
    """Yield the name of a type, an argument that it ignores, and one that resembles it."""
    for kind in class_of(registry, node):
        known = arguments_of(kind)
        for key in node:
            if key not in known and key not in OF_REGISTRIES:
                near = get_close_matches(str(key), known, 1, SIMILAR)
                if near:
                    yield kind.__name__, key, near[0]


def class_of(registry: Registry, node: dict) -> List[type]:
    """Return the class of a config node in a list; an empty list if it is unknown, which the runner reports."""
    kind = node['type']
    try:
        if isinstance(kind, str):
            with registry.switch_scope_and_registry(node.get('_scope_')) as scoped:
                kind = scoped.get(kind)
    except Exception:
        # Broad, because a scope imports its library, and that may be any code.
        return []
    return [kind] if isinstance(kind, type) else []


def arguments_of(kind: Any) -> Set[str]:
    """Return the names of a class's arguments if it also accepts any others (``**kwargs``); else an empty set."""
    names: Set[str] = set()
    constructors = [vars(base)['__init__'] for base in getattr(kind, '__mro__', ()) if '__init__' in vars(base)]
    for number, constructor in enumerate(constructors):
        parameters = inspect.signature(constructor).parameters.values()
        names |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        if not any(each.kind == each.VAR_KEYWORD for each in parameters):
            return names if number else set()
    return names
