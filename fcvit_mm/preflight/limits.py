"""Time limit and warnings of the preflight checks."""

import contextlib
import gc
import io
import logging
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Sequence, TypeVar

import numpy as np
from mmengine.logging import MMLogger, print_log

Item = TypeVar('Item')

#: Seconds for all checks before a run, without building the data sets, which the run does, too. Some steps, such as
#: comparing ids, are done for all data and take what they take.
SECONDS = 11.0
#: Examples of one kind in a message.
SHOWN = 5


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
        """Return a limit for an equal share of the remaining time, for :meth:`take` afterwards."""
        return TimeLimit(max(self.end - time.monotonic(), 0.0) / number)

    def take(self, part: 'TimeLimit') -> None:
        """Count what a part from :meth:`share` did not count."""
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
            items (Sequence): What is to be checked.
            seconds (float): For these items.
            what (str): Action for the message: ``'data/a.json: masks read'``.
        """
        start = time.monotonic()
        end = min(start + seconds, self.end)
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() > end and number < len(items):
                took = time.monotonic() - start
                remark(f'{what}: {number} of {len(items)} in {took:.1f} s, the time limit', logging.INFO)
                return

    def stream(self, items: Iterable[Item], seconds: float, what: str) -> Iterator[Item]:
        """Yield items of unknown number within the time limit, at least one; log the number if not all.

        Args:
            items (Iterable): What is to be checked.
            seconds (float): For these items.
            what (str): As for :meth:`part`.
        """
        start = time.monotonic()
        end = min(start + seconds, self.end)
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() > end:
                remark(f'{what}: {number} in {time.monotonic() - start:.1f} s, the time limit', logging.INFO)
                return

    def report(self) -> None:
        """Log how long the checks took."""
        took = time.monotonic() - self.start
        remark(
            f'Preflight checks took {took:.1f} s, of which {self.paused:.1f} s for building the data sets '
            '(--no-preflight skips them)',
            logging.INFO,
        )


def remark(text: str, level: int = logging.WARNING) -> None:
    """Log a warning."""
    print_log(text, logger='current', level=level)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable cyclic garbage collection, which takes seconds for the millions of objects of a large annotation file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Suppress tables, progress bars and log messages below a level of the libraries."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(max(before, level))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a temporary folder, and remove its log files from the loggers, which outlive it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield folder
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
                    if Path(folder) in Path(handler.baseFilename).parents:
                        logger.removeHandler(handler)
                        handler.close()


def shorten(items: Iterable[Any], shown: int = SHOWN) -> str:
    """Return the first few items as text."""
    items = [str(item) for item in items]
    return ', '.join(items if len(items) <= shown else [*items[:shown], '...'])


def spread(items: Sequence[Item], number: int) -> List[Item]:
    """Return at most so many items, spread evenly."""
    if len(items) <= number:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, number)]


def unique(items: List[str]) -> List[str]:
    """Return the items without repetitions, in order."""
    return list(dict.fromkeys(items))
