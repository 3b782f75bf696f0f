"""Warnings of the preflight checks, and the examples in them."""

import logging
from typing import Any, Iterable, List

from mmengine.logging import print_log

#: Maximum number of examples in a message.
SHOWN = 5


def remark(text: str, level: int = logging.WARNING) -> None:
    """Log a warning."""
    print_log(text, logger='current', level=level)


def shorten(items: Iterable[Any], shown: int = SHOWN) -> str:
    """Return the first few items as text."""
    items = [str(item) for item in items]
    return ', '.join(items if len(items) <= shown else [*items[:shown], '...'])


def unique(items: List[str]) -> List[str]:
    """Return the items without repetitions, in order."""
    return list(dict.fromkeys(items))
