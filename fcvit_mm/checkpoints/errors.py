"""Errors of checkpoints: each names the file, the problem and the way out."""

from ..errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not fit. The message names the file, the problem and the way out."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The checkpoint file does not exist."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """The file to write already exists."""
