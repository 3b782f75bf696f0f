"""Reading checkpoint files: what genuine ones hold comes out, what hostile ones ask for does not happen."""

import argparse
import contextlib
import io
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
import torch.nn as nn

from fcvit_mm.checkpoints import CheckpointError, CheckpointNotFoundError, read_checkpoint
from fcvit_mm.checkpoints.safe_load import Opaque

WRITERS = {
    'torch': torch.save,
    'torch before 1.6': lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}
for protocol in (2, 3, 4, 5):

    def write(content, path, protocol=protocol):
        with open(path, 'wb') as file:
            pickle.dump(content, file, protocol=protocol)

    WRITERS[f'pickle {protocol}'] = write
torch_only = pytest.mark.parametrize('writer', ['torch', 'torch before 1.6'])
all_writers = pytest.mark.parametrize('writer', WRITERS)


@torch_only
def test_tensors_of_every_kind(writer, tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        str(dtype): torch.ones(2, 3).to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
    }
    tensors.update(
        scalar=torch.tensor(3),
        empty=torch.empty(0, 4),
        view=base[4:16].view(3, 4),
        transposed=base.view(4, 6).t(),
        channels_last=torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        parameter=nn.Parameter(torch.rand(3)),
        same=base,
        again=base,
    )
    WRITERS[writer](tensors, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape, name
        assert torch.equal(read[name], tensor), name
        assert not read[name].requires_grad


def test_tensor_of_a_type_without_a_storage_of_its_own(tmp_path):
    if not hasattr(torch, 'uint16'):
        pytest.skip('needs torch 2.3')
    torch.save({'a': torch.tensor([1, 65535], dtype=torch.uint16)}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['a'].tolist() == [1, 65535]


@all_writers
def test_arrays_and_plain_objects(writer, tmp_path):
    content = {
        'array': np.arange(12, dtype=np.float32).reshape(3, 4),
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'bool': np.array([True, False]),
        'scalar': np.float64(1.5),
        'empty': np.zeros((0, 3), np.int64),
        'text': np.array(['ab', 'c']),
        'nested': [(1, 2.5, None, True), {'a', 'b'}, frozenset([1]), b'bytes', 2**70],
        'counter': Counter([3, 3, 8]),
        'default': defaultdict(list, a=[1]),
        'ordered': OrderedDict(a=1),
    }
    WRITERS[writer](content, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert list(read) == list(content)
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            assert read[name].dtype == value.dtype
            np.testing.assert_array_equal(read[name], value)
        else:
            assert read[name] == value, name


@all_writers
def test_training_arguments_are_left_closed(writer, tmp_path):
    content = {'args': argparse.Namespace(lr=0.1, out=pathlib.Path('a/b')), 'out': pathlib.Path('a/b'), 'epoch': 3}
    WRITERS[writer](content, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['epoch'] == 3
    assert isinstance(read['args'], Opaque) and isinstance(read['out'], Opaque)
    assert 'Namespace' in repr(read['args'])


@torch_only
def test_complete_training_state(writer, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    state = {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'shape': torch.Size([1, 2]),
        'dtype': torch.float16,
        'device': torch.device('cpu'),
    }
    WRITERS[writer](state, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert all(torch.equal(read['state_dict'][name], value) for name, value in model.state_dict().items())
    assert read['optimizer']['state'][0]['step'] == 1
    assert read['shape'] == (1, 2) and read['dtype'] is torch.float16


def test_safetensors(tmp_path, monkeypatch):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file({'a': torch.arange(3.0)}, tmp_path / 'a.safetensors')
    assert read_checkpoint(tmp_path / 'a.safetensors')['a'].tolist() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth')
    assert read_checkpoint('~/a.pth')


# What follows is hostile. Each would leave a file behind if it ran.


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Global:
    """Pickles as a bare name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class NamingPickler(pickle._Pickler):
    """Writes :class:`Global` as the opcode that imports a name, whatever it is."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_global_by_name(self, obj):
        self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())

    dispatch[Global] = save_global_by_name


@all_writers
@pytest.mark.parametrize('attack', ['system', 'eval', 'exec', 'import', 'in the key', 'in the arguments'])
def test_nothing_runs(writer, attack, tmp_path):
    mark = tmp_path / 'ran'
    command = f'touch {mark}'
    system = Call(os.system, command)
    content, name = {
        'system': ({'state_dict': {'a': system}}, f'{os.system.__module__}.system'),
        'eval': ({'a': Call(eval, f'__import__("os").system({command!r})')}, 'builtins.eval'),
        'exec': ({'a': Call(exec, f'import os; os.system({command!r})')}, 'builtins.exec'),
        'import': ({'a': Call(__import__, 'os')}, 'builtins.__import__'),
        'in the key': ({system: 1}, 'system'),
        'in the arguments': ({'args': argparse.Namespace(lr=system)}, 'system'),
    }[attack]
    WRITERS[writer](content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / 'a.pth')
    assert not mark.exists()
    assert name in str(error.value) and 'a.pth' in str(error.value) and 'Rejected' in str(error.value)
    assert 'save only its weights' in str(error.value)


def test_the_attack_would_work(tmp_path):
    """Else the tests above could not fail."""
    mark = tmp_path / 'ran'
    pickle.loads(pickle.dumps(Call(os.system, f'touch {mark}')))
    assert mark.exists()


def test_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='needs torch.nn.modules.linear.Linear'):
        read_checkpoint(tmp_path / 'a.pth')


def test_scripted_model_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / 'a.pt'))
    with pytest.raises(CheckpointError, match='TorchScript archive, which contains code'):
        read_checkpoint(tmp_path / 'a.pt')


def dump(content, path):
    with open(path, 'wb') as file:
        NamingPickler(file, protocol=2).dump(content)


def op(*codes) -> bytes:
    return b'\x80\x02' + b''.join(codes) + b'.'


def name_op(module, name) -> bytes:
    return b'c' + f'{module}\n{name}\n'.encode()


def text(value) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


@pytest.mark.parametrize(
    'codes, message',
    [
        # attributes set on what the allow-list gives out: (None, {'function': ...}) would go through setattr
        (
            [
                name_op('torch._utils', '_rebuild_tensor_v2'),
                b'N',
                b'}',
                text('function'),
                b'K\x01',
                b's',
                b'\x86',
                b'b',
            ],
            'attributes for a Rebuild',
        ),
        ([name_op('torch', 'float32'), b'}', b'b'], 'attributes for a dtype'),
        # a call of what is data
        ([name_op('numpy', 'ndarray'), b')', b'R'], 'a call of <numpy.ndarray'),
        ([name_op('torch', 'float32'), b')', b'R'], 'a call of torch.float32'),
        ([text('os.system'), text('touch ran'), b'\x85', b'R'], "a call of 'os.system'"),
        ([name_op('argparse', 'Namespace'), b')', b'R', text('x'), b'\x85', b'R'], 'a call of <argparse.Namespace'),
        (
            [
                name_op('torch._tensor', '_rebuild_from_type_v2'),
                b'(',
                text('os.system'),
                b'N',
                text('touch ran'),
                b'\x85',
                b'N',
                b't',
                b'R',
            ],
            "a call of 'os.system'",
        ),
        (
            [name_op('copy_reg', '_reconstructor'), name_op('torch', 'Tensor'), b'N', b'N', b'\x87', b'R'],
            'a call of <torch.Tensor',
        ),
        ([name_op('torch', 'float32'), b'}', b'\x92'], 'corrupt'),
        ([b'(', name_op('torch', 'float32'), b'o'], 'a call of torch.float32'),
        ([b'(', b'itorch\nfloat32\n'], 'a call of torch.float32'),
        # names that reach further through dots, and the modules' other names
        ([name_op('torch', 'os.system')], 'needs torch.os.system'),
        ([name_op('torch._utils', '_rebuild_tensor_v2.__globals__')], 'needs'),
        ([name_op('numpy._core.multiarray', 'fromfile')], 'needs numpy.core.multiarray.fromfile'),
        ([name_op('__builtin__', 'eval')], 'needs builtins.eval'),
        ([name_op('torch', 'load')], 'needs torch.load'),
        ([name_op('numpy', 'load')], 'needs numpy.load'),
        ([name_op('torch.storage', '_load_from_bytes')], 'needs torch.storage._load_from_bytes'),
        ([name_op('mmengine.logging.history_buffer', 'np')], 'needs mmengine.logging.history_buffer.np'),
        ([name_op('functools', 'partial')], 'needs functools.partial'),
        # containers that are none
        ([name_op('torch', 'float32'), b'K\x01', b'a'], 'items for a dtype'),
        ([name_op('torch', 'float32'), b'(', b'K\x01', b'\x90'], 'items for a dtype'),
        ([name_op('torch', 'float32'), b'K\x01', b'K\x01', b's'], 'keys for a dtype'),
        # the registry of extensions, references outside the file, out-of-band buffers
        ([b'\x82\x01'], 'needs the pickle extension 1'),
        ([text('storage'), b'Q'], 'an unknown reference'),
        ([b'\x97'], 'corrupt'),
        # numpy: types with fields or objects, sizes that do not fit
        ([name_op('numpy', 'dtype'), text('O8'), b'\x85', b'R'], "type 'O8', expected numbers"),
        ([name_op('numpy', 'dtype'), text('f4,O'), b'\x85', b'R'], 'expected numbers'),
        (
            [
                name_op('numpy', 'dtype'),
                text('f4'),
                b'\x85',
                b'R',
                b'(',
                b'K\x03',
                text('>'),
                b'N',
                b'N',
                b'N',
                b't',
                b'b',
            ],
            'this byte order',
        ),
        (
            [
                name_op('numpy.core.multiarray', '_reconstruct'),
                b')',
                b'R',
                b'(',
                b'K\x01',
                b'K\x08',
                b'\x85',
                name_op('numpy', 'dtype'),
                text('f8'),
                b'\x85',
                b'R',
                b'\x89',
                name_op('_codecs', 'encode'),
                text('abc'),
                text('latin1'),
                b'\x86',
                b'R',
                b't',
                b'b',
            ],
            r'shape \(8,\) and type float64 with 3 bytes',
        ),
        (
            [
                name_op('numpy.core.multiarray', 'scalar'),
                name_op('numpy', 'dtype'),
                text('f8'),
                b'\x85',
                b'R',
                b'\x85',
                b'R',
            ],
            'a NumPy scalar of type float64 with 0 bytes',
        ),
        ([name_op('_codecs', 'encode'), text('abc'), text('rot13'), b'\x86', b'R'], "text encoding 'rot13'"),
    ],
)
def test_opcode_by_opcode(codes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pdparams').write_bytes(op(*codes))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint('a.pdparams')
    assert os.listdir(tmp_path) == ['a.pdparams']


def test_getattr_finds_nothing(tmp_path):
    """MMEngine's log buffers name it, so it is let through, as an empty shell."""
    (tmp_path / 'a.pth').write_bytes(
        op(b'}', text('a'), name_op('__builtin__', 'getattr'), text('x'), text('upper'), b'\x86', b'R', b's')
    )
    assert isinstance(read_checkpoint(tmp_path / 'a.pth')['a'], Opaque)


def write_zip(path, pickled: bytes, compression=zipfile.ZIP_STORED, **records):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', pickled)
        for name, data in records.items():
            archive.writestr(f'archive/{name}', data)


class Storage:
    """Pickles as a reference to 3 float32 values."""


class StoragePickler(NamingPickler):
    numel = 3

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return 'storage', Global('torch', 'FloatStorage'), '0', 'cpu', self.numel
        return None


@pytest.mark.parametrize(
    'args, message',
    [
        ((0, (4,), (1,)), 'over 3 stored values'),
        ((2, (2,), (1,)), 'over 3 stored values'),
        ((0, (2,), (3,)), 'over 3 stored values'),
        ((0, (10**12,), (0,)), 'over 3 stored values'),
        ((-1, (2,), (1,)), 'impossible tensor'),
        ((2, (2,), (-1,)), 'impossible tensor'),
        ((0, (2, 1), (1,)), 'impossible tensor'),
    ],
)
def test_tensor_outside_its_storage(args, message, tmp_path):
    class Tensor:
        pass

    pickled = io.BytesIO()
    pickler = StoragePickler(pickled, protocol=2)
    pickler.dispatch = {
        **pickler.dispatch,
        Tensor: lambda self, obj: self.save_reduce(
            Global('torch._utils', '_rebuild_tensor'), (Storage(), *args), obj=obj
        ),
    }
    # save_reduce asks that the function be callable
    Global.__call__ = None
    try:
        pickler.dump({'a': Tensor()})
    finally:
        del Global.__call__
    write_zip(tmp_path / 'a.pth', pickled.getvalue(), **{'data/0': bytes(12)})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'a.pth')


def test_files_that_announce_more_than_they_hold(tmp_path):
    """Each would otherwise set aside far more memory than it has bytes."""
    (tmp_path / 'a.pdparams').write_bytes(op(b'\x96', struct.pack('<Q', 2**50)))
    with pytest.raises(CheckpointError, match='corrupt or truncated'):
        read_checkpoint(tmp_path / 'a.pdparams')

    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    intact = (tmp_path / 'a.pth').read_bytes()
    assert intact.count(b'K\x02N') == 1  # two values, no view
    (tmp_path / 'a.pth').write_bytes(intact.replace(b'K\x02N', b'J\xff\xff\xff\x7fN'))
    with pytest.raises(CheckpointError, match='are larger than the'):
        read_checkpoint(tmp_path / 'a.pth')

    pickled = io.BytesIO()
    StoragePickler(pickled, protocol=2).dump({'a': Storage()})
    write_zip(tmp_path / 'b.pth', pickled.getvalue(), **{'data/0': bytes(10**5), 'data/1': bytes(1)})
    assert read_checkpoint(tmp_path / 'b.pth')['a'].shape == (25000,)
    intact = (tmp_path / 'b.pth').read_bytes()
    size = struct.pack('<II', 1, 1)  # data/1's, in the central directory: say that it is the long one
    at = intact.rindex(size)
    (tmp_path / 'b.pth').write_bytes(intact[:at] + struct.pack('<II', 10**5, 10**5) + intact[at + len(size) :])
    with pytest.raises(CheckpointError, match='records are larger than the file'):
        read_checkpoint(tmp_path / 'b.pth')


# Files that are no checkpoint.


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'<!DOCTYPE html>\n<html>', 'is a web page'),
        (b'\n <html><body>404', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS pointer.*git lfs pull'),
        (b'Not Found', "is text that begins with b'Not Found'"),
        (b'\x1f\x8b\x08\x00', 'compressed or tar archive'),
        (b'\x89PNG\r\n\x1a\n\x00\x00', 'neither a torch, a Paddle nor a safetensors'),
        (b'\x00' * 100, 'neither a torch'),
        (b'PK\x03\x04rest', 'corrupt or truncated'),
        (b'\x80\x02}', 'corrupt or truncated'),
        (b'\x80', 'corrupt or truncated'),
        (b'\x80\x09.', 'corrupt or truncated'),
        (pickle.dumps([1, 2]), 'contains a list, expected a dict'),
        (pickle.dumps(3), 'contains a int, expected a dict'),
    ],
)
def test_not_a_checkpoint(content, message, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_archives_are_not_checkpoints(tmp_path):
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth')
    with tarfile.open(tmp_path / 'a.pth.tar', 'w') as archive:
        archive.add(tmp_path / 'a.pth', 'a.pth')
    with pytest.raises(CheckpointError, match='compressed or tar archive.*unpack it'):
        read_checkpoint(tmp_path / 'a.pth.tar')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(tmp_path / 'a.pth', 'a.pth')
    with pytest.raises(CheckpointError, match='zip archive but not a torch checkpoint'):
        read_checkpoint(tmp_path / 'a.zip')
    write_zip(tmp_path / 'b.pth', pickle.dumps({}), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='compressed zip archive'):
        read_checkpoint(tmp_path / 'b.pth')
    write_zip(tmp_path / 'c.pth', pickle.dumps({}), byteorder='big' if sys.byteorder == 'little' else 'little')
    with pytest.raises(CheckpointError, match='another byte order'):
        read_checkpoint(tmp_path / 'c.pth')


def test_a_misspelt_name_of_published_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointNotFoundError, match=r'dwnet_tniy does not exist: did you mean published:dwnet_tiny o'
    ):
        read_checkpoint('dwnet_tniy')
    # A path is not one.
    with pytest.raises(CheckpointNotFoundError, match=r'dwnet_tiny/a.pth does not exist: give the path of one'):
        read_checkpoint('dwnet_tiny/a.pth')


