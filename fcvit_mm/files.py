"""Atomic writes: a file is there completely or not at all, whatever happens while it is written.

This package writes all of its files through this module. A file is written under a temporary name in the same folder,
synced to disk (fsync) and renamed; then the folder is synced, too.
"""

import errno
import glob
import inspect
import io
import os
import re
import shutil
import tempfile
import traceback
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from .errors import FULL, UserError

PathLike = Union[str, 'os.PathLike[str]']

#: Parts of the messages of the ``RuntimeError`` with which PyTorch reports that the system refused to write.
TORCH_FAILURES = ('PytorchStreamWriter failed', 'file write failed', 'unexpected pos')
#: Longest name, in bytes, that is contained in its temporary name.
LONGEST = 200
#: Errors of file systems without locks.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: Suffix of the files that :func:`partial_path` keeps.
PARTIAL = '.part.tmp'


class WriteError(UserError):
    """A file could not be written; its old content is unchanged."""


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write a file atomically: at any moment it has either the complete old or the complete new content.

    Args:
        path (str | os.PathLike): The file; its folder is made if it is missing.
        data (bytes): The complete content.

    Raises:
        WriteError: The disk is full, a quota is used up, permission is missing, ...
    """
    with atomic_path(path, size=len(data)) as temporary, open(temporary, 'wb') as file:
        file.write(data)


def write_all_atomic(files: Mapping[str, bytes]) -> List[str]:
    """Write several files atomically; they are renamed only when all of them are on disk.

    They are renamed in order: if the last file exists, all of them do.

    Args:
        files (Mapping[str, bytes]): Contents by path.

    Returns:
        list[str]: The paths.

    Raises:
        WriteError: See :func:`write_atomic`; then none of the files has changed, unless the system refuses to rename.
    """
    with ExitStack() as stack:
        # The context that is entered last exits first, so the files are renamed in their order.
        for path, data in reversed(list(files.items())):
            temporary = stack.enter_context(atomic_path(path, size=len(data)))
            with open(temporary, 'wb') as file:
                file.write(data)
            _sync(temporary)
    return list(files)


@contextmanager
def atomic_path(path: PathLike, size: Optional[int] = None, suffix: str = '') -> Iterator[str]:
    """Yield a temporary path for libraries that write files by name; the file is renamed at the end.

    Args:
        path (str | os.PathLike): The final name; its folder is made if it is missing.
        size (int, optional): Number of bytes that will be written, for the error message.
        suffix (str): End of the temporary name, for libraries that infer the format from it.

    Yields:
        str: A temporary path in the same folder. If the block raises, this file is removed and ``path`` is unchanged.

    Raises:
        WriteError: The disk is full, a quota is used up, permission is missing, ...
    """
    path = os.fspath(path)
    _check_regular(path)
    folder, name = os.path.split(path)
    folder = folder or '.'
    temporary = None
    try:
        with reported_writes(path, size):
            os.makedirs(folder, exist_ok=True)
            # The temporary name is longer than the final one, and file systems limit the length of names.
            begin = name if len(os.fsencode(name)) <= LONGEST else name[: LONGEST // 4]
            handle, temporary = tempfile.mkstemp(prefix=f'.{begin}.', suffix=f'.tmp{suffix}', dir=folder)
            os.close(handle)
            yield temporary
            _sync(temporary)
            # mkstemp lets nobody else read; a result is as readable as any other file of the run.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary = None
            _sync(folder)
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


class Partial(NamedTuple):
    """The beginning of a file that :func:`partial_path` kept.

    Attributes:
        path (str): Path of the file.
        tag (str): Identifier of the content, as given to :func:`partial_path`.
        size (int): Bytes.
    """

    path: str
    tag: str
    size: int


def find_partials(path: PathLike) -> List[Partial]:
    """Return the partial files kept by :func:`partial_path`, the newest first."""
    folder, name = os.path.split(os.fspath(path))
    begin = f'.{name}.'
    found = glob.glob(os.path.join(glob.escape(folder or '.'), f'{glob.escape(begin)}*{PARTIAL}'))
    found.sort(key=os.path.getmtime, reverse=True)
    partials = [
        Partial(each, os.path.basename(each)[len(begin) : -len(PARTIAL)], os.path.getsize(each)) for each in found
    ]
    return [partial for partial in partials if partial.tag.isalnum()]  # else of a file whose name begins alike


@contextmanager
def partial_path(path: PathLike, tag: str) -> Iterator[str]:
    """Yield a temporary path for data that arrive in parts; the file is renamed at the end, as in :func:`atomic_path`.

    Only one process at a time may use it: the caller must hold a lock.

    Args:
        path (str | os.PathLike): The final name; its folder is made if it is missing.
        tag (str): Letters and digits that identify the content, so that parts of different contents are not combined.

    Yields:
        str: A path in the same folder. It has the data that an earlier call with this tag wrote. If the block raises,
        the file is kept for the next call.

    Raises:
        WriteError: See :func:`atomic_path`.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    folder = folder or '.'
    temporary = os.path.join(folder, f'.{name}.{tag}{PARTIAL}')
    with reported_writes(path):
        os.makedirs(folder, exist_ok=True)
        with open(temporary, 'ab'):
            pass
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        for other in find_partials(path):
            os.remove(other.path)
        _sync(folder)


