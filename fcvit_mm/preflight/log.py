"""Log messages of the preflight checks, and short lists of examples in them."""

import logging
from typing import Any, Iterable, List

from mmengine.logging import print_log

#: Maximum number of examples in a message.
SHOWN = 5


def log_warning(text: str) -> None:
    """Log a warning."""
    print_log(text, logger='current', level=logging.WARNING)


def log_info(text: str) -> None:
    """Log a message that is not a warning."""
    print_log(text, logger='current', level=logging.INFO)


def shorten(items: Iterable[Any], shown: int = SHOWN) -> str:
    """Return the first few items as text."""
    items = [str(item) for item in items]
    return ', '.join(items if len(items) <= shown else [*items[:shown], '...'])


def unique(items: List[str]) -> List[str]:
    """Return the items without repetitions, in order."""
    return list(dict.fromkeys(items))
