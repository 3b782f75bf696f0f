"""The parameter names in published files of a network, as data: see ``*_names.py`` in this folder."""

import re
from collections import OrderedDict
from typing import AbstractSet, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from torch import Tensor


class Row(NamedTuple):
    """A published name and ours.

    ``*`` stands for exactly one part between dots. What the stars of one side met is put in for the stars of the other,
    in order.

    Attributes:
        published (str): Pattern of the published name.
        ours (str): Pattern of the name in this package.
        when (str): The condition under which a file has it so; empty for always. It decides between two published names
            of one parameter.
    """

    published: str
    ours: str
    when: str = ''


def _no_conditions(state_dict: Mapping[str, Tensor]) -> AbstractSet[str]:
    return frozenset()


def _one_kind(state_dict: Mapping[str, Tensor]) -> str:
    return ''


class PublishedNames(NamedTuple):
    """Published names of a network, and how to tell its files apart; each field is optional, and no order matters.

    Attributes:
        rows (tuple[Row]): Published names and ours.
        conditions (callable): A state dict with our names to the set of the rows' ``when`` that hold for it.
        kind (callable): A state dict with our names to the kind of network that it is of, beside depths and channels,
            as text: a file and a backbone of two kinds do not fit. Empty where there is but one.
        added (tuple[str]): Patterns of our names of parameters that a file of the unmodified network lacks, and that
            change nothing as they start.
        ignored (tuple[str]): Patterns of published names of buffers that follow from sizes: they are not read.
    """

    rows: Tuple[Row, ...] = ()
    conditions: Callable[[Mapping[str, Tensor]], AbstractSet[str]] = _no_conditions
    kind: Callable[[Mapping[str, Tensor]], str] = _one_kind
    added: Tuple[str, ...] = ()
    ignored: Tuple[str, ...] = ()

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
                met = (part for expected, part in zip(pattern, parts) if expected == '*')
                return '.'.join(next(met) if part == '*' else part for part in other)
        return None

    return rename


def is_like(key: str, patterns: Iterable[str]) -> bool:
    """Return whether ``key`` matches one of the patterns, in which ``*`` is one part between dots."""
    return renamer((pattern, pattern) for pattern in patterns)(key) is not None


def output_norms(state_dict: Mapping[str, Tensor]) -> str:
    """Return whether the output norms are those of ``'dense'`` prediction, one a stage, or of ``'classification'``."""
    dense = any(re.match(r'norm([012]\.|3\.running)', key) for key in state_dict)
    return 'dense' if dense else 'classification'
