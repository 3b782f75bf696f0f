"""The processes of a run: how they connect, share decisions of the first process, and report progress."""

import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Iterator, List, TypeVar

import torch.distributed as dist

from ...engine.distributed import join_over_gloo, lost_process
from .results import PredictionError

#: Time-out for the slowest process. If a process ends, the others notice it at once.
WAIT = timedelta(days=14)
#: Seconds between two lines of progress where no terminal shows a bar.
PROGRESS_SECONDS = 10.0
Result = TypeVar('Result')


@contextmanager
def joined_processes(launcher: str) -> Iterator[None]:
    """Connect the processes that a launcher started over gloo, also on GPUs, because they exchange little data."""
    if launcher == 'none':
        yield
        return
    join_over_gloo(launcher, WAIT)
    try:
        yield
    except RuntimeError as error:
        if lost_process(error):
            raise PredictionError(
                f'process {dist.get_rank()} lost the connection to another process, which ended, was killed or is '
                f'unreachable ({str(error).strip().splitlines()[0]}): see the output of that process for the reason. '
                'Run the same command again to continue with the remaining images'
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def from_first(action: Callable[[], Result]) -> Result:
    """Run an action in the first process and return its result to all; an error ends all processes."""
    if not dist.is_initialized():
        return action()
    outcome: List[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
            dist.broadcast_object_list([None, str(error)])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise PredictionError(f'the first process stopped: {outcome[1]}')
    return outcome[0]


@contextmanager
def progress(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show the progress, speed and remaining time of this process; in a terminal as a bar."""
    if not shown or not total:
        yield lambda number: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task('', total=total, rate='')
            begin, done = time.monotonic(), 0

            def advance_bar(number: int) -> None:
                nonlocal done
                done += number
                progress.update(task, advance=number, rate=_rate(done, time.monotonic() - begin))

            yield advance_bar
    else:
        begin, done, last = time.monotonic(), 0, time.monotonic()

        def advance(number: int) -> None:
            nonlocal done, last
            done += number
            now = time.monotonic()
            if now - last >= PROGRESS_SECONDS or done == total:
                last = now
                left = timedelta(seconds=round((total - done) * (now - begin) / done))
                print(f'{done} of {total} images, {_rate(done, now - begin)}, {left} left', flush=True)

        yield advance


def _rate(done: int, seconds: float) -> str:
    return f'{done / max(seconds, 1e-9):.1f} images a second'
