"""Limits of the preflight checks: their time, and how many samples they read."""

import time
from contextlib import contextmanager
from typing import Iterable, Iterator, List, Sequence, TypeVar

import numpy as np

from .log import log_info

Item = TypeVar('Item')

#: Seconds for all checks before a run, without the time to build the data sets, which the run needs, too. Some steps,
#: such as comparing ids, are done for all data and are not limited.
SECONDS = 11.0


class TimeLimit:
    """Time limit of all checks, shared by them.

    Args:
        seconds (float): Total time.

    Attributes:
        paused (float): Seconds that did not count.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.start = time.monotonic()
        self.end = self.start + seconds
        self.paused = 0.0

    def share(self, number: int) -> 'TimeLimit':
        """Return a limit for an equal share of the remaining time; pass it to :meth:`take` afterwards."""
        return TimeLimit(max(self.end - time.monotonic(), 0.0) / number)

    def take(self, part: 'TimeLimit') -> None:
        """Add the time that a limit from :meth:`share` excluded to the excluded time of this one."""
        self.end += part.paused
        self.paused += part.paused

    def reserve(self, seconds: float) -> None:
        """Guarantee a minimum of remaining time, regardless of the other checks."""
        self.end = max(self.end, time.monotonic() + seconds)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time within the context."""
        start = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - start
            self.end += took
            self.paused += took

    def part(self, items: Sequence[Item], seconds: float, what: str) -> Iterator[Item]:
        """Yield items within the time limit, at least one; log the number if not all.

        Args:
            items (Sequence): Items to check.
            seconds (float): Maximum time for these items.
            what (str): Action for the message: ``'data/a.json: masks read'``.
        """
        start = time.monotonic()
        end = min(start + seconds, self.end)
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() > end and number < len(items):
                took = time.monotonic() - start
                log_info(f'{what}: {number} of {len(items)} in {took:.1f} s, the time limit')
                return

    def stream(self, items: Iterable[Item], seconds: float, what: str) -> Iterator[Item]:
        """Yield items of unknown number within the time limit, at least one; log the number if not all.

        Args:
            items (Iterable): Items to check.
            seconds (float): Maximum time for these items.
            what (str): See :meth:`part`.
        """
        start = time.monotonic()
        end = min(start + seconds, self.end)
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() > end:
                log_info(f'{what}: {number} in {time.monotonic() - start:.1f} s, the time limit')
                return

    def report(self) -> None:
        """Log how long the checks took."""
        took = time.monotonic() - self.start
        log_info(
            f'Preflight checks took {took:.1f} s, of which {self.paused:.1f} s for building the data sets '
            '(--no-preflight skips them)'
        )


def spread(items: Sequence[Item], number: int) -> List[Item]:
    """Return at most ``number`` items, evenly spread."""
    if len(items) <= number:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, number)]
