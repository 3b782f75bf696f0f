"""Misspelt keys of settings that are plain dicts, such as ``model.test_cfg``: the libraries ignore unknown keys."""

import ast
import inspect
import re
import sys
import textwrap
from difflib import get_close_matches
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any, Callable, FrozenSet, Iterable, Iterator, NamedTuple, Set, Tuple, Union

from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmengine.runner import Runner

from .contexts import quiet
from .log import log_warning
from .misspelt_arguments import class_of, nodes_of

#: Minimum similarity at which an unknown key counts as a misspelt one.
SIMILAR = 0.845
#: Minimum length of a name that abbreviates another one, such as ``score_thr`` for ``score_threshold``.
ABBREVIATION = 5
#: Endings of the names of a model's settings.
OF_MODELS = ('train_cfg', 'test_cfg', 'tta_cfg')
#: Settings of a data set.
OF_DATASETS = ('filter_cfg', 'metainfo')


class Names(NamedTuple):
    """Names in the source of some modules.

    Attributes:
        all (frozenset[str]): Every identifier, and every text that could be one.
        read (frozenset[str]): Attributes and texts: how a key of a dict is read.
    """

    all: FrozenSet[str]
    read: FrozenSet[str]


def report_misspelt_settings(cfg: Config) -> None:
    """Log a warning for settings whose names do not occur in the code that reads them, but resemble one that does."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet():
        texts = [
            f'{where}: {reader} reads no setting {key!r}; did you mean {near!r}?'
            for where, reader, node, names in settings_of(cfg)
            for where, key, near in misspelt(where, node, names)
        ]
    for text in dict.fromkeys(texts):
        log_warning(text)


def settings_of(cfg: Config) -> Iterator[Tuple[str, str, Any, Names]]:
    """Yield the dotted name of settings, their reader, the settings, and the names in the code of the reader."""
    nodes = list(nodes_of(cfg))
    of_model = [kind for _, registry, node in nodes if registry is MODELS for kind in class_of(registry, node)]
    with MODELS.switch_scope_and_registry(None) as scoped:
        # Defaults, such as the data preprocessor of mmpretrain's classifiers
        named = [scoped.module_dict[name] for name in names_of(of_model).read & scoped.module_dict.keys()]
    of_model += [kind for kind in named if isinstance(kind, type)]
    names_of_model = names_of(of_model)
    for where, registry, node in nodes:
        for key, settings in node.items():
            if registry is MODELS and str(key).endswith(OF_MODELS):
                yield f'{where}.{key}', 'the model', settings, names_of_model
            elif registry is DATASETS and key in OF_DATASETS:
                classes = class_of(registry, node)
                yield f'{where}.{key}', ' '.join(kind.__name__ for kind in classes), settings, names_of(classes)
    yield from of_optimizer(cfg)
    # Its parts are arguments of functions, which reject others.
    yield 'env_cfg', 'the runner', dict.fromkeys(cfg.get('env_cfg') or ()), names_in(Runner.setup_env)
    yield 'auto_scale_lr', 'the runner', cfg.get('auto_scale_lr'), names_in(Runner.scale_lr)


def of_optimizer(cfg: Config) -> Iterator[Tuple[str, str, Any, Names]]:
    """Yield the settings for single parameters, as :func:`settings_of`."""
    wrapper = cfg.get('optim_wrapper') or {}
    settings = wrapper.get('paramwise_cfg')
    if not isinstance(settings, dict):
        return
    constructor = wrapper.get('constructor')
    classes = [DefaultOptimWrapperConstructor]
    if constructor:
        classes = class_of(OPTIM_WRAPPER_CONSTRUCTORS, {'type': constructor})
    where, reader, names = 'optim_wrapper.paramwise_cfg', ' '.join(kind.__name__ for kind in classes), names_of(classes)
    patterns = settings.get('custom_keys')
    yield where, reader, dict.fromkeys(settings), names
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        yield f'{where}.custom_keys[{key!r}]', reader, value, names


def misspelt(where: str, settings: Any, names: Names) -> Iterator[Tuple[str, str, str]]:
    """Yield the place, the key and what it resembles of each unknown key, but not of parts that have a type."""
    if isinstance(settings, dict) and not settings.get('type'):
        for key, value in settings.items():
            if isinstance(key, str) and key not in names.all:
                near = resembling(key, names.read)
                if near:
                    yield where, key, near
            yield from misspelt(f'{where}.{key}', value, names)
    elif isinstance(settings, (list, tuple)):
        for number, value in enumerate(settings):
            yield from misspelt(f'{where}.{number}', value, names)


def resembling(key: str, names: Iterable[str]) -> str:
    """Return the name that a key in lower case resembles most, or that abbreviates it; an empty text if none does."""
    near = get_close_matches(key.lower(), sorted(names), 1, SIMILAR)
    short = [name for name in names if len(name) >= ABBREVIATION and re.match(f'{name}[^_]', key.lower())]
    return near[0] if near else max(short, key=len, default='')


def names_of(classes: Iterable[type]) -> Names:
    """Return the names in the modules of some classes, of their base classes, and of what these modules import."""
    bases = {base for kind in classes for base in kind.__mro__ if base.__module__ in sys.modules}
    modules = {sys.modules[base.__module__] for base in bases if base is not object}
    found = [names_in(module) for module in modules.union(*(imported_by(module) for module in modules))]
    return Names(frozenset().union(*(each.all for each in found)), frozenset().union(*(each.read for each in found)))


def imported_by(module: ModuleType) -> Set[ModuleType]:
    """Return the modules of the same package that define what a module imports."""
    package = module.__name__.partition('.')[0]
    names = {value.__module__ or '' for value in vars(module).values() if isinstance(value, (type, FunctionType))}
    return {sys.modules[name] for name in names if name.partition('.')[0] == package and name in sys.modules}


@lru_cache(maxsize=None)
def names_in(code: Union[ModuleType, Callable]) -> Names:
    """Return the names in the source of a module or a function; none if it has no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return Names(frozenset(), frozenset())
    known: Set[str] = set()
    read: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            read.add(node.value)
        elif isinstance(node, ast.Name):
            known.add(node.id)
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            known.add(node.arg)
    return Names(frozenset(known | read), frozenset(read))