def test_no_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r'nowhere.pth does not exist.*pretrained=None') as error:
        read_checkpoint(tmp_path / 'nowhere.pth')
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(CheckpointError, match='is a directory: give the path'):
        read_checkpoint(tmp_path)


def test_no_permission(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(13, 'Permission denied')

    (tmp_path / 'a.pth').write_bytes(b'PK')
    monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(CheckpointError, match='a.pth cannot be read: Permission denied'):
        read_checkpoint(tmp_path / 'a.pth')


def test_unknown_torch_format(tmp_path):
    """torch's old format says its version and byte order."""
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    intact = (tmp_path / 'a.pth').read_bytes()
    magic, version = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    assert intact.startswith(magic + version)
    (tmp_path / 'a.pth').write_bytes(magic + pickle.dumps(1002, 2) + intact[len(magic + version) :])
    with pytest.raises(CheckpointError, match='unknown torch format .protocol 1002'):
        read_checkpoint(tmp_path / 'a.pth')
    turned = pickle.dumps({'little_endian': sys.byteorder != 'little'}, 2)
    (tmp_path / 'a.pth').write_bytes(magic + version + turned)
    with pytest.raises(CheckpointError, match='unknown torch format .*little_endian'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('writer', ['torch', 'torch before 1.6', 'pickle 4'])
def test_interrupted_download(writer, tmp_path):
    """Cut anywhere, a file is corrupt; never half a state dict, never another exception."""
    content = (
        {'a': np.arange(200.0), 'b': np.ones((3, 4))}
        if writer == 'pickle 4'
        else {'a': torch.arange(200.0), 'b': torch.ones(3, 4)}
    )
    WRITERS[writer](content, tmp_path / 'a.pth')
    intact = (tmp_path / 'a.pth').read_bytes()
    for size in {4, 10, *range(20, len(intact), len(intact) // 40), len(intact) - 1}:
        (tmp_path / 'cut.pth').write_bytes(intact[:size])
        with pytest.raises(CheckpointError, match='corrupt or truncated'):
            read_checkpoint(tmp_path / 'cut.pth')


def test_flipped_bytes_never_give_another_exception(tmp_path):
    torch.save(
        {'a': torch.arange(20.0), 'args': argparse.Namespace(lr=1)},
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=False,
    )
    intact = (tmp_path / 'a.pth').read_bytes()
    random = np.random.RandomState(0)
    for _ in range(300):
        corrupt = bytearray(intact)
        corrupt[random.randint(len(intact))] = random.randint(256)
        (tmp_path / 'b.pth').write_bytes(corrupt)
        with contextlib.suppress(CheckpointError):
            read_checkpoint(tmp_path / 'b.pth')
