"""Short messages of errors that building a part of a config raises, with similar names for misspelt ones."""

import inspect
import re
import traceback
from difflib import get_close_matches
from typing import Any, Dict, Iterable, Iterator, List

import mmengine.registry
from mmengine.registry import LOOPS, Registry

from ..engine.config import walk
from ..errors import origin
from .log import shorten

#: Minimum similarity at which a registered name is suggested: data sets of one's own, whose module the config does not
#: import, share their ending with all others.
SIMILAR = 0.8
#: Pattern of the types of values that Python's errors name.
TYPES = 'str|NoneType|list|tuple|int|float'
#: Arguments of MMDetection 2.x, MMSegmentation 0.x and MMClassification 0.x, and what replaces them.
RENAMED_ARGUMENTS = {
    'ann_dir': 'data_prefix=dict(seg_map_path=...)',
    'classes': 'metainfo=dict(classes=...)',
    'flip_prob': 'prob',
    'flip_ratio': 'prob',
    'img_dir': 'data_prefix=dict(img_path=...)',
    'img_prefix': 'data_prefix=dict(img=...)',
    'img_scale': 'scale',
    'seg_prefix': 'data_prefix=dict(seg=...)',
    'size': 'scale',
    'split': 'ann_file',
}


def short_message(error: Exception) -> str:
    """Return what an error says, without addresses of objects and of web pages, and with a similar registered name."""
    message = re.sub(r' in <[^>]* object at 0x\w+>', '', origin(error).message).rstrip('.')
    found = re.search(r'^(\S+) is not in the (.+?) registry', message)
    if found:
        return found[0] + near_registered(found[1], found[2].rpartition('::')[2])
    message = re.sub(r"\. Did you mean '\w+'\?$", '', message)  # of Python 3.13, for classes in Python only
    found = re.search(r"got an unexpected keyword argument '(\w+)'$", message)
    if not found:
        return message
    known = parameters_of_failing(error)
    new = RENAMED_ARGUMENTS.get(found[1], '')
    if new.partition('=')[0] in known:
        return f'{message}; since OpenMMLab 2.0 it is {new}'
    near = get_close_matches(found[1], known, 1)
    return message + (f'; did you mean {near[0]!r}?' if near else '')


def name_values(error: Exception, nodes: Iterable[dict]) -> str:
    """Name the settings of the type that Python's error is about, such as `` (lr=None)``; empty if there are none.

    Args:
        error (Exception): The error.
        nodes (iterable of dict): The configs that may contain the setting.
    """
    if not isinstance(error, (TypeError, AttributeError, IndexError)):
        return ''
    given = re.search(rf"\bnot '?({TYPES})'?$", str(error))  # after the types that are accepted
    kinds = {given[1]} if given else set(re.findall(rf'\b({TYPES})\b', str(error)))
    if len(kinds) > 1:  # an operation of a setting with a number of the library
        kinds -= {'int', 'float'}
    found = [
        f'{key}={value!r:.60}'
        for node in nodes
        for key, value in node.items()
        if type(value).__name__ in kinds and key not in ('type', '_scope_') and not any(walk(value))
    ]
    return f' ({shorten(found)})' if found else ''


def near_registered(name: str, kind: str) -> str:
    """Return the registered name most similar to a misspelt one, as a question; empty if none is similar.

    It may be the same name in the registry of another library.
    """
    scope = next((scope for scope, names in names_by_scope(kind).items() if name in names), '')
    if scope:
        return f'; did you mean {f"{scope}.{name}"!r}?'
    name, names = name.rpartition('.')[2], registered_names(kind)
    # The same letters in another order, or similar names.
    near = [each for each in names if sorted(each.lower()) == sorted(name.lower())]
    near = near or get_close_matches(name, names, 1, SIMILAR)
    return f'; did you mean {near[0]!r}?' if near else ''


def parameters_of_failing(error: BaseException) -> List[str]:
    """Return the names of the arguments of the class that a registry or the runner could not build."""
    classes = [
        frame.f_locals.get('obj_cls')
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == 'build_from_cfg'
    ] or [LOOPS.get(str(error).partition('.')[0])]
    if not inspect.isclass(classes[-1]):
        return []
    found = parameters_of(classes[-1])
    return [each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def registered_names(kind: str) -> List[str]:
    """Return all names in the registries of a kind, such as ``'hook'``, of all libraries that are imported."""
    return [name for names in names_by_scope(kind).values() for name in names]


def names_by_scope(kind: str) -> Dict[str, List[str]]:
    """Return the names in the registries of a kind by the scope of their library."""
    roots = [each for each in vars(mmengine.registry).values() if isinstance(each, Registry) and each.name == kind]
    found: Dict[str, List[str]] = {}

    def collect(registry: Registry) -> None:
        found.setdefault(registry.scope, []).extend(registry.module_dict)
        for child in registry.children.values():
            collect(child)

    for root in roots:
        collect(root)
    return found


def parameters_of(kind: Any) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a class, its own before those of its bases."""
    for base in kind.__mro__:
        if '__init__' in vars(base):
            yield from inspect.signature(base.__init__).parameters.values()
