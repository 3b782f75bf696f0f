"""Data types that map published parameter names to ours. The names themselves are in ``*_names.py`` in this folder."""

import re
from collections import OrderedDict
from typing import AbstractSet, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from torch import Tensor


class Row(NamedTuple):
    """A published name and ours.

    ``*`` stands for exactly one part between dots. The parts that the stars of one pattern match replace the stars of
    the other, in order.

    Attributes:
        published (str): Pattern of the published name.
        ours (str): Pattern of the name in this package.
        when (str): Condition under which files use this published name; empty: always. Needed where one parameter has
            two published names.
    """

    published: str
    ours: str
    when: str = ''


def _no_conditions(state_dict: Mapping[str, Tensor]) -> AbstractSet[str]:
    return frozenset()


def _one_kind(state_dict: Mapping[str, Tensor]) -> str:
    return ''


class PublishedNames(NamedTuple):
    """Published names of a network, and functions that tell its files apart; all fields are optional.

    Attributes:
        rows (tuple[Row]): Published names and ours.
        conditions (callable): Function of a state dict with our names; returns the conditions (``when`` of the rows)
            that hold for it.
        kind (callable): Function of a state dict with our names; returns the kind of network as text, apart from
            depths and channels. A file of one kind does not fit a backbone of another. Empty if there is only one.
        added (tuple[str]): Patterns of our names of parameters that files of the unmodified network lack. Their initial
            values change no output.
        ignored (tuple[str]): Patterns of published names of buffers that are computed from sizes and not read.
        rows_of (callable): Function of the keys of a file; returns the rows for it. Needed if files of several sources
            give the same name to different parameters. Default: :attr:`rows` for every file.
    """

    rows: Tuple[Row, ...] = ()
    conditions: Callable[[Mapping[str, Tensor]], AbstractSet[str]] = _no_conditions
    kind: Callable[[Mapping[str, Tensor]], str] = _one_kind
    added: Tuple[str, ...] = ()
    ignored: Tuple[str, ...] = ()
    rows_of: Optional[Callable[[Iterable[str]], Tuple[Row, ...]]] = None

    def rows_for(self, keys: Iterable[str]) -> Tuple[Row, ...]:
        """Return the rows for a file with these keys."""
        return self.rows if self.rows_of is None else self.rows_of(keys)

    def to_ours(self, key: str) -> Optional[str]:
        """Return our name for a published one; ``None`` if no row has it."""
        return renamer((row.published, row.ours) for row in self.rows)(key)

    def to_published(self, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Give a backbone's state dict the published names.

        Raises:
            KeyError: A name that no row has.
        """
        conditions = self.conditions(state_dict)
        rename = renamer((row.ours, row.published) for row in self.rows if not row.when or row.when in conditions)
        result: Dict[str, Tensor] = OrderedDict()
        for key, value in state_dict.items():
            name = rename(key)
            if name is None:
                raise KeyError(f'{key} has no published name')
            result[name] = value
        return result


def renamer(pairs: Iterable[Tuple[str, str]]) -> Callable[[str], Optional[str]]:
    """Build a function that renames a key by the first matching pattern pair, or returns ``None``.

    Among several matching pairs the one with the fewest stars is used, so their order does not matter.
    """
    by_length: Dict[int, List[Tuple[List[str], List[str]]]] = {}
    for pattern, other in sorted(pairs, key=lambda pair: pair[0].count('*')):
        parts = pattern.split('.')
        by_length.setdefault(len(parts), []).append((parts, other.split('.')))

    def rename(key: str) -> Optional[str]:
        parts = key.split('.')
        for pattern, other in by_length.get(len(parts), ()):
            if all(expected == part or (expected == '*' and part) for expected, part in zip(pattern, parts)):
                matched = (part for expected, part in zip(pattern, parts) if expected == '*')
                return '.'.join(next(matched) if part == '*' else part for part in other)
        return None

    return rename


def is_like(key: str, patterns: Iterable[str]) -> bool:
    """Return whether ``key`` matches one of the patterns, in which ``*`` is one part between dots."""
    return renamer((pattern, pattern) for pattern in patterns)(key) is not None


def output_norms(state_dict: Mapping[str, Tensor]) -> str:
    """Return whether the output norms are those of ``'dense'`` prediction, one a stage, or of ``'classification'``."""
    dense = any(re.match(r'norm([012]\.|3\.running)', key) for key in state_dict)
    return 'dense' if dense else 'classification'
