"""Downloads over connections that are cut, from servers of several kinds, by several processes."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import filelock
import pytest
from weights_server import running

from fcvit_mm.checkpoints import CheckpointError, DownloadError
from fcvit_mm.checkpoints import download as module
from fcvit_mm.checkpoints.download import download
from fcvit_mm.files import WriteError, find_partials

CONTENT = bytes(range(256)) * 40  # 10240 bytes
fork = multiprocessing.get_context('fork')


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, 'PAUSES', (0.0,) * 5)
    monkeypatch.setattr(module, 'CHUNK', 500)


@pytest.fixture
def server():
    with running() as server:
        server.files['/a.pth'] = CONTENT
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'new' / 'a.pth'


def fetch(server, path, check=lambda path: None, **options):
    return download(f'{server.address}/a.pth', str(path), check, **options)


def ranges(server):
    return [wanted for _, wanted in server.asked]


def visible_files(path):
    """List the visible files of the folder; lock files and partial files are hidden."""
    return [name for name in os.listdir(path.parent) if not name.startswith('.')]


def test_file_is_downloaded_once(server, path):
    assert fetch(server, path) is True
    assert path.read_bytes() == CONTENT and visible_files(path) == ['a.pth'] and not find_partials(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert fetch(server, path) is False and len(server.asked) == 1


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_interrupted_download_is_resumed(server, path):
    server.cuts = [4000, 3000]
    checked = []
    assert fetch(server, path, lambda temporary: checked.append(Path(temporary).read_bytes()))
    assert path.read_bytes() == CONTENT and checked == [CONTENT]
    assert ranges(server) == [None, 'bytes=3999-', 'bytes=6998-']


def test_download_of_a_killed_process_is_resumed(server, path):
    server.pause = 0.02
    process = fork.Process(target=fetch, args=(server, path))
    process.start()
    deadline = time.time() + 20
    while sum(each.size for each in find_partials(path)) < 3000 and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not path.exists() and visible_files(path) == []
    (partial,) = find_partials(path)
    server.pause = 0
    assert fetch(server, path) and path.read_bytes() == CONTENT and not find_partials(path)
    assert ranges(server) == [None, f'bytes={partial.size - 1}-'] and 3000 <= partial.size < len(CONTENT)


def test_complete_partial_file_requests_one_byte(server, path):
    """The process was killed between the last byte and the rename."""
    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, check=_interrupt)
    assert find_partials(path)[0].size == len(CONTENT)
    fetch(server, path)
    assert path.read_bytes() == CONTENT and ranges(server) == [None, f'bytes={len(CONTENT) - 1}-']


def _interrupt(path):
    raise KeyboardInterrupt


def test_server_without_range_requests(server, path):
    server.ranges, server.cuts = False, [4000, 6000]
    fetch(server, path)
    assert path.read_bytes() == CONTENT and ranges(server) == [None, 'bytes=3999-', 'bytes=5999-']


def test_download_restarts_if_the_file_changed(server, path, monkeypatch):
    monkeypatch.setattr(module, 'PAUSES', ())  # given up at the first cut
    server.cuts = [4000]
    with pytest.raises(DownloadError, match=r'the connection was lost after 0.0 MiB of 0.0 MiB; the 0.0 MiB that came'):
        fetch(server, path)
    server.etag, server.files['/a.pth'] = '"2"', b'z' * len(CONTENT)
    fetch(server, path)
    assert path.read_bytes() == b'z' * len(CONTENT) and ranges(server) == [None, 'bytes=3999-', None]
    assert not find_partials(path)


def test_download_restarts_if_the_file_became_shorter(server, path, monkeypatch):
    monkeypatch.setattr(module, 'PAUSES', ())
    server.cuts = [4000]
    with pytest.raises(DownloadError, match=r'the connection was lost after .*the next try continues'):
        fetch(server, path)
    server.files['/a.pth'] = b'short'
    fetch(server, path)
    assert path.read_bytes() == b'short' and ranges(server) == [None, 'bytes=3999-', None]


@pytest.mark.parametrize('with_ranges', [True, False])
def test_download_without_progress_ends_with_an_error(with_ranges, server, path):
    server.ranges, server.cuts = with_ranges, [3000] + [0 if with_ranges else 2000] * 50
    with pytest.raises(
        DownloadError, match=r'a.pth could not be downloaded: the connection was lost after .* are kept'
    ):
        fetch(server, path)
    assert len(server.asked) == 1 + len(module.PAUSES) and not path.exists()
    server.cuts = []
    fetch(server, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('status', [404, 403])
def test_client_errors_are_not_retried(status, server, path):
    server.statuses = [status]
    with pytest.raises(DownloadError, match=rf'a.pth could not be downloaded: the server answers {status} \(\w'):
        fetch(server, path)
    assert len(server.asked) == 1 and not visible_files(path) and not find_partials(path)


def test_server_errors_are_retried(server, path):
    server.statuses = [503, 429]
    fetch(server, path)
    assert path.read_bytes() == CONTENT and len(server.asked) == 3
    path.unlink()
    server.statuses = [500] * 20
    with pytest.raises(DownloadError, match=r'the server answers 500 \(Internal Server Error\)$'):
        fetch(server, path)


def test_network_is_unavailable(path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    start = time.time()
    with pytest.raises(DownloadError, match=rf':{port}/a.pth could not be downloaded: no connection \(.*refused'):
        download(f'http://127.0.0.1:{port}/a.pth', str(path), lambda path: None)
    with pytest.raises(DownloadError, match=r'no connection \('):
        download('http://nowhere.invalid/a.pth', str(path), lambda path: None)
    assert time.time() - start < 10 and not visible_files(path)


def test_timeouts_are_retried(server, path, monkeypatch):
    monkeypatch.setattr(module, 'TIMEOUT', 0.1)
    server.pause = 0.2
    fetch(server, path)
    assert path.read_bytes() == CONTENT and len(server.asked) > 8  # a thousand bytes each time


def test_length_may_be_unknown(server, path):
    server.length = False
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_unexpected_size_is_refused(server, path):
    with pytest.raises(DownloadError, match='a.pth has 10240 bytes, expected 7: the file on the server has changed'):
        fetch(server, path, size=7)
    assert not visible_files(path) and fetch(server, path, size=len(CONTENT))


def test_invalid_content_is_removed(server, path):
    def check(temporary):
        raise CheckpointError('a web page')

    with pytest.raises(CheckpointError, match='a web page'):
        fetch(server, path, check)
    assert not visible_files(path) and not find_partials(path)


def test_concurrent_processes_download_once(server, path):
    server.pause = 0.01
    results = fork.SimpleQueue()
    processes = [fork.Process(target=_put, args=(results, server, path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(results.get() for _ in processes) == [False, False, True]
    assert path.read_bytes() == CONTENT and len(server.asked) == 1


def _put(results, server, path):
    results.put(fetch(server, path))


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match=r'file/below/a.pth could not be written: '):
        fetch(server, tmp_path / 'file' / 'below' / 'a.pth')
    assert not server.asked


def test_full_disk_is_reported(server, path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'open', full, raising=False)
    with pytest.raises(WriteError, match=r'a.pth could not be written: No space left on device; .* are free there'):
        fetch(server, path)
    monkeypatch.undo()
    assert fetch(server, path) and path.read_bytes() == CONTENT


def test_file_system_without_locks(server, path, monkeypatch, capsys):
    def acquire(self, *args, **kwargs):
        raise NotImplementedError('FileSystem does not appear to support flock')

    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert 'does not support file locks: write to it with one process at a time' in ''.join(capsys.readouterr())


def test_terminal_shows_the_progress(server, path, monkeypatch, capsys):
    fetch(server, path)
    assert '━' not in capsys.readouterr().err
    path.unlink()
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    fetch(server, path)
    output = capsys.readouterr().err
    assert 'a.pth' in output and '10.2/10.2 kB' in output
