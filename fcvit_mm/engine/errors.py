"""Errors that a user can put right, and how the tools show them."""
import os
import sys
from typing import Callable


class UserError(ValueError):
    """Something given to a tool cannot work. The message names it, what was expected and the way out."""


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; what a user can put right ends it with one message and status 1, without a traceback."""
    from ..checkpoints import CheckpointError
    try:
        main()
    except (UserError, CheckpointError, ImportError) as error:
        if isinstance(error, ImportError) and 'is not installed' not in str(error):
            raise
        sys.stdout.flush()
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')
