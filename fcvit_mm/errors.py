"""Errors that a user can put right, and the one way in which commands report them."""

import argparse
import os
import sys
import traceback
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Iterator, Optional

#: Set to anything but 0 in the environment, it makes commands show the traceback of every error; so does ``--debug``.
DEBUG_VARIABLE = 'FCVIT_MM_DEBUG'
PACKAGE = __name__.split('.')[0]


class UserError(ValueError):
    """An error that the user can put right. The message names the value, what was expected and the way out."""


class LibraryError(UserError):
    """An error that a library raised from the user's data or config.

    Args:
        doing (str): What was being done, for example ``'training with CONFIG'``.
        error (BaseException): What the library raised.
        advice (str): What to try.
    """

    def __init__(self, doing: str, error: BaseException, advice: str) -> None:
        frame = innermost_frame(error)
        module = frame.f_globals.get('__name__', '?').split('.')[0] if frame is not None else '?'
        name = type(error).__name__
        super().__init__(
            f'{doing} stopped: {name}: {_message(error)} (raised in {module}). {advice}. '
            f'The traceback: --debug, or {DEBUG_VARIABLE}=1 in the environment'
        )


@contextmanager
def library_errors(doing: str, advice: str) -> Iterator[None]:
    """Turn what a library raises inside into a :class:`LibraryError`.

    Errors that are raised in this package are left alone: a :class:`UserError` says what to do by itself, and any other
    is a defect, whose traceback must be seen.

    Args:
        doing (str): What is being done, for the message.
        advice (str): What the user can try.

    Raises:
        LibraryError: The raised error comes from another package.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        frame = innermost_frame(error)
        if frame is not None and frame.f_globals.get('__name__', '').split('.')[0] == PACKAGE:
            raise
        raise LibraryError(doing, error, advice) from error


def innermost_frame(error: BaseException) -> Optional[FrameType]:
    """Return the frame that raised ``error``; ``None`` if it was never raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] if frames else None


def _message(error: BaseException) -> str:
    """Return what an error says, without the traceback that a data loader's worker process puts into it."""
    text = str(error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:
        text = text.splitlines()[-1]
    return text


def wants_traceback() -> bool:
    """Return whether the user asked for tracebacks: ``--debug``, or :data:`DEBUG_VARIABLE` in the environment."""
    return os.environ.get(DEBUG_VARIABLE, '0') not in ('', '0')


class _Debug(argparse.Action):
    """Switches tracebacks on, here and in the processes that the command starts."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        os.environ[DEBUG_VARIABLE] = '1'


def command_parser(description: Optional[str]) -> argparse.ArgumentParser:
    """Build the argument parser of a command, with the option that all commands have: ``--debug``.

    Args:
        description (str): What the command does; its lines stay as they are. Commands give their docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--debug', action=_Debug, help=f'show the traceback of an error (so does {DEBUG_VARIABLE}=1)')
    return parser


def run_command(main: Callable[[], object]) -> None:
    """Run a command; an error that the user can put right ends it with one message and exit status 1.

    ``--debug`` on the command line, or :data:`DEBUG_VARIABLE` in the environment, shows the traceback as well. Errors
    of any other kind are defects: they end the command with their traceback, as usual.
    """
    if '--debug' in sys.argv:
        sys.argv.remove('--debug')
        os.environ[DEBUG_VARIABLE] = '1'
    try:
        main()
    except (UserError, ImportError) as error:
        if isinstance(error, ImportError) and 'is not installed' not in str(error):
            raise
        if wants_traceback():
            traceback.print_exc()
        sys.stdout.flush()
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')
