"""Atomic writes, and the files after a failure."""

import errno
import io
import os
import stat

import mmengine
import numpy as np
import pytest
import torch
from harness import run_python
from mmengine.config import Config
from PIL import Image

from fcvit_mm import files
from fcvit_mm.files import (
    AtomicFileBackend,
    WriteError,
    atomic_local_writes,
    atomic_path,
    check_writable,
    check_writable_folder,
    file_lock,
    is_temporary,
    named_writes,
    remove_temporaries,
    write_all_atomic,
    write_atomic,
)


def test_files_are_written_and_replaced(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    for data in (b'first', b'second'):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ['a.pth']
    with open(tmp_path / 'ordinary', 'w'):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / 'ordinary').stat().st_mode)


@pytest.mark.parametrize('step', ['open', 'fsync', 'replace'])
def test_failed_write_keeps_the_previous_file(step, tmp_path, monkeypatch):
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


def test_unwritable_paths_are_found_before_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    for path in ('a.json', 'new/er/a.json', 'file', str(tmp_path / 'a.json')):
        check_writable(path)
    for path, reason in ((str(tmp_path), 'Is a directory'), ('file/a.json', 'Not a dir'), ('file/new/a', 'Not a dir')):
        with pytest.raises(WriteError, match=f'{path} could not be written: {reason}'):
            check_writable(path)
    for path in ('.', 'new/er', str(tmp_path)):
        check_writable_folder(path)
    for path in ('file', 'file/new'):
        with pytest.raises(WriteError, match=f'{path} could not be written: Not a directory'):
            check_writable_folder(path)
    assert os.listdir(tmp_path) == ['file'] and not (tmp_path / 'file').read_bytes()


def test_devices_and_pipes_are_not_replaced(tmp_path):
    """The superuser of a container may replace /dev/null."""
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    for write in (lambda path: write_atomic(path, b'data'), check_writable):
        with pytest.raises(WriteError, match='pipe is a device, pipe or socket, .*: give the name of a file'):
            write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ['pipe']


def test_file_size_limit_of_the_system(tmp_path):
    """The kernel refuses to write more than the limit."""
    code = (
        'import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)); '
        'from fcvit_mm.files import write_atomic; '
        f'write_atomic({str(tmp_path / "a")!r}, bytes(5000)); write_atomic({str(tmp_path / "a")!r}, bytes(50000))'
    )
    done = run_python('-c', code)
    assert 'WriteError' in done.stderr and 'File too large' in done.stderr
    assert (tmp_path / 'a').stat().st_size == 5000 and os.listdir(tmp_path) == ['a']


def test_file_backend_of_mmengine(tmp_path):
    from mmengine.fileio import get_file_backend

    backend = get_file_backend(str(tmp_path), backend_args=dict(backend='atomic_file'))
    assert isinstance(backend, AtomicFileBackend)
    backend.put(b'data', str(tmp_path / 'a'))
    backend.put_text('text', str(tmp_path / 'b'))
    assert backend.get(tmp_path / 'a') == b'data' and (tmp_path / 'b').read_text() == 'text'


def test_atomic_path_for_libraries_that_write_files(tmp_path):
    path = tmp_path / 'new' / 'a.png'
    with atomic_path(path, suffix='.png') as temporary:
        assert os.path.dirname(temporary) == str(path.parent) and temporary.endswith('.png') and not path.exists()
        assert is_temporary(os.path.basename(temporary)) and not is_temporary('a.tmp.png')
        os.remove(temporary)  # some libraries write another file and rename it
        with open(temporary, 'wb') as file:
            file.write(b'data')
    assert path.read_bytes() == b'data' and os.listdir(path.parent) == ['a.png']


@pytest.mark.parametrize('name', ['a' * 250 + '.jpg', '\u00fc' * 120 + '.jpg'])
def test_longest_possible_file_names(tmp_path, name):
    with atomic_path(tmp_path / name, suffix='.jpg') as temporary, open(temporary, 'wb') as file:
        assert is_temporary(os.path.basename(temporary))
        file.write(b'data')
    assert os.listdir(tmp_path) == [name]


def test_error_in_the_library_keeps_the_previous_file(tmp_path):
    path = tmp_path / 'a'
    write_atomic(path, b'before')
    with pytest.raises(KeyError), atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(b'half')
        raise KeyError('a defect')
    with pytest.raises(WriteError, match='a could not be written: No such file'), atomic_path(path) as temporary:
        os.remove(temporary)  # and write nothing
    assert path.read_bytes() == b'before' and os.listdir(tmp_path) == ['a']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_full_disk_while_torch_saves(tmp_path):
    """PyTorch raises a RuntimeError that does not mention the full disk."""
    path = tmp_path / 'a.pth'
    with pytest.raises(WriteError, match='a.pth could not be written: .*MiB are free there'), atomic_path(path):
        torch.save(dict(a=torch.ones(10**6)), '/dev/full')
    assert not os.listdir(tmp_path)


