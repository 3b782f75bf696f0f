"""Files that are there whole or not at all, whatever happens while they are written."""
import os
import shutil
import tempfile
from typing import Union

from mmengine.fileio import LocalBackend, register_backend

from .errors import UserError


class WriteError(UserError):
    """A file could not be written; what stood there before still does."""


def write_whole(path: Union[str, os.PathLike], data: bytes) -> None:
    """Write a file so that at any moment its name stands for all of the old content or all of the new.

    The data goes to a temporary name beside it and onto the disk before it takes the name.

    Args:
        path (str | os.PathLike): The file; its folder is made if it is missing.
        data (bytes): All of it.

    Raises:
        WriteError: The disk is full, a quota is used up, permission is missing, ...
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or '.'
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f'.{os.path.basename(path)}.', suffix='.tmp', dir=folder)
        with open(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets nobody else read; a checkpoint is as readable as any other file of the run.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)
        raise WriteError(f'{path} ({_mebibytes(len(data))}) could not be written: {error.strerror or error}; '
                         f'{_free(folder)}') from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: str) -> None:
    """Let the new name outlive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # nor on some network file systems
        pass
    finally:
        os.close(handle)


def _mebibytes(number: int) -> str:
    return f'{number / 2**20:.1f} MiB'


def _free(folder: str) -> str:
    try:
        return f'{_mebibytes(shutil.disk_usage(folder).free)} are free there'
    except OSError:
        return 'the folder cannot be looked at'


@register_backend('whole_file')
class WholeFileBackend(LocalBackend):
    """MMEngine's local files, written by :func:`write_whole`. For ``backend_args=dict(backend='whole_file')``."""

    def put(self, obj: bytes, filepath) -> None:
        write_whole(filepath, obj)

    def put_text(self, obj: str, filepath, encoding: str = 'utf-8') -> None:
        write_whole(filepath, obj.encode(encoding))
