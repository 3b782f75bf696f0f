"""Naming the part of the config because of which a run ended before its first iteration."""

import copy
from contextlib import contextmanager
from typing import Iterator, Optional

from mmengine.config import Config
from mmengine.runner.base_loop import BaseLoop

from ..errors import LibraryError
from .building import build_problems
from .checks import PreflightError


@contextmanager
def explained_start(cfg: Config) -> Iterator[None]:
    """Replace the error of a run that does not start by one that names the parts of the config that cannot be built.

    Libraries name the class that fails, but not its place in the config. Nothing is built if the run starts.

    Args:
        cfg (Config): The config of the run; a copy is kept.

    Raises:
        PreflightError: Names the parts.
        LibraryError: They can be built, or the training loop had begun.
    """
    given = copy.deepcopy(cfg)
    try:
        yield
    except LibraryError as error:
        problems = [] if in_loop(error.__cause__) else build_problems(given)
        if problems:
            raise PreflightError(problems) from error
        raise


def in_loop(error: Optional[BaseException]) -> bool:
    """Check whether an error was raised in the training loop, and not while it was built."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop):
            return True
        trace = trace.tb_next
    return False