def test_several_files_are_written_together(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(
        os, 'replace', lambda source, path: (order.append(os.path.basename(path)), replace(source, path))
    )
    files = {str(tmp_path / name): name.encode() for name in ('card', 'entry', 'weights')}
    assert write_all_atomic(files) == list(files) and order == ['card', 'entry', 'weights']
    assert write_all_atomic({}) == []
    # The second file cannot be written, so none is renamed.
    calls = []

    def fail(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(WriteError, match='No space left on device'):
        write_all_atomic(dict.fromkeys(files, b'new'))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {
        name: name.encode() for name in ('card', 'entry', 'weights')
    }


def test_temporaries_of_killed_processes_are_removed(tmp_path):
    (tmp_path / 'below').mkdir()
    for name in ('a.tmp.png', '.hidden', '.draft.tmp', 'below/b.png'):
        (tmp_path / name).write_bytes(b'')
    left = [
        tmp_path / name for name in ('.a.json.abcdefgh.tmp', '.a.npy.abcdefgh.tmp.npy', 'below/.b.png.abcdefgh.tmp')
    ]
    for path in left:
        path.write_bytes(b'half')
    assert sorted(remove_temporaries(tmp_path)) == [str(path) for path in left[:2]] and left[2].exists()
    assert remove_temporaries(tmp_path, recursive=True) == [str(left[2])]
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['.draft.tmp', '.hidden', 'a.tmp.png', 'b.png', 'below']
    assert not remove_temporaries(tmp_path / 'gone')


@pytest.mark.parametrize('mode, left', [('w', False), ('xb', False), ('a', True)])
def test_incomplete_file_of_a_library_is_removed_and_named(tmp_path, mode, left):
    """The error of the system does not name the file."""
    path = tmp_path / 'a'

    def write():
        with open(path, mode) as file:
            file.write(b'half' if 'b' in mode else 'half')
            file.flush()
            raise OSError(errno.ENOSPC, 'No space left on device')

    with (
        pytest.raises(
            WriteError,
            match=f'{path} could not be written: No space left on device; .* MiB are free there. Free disk space, or '
            'write to another disk$',
        ),
        named_writes(),
    ):
        write()
    assert path.exists() is left


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(OSError, match='Input/output error') as caught, named_writes(), open(tmp_path / 'a', 'w'):
        raise OSError(errno.EIO, 'Input/output error')
    assert not isinstance(caught.value, WriteError) and (tmp_path / 'a').exists()
    with pytest.raises(OSError, match='No space left') as caught, named_writes():
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert not isinstance(caught.value, WriteError)


def test_link_to_a_folder_that_is_missing_is_named(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'gone')
    message = 'could not be written: .*link is a link to .*gone, which does not exist: create it'
    with pytest.raises(WriteError, match=message):
        write_atomic(tmp_path / 'link' / 'a', b'')
    with pytest.raises(WriteError, match=message):
        check_writable_folder(tmp_path / 'link')


def test_killed_process_holds_no_lock(tmp_path):
    code = "import os; from fcvit_mm import files; files.file_lock('file', '').__enter__(); os.kill(os.getpid(), 9)"
    run_python('-c', code, cwd=tmp_path, check=False)
    assert (tmp_path / '.file.lock').exists()
    with file_lock(tmp_path / 'file', '', timeout=0), pytest.raises(TimeoutError), file_lock(tmp_path / 'file', '', 0):
        pass


def test_system_without_locks_admits_all_processes(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip('fcntl')

    def flock(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, 'flock', flock)
    (tmp_path / '.file.lock').touch()  # left by a killed process
    with file_lock(tmp_path / 'file', '', 0), file_lock(tmp_path / 'file', '', 0):
        pass
    assert 'does not support file locks: write to it with one process at a time' in ''.join(capsys.readouterr())


def test_mmengine_and_pillow_write_atomically(tmp_path, monkeypatch):
    image = Image.fromarray(np.zeros((4, 4), np.uint8))
    with atomic_local_writes():
        image.save(tmp_path / 'a.png')
        mmengine.dump(dict(a=1), tmp_path / 'a.pkl')
        Config(dict(a=1)).dump(tmp_path / 'a.py')
        image.save(io.BytesIO(), 'PNG')
        assert Config(dict(a=1)).dump() == Config(dict(a=1)).pretty_text
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert set(before) == {'a.png', 'a.pkl', 'a.py'} and before['a.py'].decode() == Config(dict(a=1)).pretty_text
    monkeypatch.setattr(os, 'replace', failing)
    for write in (
        lambda: image.save(str(tmp_path / 'a.png')),
        lambda: mmengine.dump(dict(b=2), tmp_path / 'a.pkl'),
        lambda: Config(dict(b=2)).dump(str(tmp_path / 'a.py')),
    ):
        with pytest.raises(WriteError, match=f'{tmp_path}/a.* could not be written: No space'), atomic_local_writes():
            write()
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    monkeypatch.undo()
    image.save(tmp_path / 'b.png')  # not atomic outside of the context
    Config(dict(b=2)).dump(tmp_path / 'a.py')
    assert Config.fromfile(tmp_path / 'a.py').b == 2


def failing(*paths):
    raise OSError(errno.ENOSPC, 'No space left on device')
