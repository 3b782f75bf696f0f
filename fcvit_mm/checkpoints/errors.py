"""Errors of checkpoints: each names the file, the problem and the solution."""

from ..errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not match the model. The message names file, problem and solution."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The checkpoint file does not exist."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """The file to write already exists."""
