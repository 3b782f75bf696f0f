"""Downloading large files over unreliable connections: resumed, checked and atomic.

Downloads of torch.hub and pooch start again after an interruption, and huggingface_hub only supports its own site;
therefore this module implements it on the HTTP client of the standard library.
"""

import hashlib
import http.client
import os
import re
import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Tuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mmengine.logging import print_log

from ..files import file_lock, find_partials, partial_path
from ..version import __version__
from .errors import CheckpointError

#: Seconds without a byte after which a connection counts as lost.
TIMEOUT = 30.0
#: Seconds to wait after a lost connection, and after each further try that brings no data; then the download fails.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
#: Bytes that are read and written at a time.
CHUNK = 1 << 18
#: HTTP status codes of a server that is busy.
BUSY = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(CheckpointError):
    """A download failed."""


class _Cut(Exception):
    """The connection was lost, or the server is busy: received data are kept and the download is retried."""


class _Unreachable(Exception):
    """No connection can be made: retried if there was one before."""


def download(url: str, path: str, check: Callable[[str], object], size: Optional[int] = None) -> bool:
    """Download a file, unless another process has done so in the meantime.

    If the server or this process interrupts the download, received data are kept beside ``path``. The next call resumes
    if the server supports ranges and still has the same content (by ``ETag``, ``Last-Modified`` and length); otherwise
    it starts again. If several processes call this, one downloads and the others wait. A terminal shows the progress.

    Args:
        url (str): ``http://`` or ``https://``.
        path (str): Destination, written atomically; its folder is created if missing.
        check (callable): Called with the temporary path of the complete file before it is renamed. If it raises a
            ``CheckpointError``, the file is removed.
        size (int, optional): Length of the file in bytes, if known.

    Returns:
        bool: Whether this call downloaded it.

    Raises:
        DownloadError: No connection, no such file, repeatedly lost connections, or a different length.
        CheckpointError: Raised by ``check``.
        WriteError: The folder or the disk cannot be written.
    """
    with file_lock(path, f'Another process is downloading {path}: waiting for it.'):
        if os.path.exists(path):
            return False
        best, failures, connected = 0, 0, False
        while True:
            try:
                _try(url, path, check, size)
                return True
            except (_Cut, _Unreachable) as error:
                reason = error
            connected = connected or isinstance(reason, _Cut)
            # Only a larger file than ever before is progress: some servers send it from the beginning at each try.
            reached = max((partial.size for partial in find_partials(path)), default=0)
            best, failures = (reached, 0) if reached > best else (best, failures + 1)
            if failures >= len(PAUSES) or not connected:
                kept = f'; the {_mebibytes(reached)} that came are kept, and the next try continues' if reached else ''
                raise DownloadError(f'{url} could not be downloaded: {reason}{kept}') from reason
            print_log(f'{url}: {reason}; retrying.', logger='current')
            time.sleep(PAUSES[failures])


def _try(url: str, path: str, check: Callable[[str], object], size: Optional[int]) -> None:
    """Download the missing part of a file over one connection.

    Raises:
        _Cut: The connection was lost, or the server is busy.
        _Unreachable: No connection could be made.
        DownloadError, CheckpointError, WriteError: See :func:`download`.
    """
    partial = next((each for each in find_partials(path) if each.size), None)
    # Request the last byte again: if the file is complete already, servers reject a request for zero bytes.
    start = partial.size - 1 if partial else 0
    response = _open(url, start)
    if partial is not None and not _continues(response, start, partial.tag):
        start = 0
        if response.status != 200:
            response.close()
            response = _open(url, start)
    total, tag = _describe(response)
    if size is not None and total not in (None, size):
        response.close()
        raise DownloadError(f'{url} has {total} bytes, expected {size}: the file on the server has changed')
    where = f', from {_mebibytes(start)} on' if start else ''
    print_log(f'Downloading {url} to {path} ({_mebibytes(total)}{where}).', logger='current')
    with response, partial_path(path, tag) as temporary:
        os.truncate(temporary, start)
        received = start
        with open(temporary, 'ab') as file, _progress(os.path.basename(path), start, total) as advance:
            while total is None or received < total:
                data = _read(response)
                if not data:
                    break
                file.write(data)
                received += len(data)
                advance(len(data))
        if total is not None and received != total:
            raise _Cut(f'the connection was lost after {_mebibytes(received)} of {_mebibytes(total)}')
        try:
            check(temporary)
        except CheckpointError:
            os.remove(temporary)
            raise


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Request a file from a byte offset on; the response may contain the complete file."""
    headers = {'User-Agent': f'fcvit_mm/{__version__}', 'Accept-Encoding': 'identity'}
    if start:
        headers['Range'] = f'bytes={start}-'
    try:
        response: http.client.HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file on the server has become shorter
            return _open(url, 0)
        answer = f'the server answers {error.code} ({error.reason})'
        if error.code in BUSY:
            raise _Cut(answer) from error
        raise DownloadError(f'{url} could not be downloaded: {answer}') from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for impossible names of hosts
        raise _Unreachable(f'no connection ({getattr(error, "reason", None) or error})') from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f'the connection was lost ({error or type(error).__name__})') from error


def _continues(response: http.client.HTTPResponse, start: int, tag: str) -> bool:
    """Return whether a response continues the partial file: the requested range of the same content."""
    begin = response.headers.get('Content-Range', '').startswith(f'bytes {start}-')
    return response.status == 206 and begin and _describe(response)[1] == tag


def _describe(response: http.client.HTTPResponse) -> Tuple[Optional[int], str]:
    """Return the length of the complete file, if the server sends it, and an identifier of its content."""
    headers = response.headers
    pattern, field = (r'.*/(\d+)$', 'Content-Range') if response.status == 206 else (r'(\d+)$', 'Content-Length')
    found = re.match(pattern, headers.get(field, ''))
    total = int(found[1]) if found else None
    content = (headers.get('ETag'), headers.get('Last-Modified'), total)
    return total, hashlib.sha256(repr(content).encode()).hexdigest()[:12]


@contextmanager
def _progress(name: str, start: int, total: Optional[int]) -> Iterator[Callable[[int], object]]:
    """Show a progress bar in a terminal."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda number: progress.advance(task, number)


def _mebibytes(number: Optional[int]) -> str:
    return 'of unknown size' if number is None else f'{number / 2**20:.1f} MiB'
