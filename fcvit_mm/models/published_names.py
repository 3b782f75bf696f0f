"""The names that published files of a network have for its parameters, as data: see ``*_names.py`` beside it."""

import re
from collections import OrderedDict
from functools import lru_cache
from typing import AbstractSet, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple

from torch import Tensor


class Row(NamedTuple):
    """A published name and ours.

    ``*`` stands for exactly one part between dots. What the stars of one side met is put in for the stars of the other,
    in order.

    Attributes:
        published (str): Pattern of the published name.
        ours (str): Pattern of the name here.
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
    """What is known about published files of a network; each field may be left out, and no order matters.

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
        return translate(key, [(row.published, row.ours) for row in self.rows])

    def to_published(self, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Give a backbone's state dict the published names.

        Raises:
            KeyError: A name that no row has.
        """
        conditions = self.conditions(state_dict)
        rows = [(row.ours, row.published) for row in self.rows if not row.when or row.when in conditions]
        result: Dict[str, Tensor] = OrderedDict()
        for key, value in state_dict.items():
            name = translate(key, rows)
            if name is None:
                raise KeyError(f'{key} has no published name')
            result[name] = value
        return result


def translate(key: str, patterns: Iterable[Tuple[str, str]]) -> Optional[str]:
    """Rename ``key`` by the pair of patterns whose first is like it; ``None`` if there is none.

    Of several such pairs the one with the fewest stars is taken, so that their order does not matter.
    """
    likely = [pair for pair in patterns if _regex(pair[0]).fullmatch(key)]
    if not likely:
        return None
    pattern, other = min(likely, key=lambda pair: pair[0].count('*'))
    match = _regex(pattern).fullmatch(key)
    assert match is not None
    parts = iter(match.groups())
    return re.sub(r'\*', lambda _: next(parts), other)


def is_like(key: str, patterns: Iterable[str]) -> bool:
    """Return whether ``key`` is like one of the patterns, in which ``*`` is one part between dots."""
    return any(_regex(pattern).fullmatch(key) for pattern in patterns)


def output_norms(state_dict: Mapping[str, Tensor]) -> str:
    """Return whether the output norms are those of ``'dense'`` prediction, one a stage, or of ``'classification'``."""
    dense = any(re.match(r'norm([012]\.|3\.running)', key) for key in state_dict)
    return 'dense' if dense else 'classification'


@lru_cache(maxsize=None)
def _regex(pattern: str) -> 're.Pattern[str]':
    return re.compile(re.escape(pattern).replace(r'\*', r'([^.]+)'))
