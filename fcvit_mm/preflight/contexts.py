"""Contexts in which checks run: without output, in a temporary folder, without garbage collection."""

import contextlib
import gc
import io
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from mmengine.logging import MMLogger


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