@contextmanager
def file_lock(path: PathLike, waiting: str, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file beside a file, which only one process has, of all machines that share the folder.

    The system releases the lock when the process ends, even if it is killed. On a file system without locks, and where
    the lock file cannot be written, every process is admitted.

    Args:
        path (str | os.PathLike): The file that the processes write; its folder is made if it is missing.
        waiting (str): Message if another process holds the lock.
        timeout (float): Seconds to wait for it; negative: as long as it takes.

    Raises:
        TimeoutError: Another process still holds the lock.
        WriteError: The folder cannot be made.
    """
    from filelock import FileLock, Timeout  # not needed to import this package

    folder, name = os.path.split(os.fspath(path))
    with reported_writes(path):
        os.makedirs(folder or '.', exist_ok=True)
    # Without locks of the system, newer versions take a file's existence for one, which would outlive a killed process.
    soft = 'fallback_to_soft' in inspect.signature(FileLock.__init__).parameters
    options: Any = dict(fallback_to_soft=False) if soft else {}
    lock = FileLock(os.path.join(folder, f'.{name}.lock'), **options)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print_log(waiting, logger='current')
        lock.acquire(timeout=timeout)
    except (NotImplementedError, OSError) as error:
        # Otherwise the folder cannot be written, and the writes that follow say why.
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
            print_log(
                f'{folder} does not support file locks: write to it with one process at a time.', logger='current'
            )
    try:
        yield
    finally:
        lock.release()


def check_writable(path: PathLike) -> None:
    """Check, before long work, that its result can be written to a file; nothing is created.

    Raises:
        WriteError: The path is a folder or a device, or the folder that it is in, or would be made in, cannot be
            written.
    """
    path = os.fspath(path)
    _check_regular(path)
    with reported_writes(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _try_folder(os.path.dirname(os.path.abspath(path)))


def check_writable_folder(folder: PathLike) -> None:
    """Check, before long work, that files can be written to a folder; nothing is created.

    Raises:
        WriteError: It is a file, or it, or the folder that it would be made in, cannot be written.
    """
    with reported_writes(folder):
        _try_folder(os.path.abspath(folder))


def _check_regular(path: str) -> None:
    """Refuse devices, pipes and sockets such as ``/dev/null``: renaming would put a file in their place."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise WriteError(f'{path} is a device, pipe or socket, which would be replaced: give the name of a file')


def _try_folder(folder: str) -> None:
    """Check that a folder, or its nearest existing parent, is writable, by writing a temporary file without a name."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if os.path.islink(folder) and not os.path.exists(folder):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def reported_writes(path: PathLike, size: Optional[int] = None) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` (of ``size`` bytes) into a :class:`WriteError`."""
    path = os.fspath(path)
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_write_failure(error):
            raise
        what = path if size is None else f'{path} ({_mebibytes(size)})'
        raise WriteError(f'{what} could not be written: {_reason(error, path)}') from error


@contextmanager
def named_writes() -> Iterator[None]:
    """Name the file that a library could not write because the disk is full, and remove it if it was begun.

    The system's error names no file, because it comes from writing to an open file. A file that the library appends to
    is kept.

    Raises:
        WriteError: The disk is full, a quota is used up, or the file would be larger than a limit allows.
    """
    try:
        yield
    except OSError as error:
        path, begun = _written_file(error)
        if error.errno not in FULL or not path:
            raise
        if begun and os.path.isfile(path):
            os.remove(path)
        raise WriteError(f'{path} could not be written: {_reason(error, path)}') from error


def _written_file(error: OSError) -> Tuple[str, bool]:
    """Return the file that was being written when an error was raised, and whether it was newly created."""
    if error.filename is not None:
        return os.fspath(error.filename), False
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        for value in frame.f_locals.values():
            if isinstance(value, (io.TextIOWrapper, io.BufferedWriter)) and isinstance(value.name, str):
                mode = value.mode
                if mode[0] in 'wxa':
                    return value.name, mode[0] != 'a'
    return '', False


def _reason(error: Union[OSError, RuntimeError], path: str) -> str:
    """Return why a file could not be written; if the disk is full, with the free space and the solution."""
    reason = getattr(error, 'strerror', None) or str(error)
    link = getattr(error, 'filename', None)
    if link and isinstance(error, FileExistsError) and os.path.islink(link):
        return f'{link} is a link to {os.readlink(link)}, which does not exist: create it, or give another path'
    if not lacks_space(error):
        return reason
    return f'{reason}; {_free(os.path.dirname(path) or ".")}. Free disk space, or write to another disk'


def is_write_failure(error: BaseException) -> bool:
    """Check whether an error is the system's, or PyTorch's report that the system refused to write."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in TORCH_FAILURES)
    return isinstance(error, OSError)


def lacks_space(error: Optional[BaseException]) -> bool:
    """Check whether a write failed for lack of disk space. Errors of PyTorch give no reason and count as such."""
    return isinstance(error, RuntimeError) or getattr(error, 'errno', None) in FULL


def is_temporary(name: str) -> bool:
    """Check whether a file has a temporary name of :func:`atomic_path`, as a killed process leaves it."""
    return _TEMPORARY.fullmatch(name) is not None


#: ``tempfile`` puts 8 characters before ``.tmp``: other hidden files, such as ``.draft.tmp``, do not match.
_TEMPORARY = re.compile(r'\..+\.[a-z0-9_]{8}\.tmp(\..+)?')


def remove_temporaries(folder: PathLike, recursive: bool = False) -> List[str]:
    """Remove the temporary files that killed processes left in a folder of results; no process may be writing into it.

    Args:
        folder (str | os.PathLike): The folder; it may be missing.
        recursive (bool): Also remove those in folders below it.

    Returns:
        list[str]: Paths of the removed files.
    """
    removed = []
    for parent, folders, names in os.walk(folder):
        if not recursive:
            folders.clear()
        removed += [os.path.join(parent, name) for name in names if is_temporary(name)]
    for path in removed:
        os.remove(path)
    return removed


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: str) -> None:
    """Sync a file or folder to disk, if the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        if not os.path.isdir(path):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def _mebibytes(number: int) -> str:
    return f'{number / 2**20:.1f} MiB'


def _free(folder: str) -> str:
    try:
        return f'{_mebibytes(shutil.disk_usage(folder).free)} are free there'
    except OSError:
        return 'the folder cannot be examined'


@register_backend('whole_file')  # the deprecated name
@register_backend('atomic_file')
class AtomicFileBackend(LocalBackend):
    """MMEngine's local files, written by :func:`write_atomic`. For ``backend_args=dict(backend='atomic_file')``."""

    def put(self, obj: bytes, filepath: PathLike) -> None:
        write_atomic(filepath, obj)

    def put_text(self, obj: str, filepath: PathLike, encoding: str = 'utf-8') -> None:
        write_atomic(filepath, obj.encode(encoding))


@contextmanager
def atomic_local_writes(unwritten: PathLike = '') -> Iterator[None]:
    """Make MMEngine and Pillow write all local files atomically within the context.

    Args:
        unwritten (str | os.PathLike): Path of a config that MMEngine does not write.
    """
    from PIL import Image

    before = {name: getattr(LocalBackend, name) for name in ('put', 'put_text')}
    save, dump = Image.Image.save, Config.dump

    @wraps(dump)
    def dump_atomic(self: Any, file: Any = None) -> Optional[str]:
        if file is None:
            return dump(self)
        if os.path.abspath(file) != os.path.abspath(unwritten):
            with atomic_path(file, suffix=os.path.splitext(file)[1]) as temporary:
                dump(self, temporary)
        return None

    @wraps(save)
    def save_atomic(self: Any, fp: Any, format: Optional[str] = None, **options: Any) -> None:
        if not isinstance(fp, (str, os.PathLike)) or options.get('append'):
            save(self, fp, format, **options)
            return
        with atomic_path(fp, suffix=os.path.splitext(fp)[1]) as temporary:
            save(self, temporary, format, **options)

    for name in before:
        setattr(LocalBackend, name, getattr(AtomicFileBackend, name))
    Image.Image.save = save_atomic  # type: ignore[method-assign]
    Config.dump = dump_atomic
    try:
        yield
    finally:
        Image.Image.save = save  # type: ignore[method-assign]
        Config.dump = dump
        for name, method in before.items():
            setattr(LocalBackend, name, method)
