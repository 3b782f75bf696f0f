import os
import stat
import subprocess
import sys

import pytest

from fcvit_mm import files
from fcvit_mm.files import AtomicFileBackend, WriteError, write_atomic


def test_writes_and_replaces(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    for data in (b'first', b'second'):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ['a.pth']
    with open(tmp_path / 'ordinary', 'w'):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / 'ordinary').stat().st_mode)


@pytest.mark.parametrize('step', ['open', 'fsync', 'replace'])
def test_a_failure_leaves_what_was_there(step, tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    write_atomic(path, b'before')

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    if step == 'open':
        monkeypatch.setattr(files, 'open', fail, raising=False)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(WriteError, match=r'a.pth \(0.0 MiB\) could not be written: No space left .*MiB are free there'):
        write_atomic(path, b'after')
    monkeypatch.undo()
    assert path.read_bytes() == b'before' and os.listdir(tmp_path) == ['a.pth']


def test_a_limit_of_the_system(tmp_path):
    """The real thing: the kernel refuses to write more."""
    code = (
        'import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)); '
        'from fcvit_mm.files import write_atomic; '
        f'write_atomic({str(tmp_path / "a")!r}, bytes(5000)); write_atomic({str(tmp_path / "a")!r}, bytes(50000))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'WriteError' in done.stderr and 'File too large' in done.stderr
    assert (tmp_path / 'a').stat().st_size == 5000 and os.listdir(tmp_path) == ['a']


def test_backend_of_mmengine(tmp_path):
    from mmengine.fileio import get_file_backend

    backend = get_file_backend(str(tmp_path), backend_args=dict(backend='atomic_file'))
    assert isinstance(backend, AtomicFileBackend)
    backend.put(b'data', str(tmp_path / 'a'))
    backend.put_text('text', str(tmp_path / 'b'))
    assert backend.get(tmp_path / 'a') == b'data' and (tmp_path / 'b').read_text() == 'text'
