"""Pickles: plain data and arrays are read, and code in a malicious file does not run."""

import argparse
import io
import os
import pathlib
import pickle
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
import torch.nn as nn
from pickles import WRITERS, Call, Global, Storage, StoragePickler, all_writers, name_op, op, text, write_zip

from fcvit_mm.checkpoints import CheckpointError, read_checkpoint
from fcvit_mm.checkpoints.unpickler import Opaque, RestrictedUnpickler, strided


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
def test_training_arguments_become_opaque_objects(writer, tmp_path):
    content = {'args': argparse.Namespace(lr=0.1, out=pathlib.Path('a/b')), 'out': pathlib.Path('a/b'), 'epoch': 3}
    WRITERS[writer](content, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['epoch'] == 3
    assert isinstance(read['args'], Opaque) and isinstance(read['out'], Opaque)
    assert 'Namespace' in repr(read['args'])


@all_writers
@pytest.mark.parametrize('attack', ['system', 'eval', 'exec', 'import', 'in the key', 'in the arguments'])
def test_code_does_not_run(writer, attack, tmp_path):
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


def test_attack_works_with_pickle(tmp_path):
    """Otherwise the tests above could not fail."""
    mark = tmp_path / 'ran'
    pickle.loads(pickle.dumps(Call(os.system, f'touch {mark}')))
    assert mark.exists()


def test_quantized_weights_are_refused(tmp_path):
    """For weights quantized by torch.ao, the message asks for the float checkpoint."""
    weights = {'conv.weight': torch.quantize_per_tensor(torch.rand(2, 3, 1, 1), 0.1, 0, torch.qint8)}
    torch.save({'state_dict': weights}, tmp_path / 'a.pth')
    with pytest.raises(
        CheckpointError,
        match=r'a.pth contains quantized weights \(torch.*qtensor\), expected those of a network in float: give the '
        'checkpoint that was quantized; tools/export.py --int8 writes an 8-bit file from it$',
    ):
        read_checkpoint(tmp_path / 'a.pth')


def test_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='needs torch.nn.modules.linear.Linear'):
        read_checkpoint(tmp_path / 'a.pth')


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
            'the byte order of this machine',
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
            r"a NumPy scalar of type dtype\('float64'\) with 0 bytes",
        ),
        ([name_op('_codecs', 'encode'), text('abc'), text('rot13'), b'\x86', b'R'], "text encoding 'rot13'"),
    ],
)
def test_malicious_opcodes_are_refused(codes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pdparams').write_bytes(op(*codes))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint('a.pdparams')
    assert os.listdir(tmp_path) == ['a.pdparams']


def test_getattr_becomes_an_opaque_object(tmp_path):
    """Log buffers of MMEngine refer to getattr, so it is read as an object without a function."""
    (tmp_path / 'a.pth').write_bytes(
        op(b'}', text('a'), name_op('__builtin__', 'getattr'), text('x'), text('upper'), b'\x86', b'R', b's')
    )
    assert isinstance(read_checkpoint(tmp_path / 'a.pth')['a'], Opaque)


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


def nested(kind, levels=60):
    """A few hundred bytes that describe 2^60 values: each level contains the one below it twice."""
    value = kind()
    for _ in range(levels):
        value = {'a': value, 'b': value} if kind is dict else kind([value, value])
    return value


def containing_itself():
    value = []
    value.append(value)
    return value


_DOUBLED = b'K\x00' + b'2\x86' * 60  # DUP, TUPLE2
ENDLESS = {
    'list': pickle.dumps(nested(list)),
    'dict': pickle.dumps(nested(dict)),
    'tuple': pickle.dumps(nested(tuple)),
    'list that contains itself': pickle.dumps(containing_itself()),
    'deep list': b'\x80\x02' + b']' * 1000 + b'a' * 999 + b'.',
    'key': b'\x80\x02}' + _DOUBLED + b'K\x00s.',
    'set': b'\x80\x04\x8f(' + _DOUBLED + b'\x90.',
    'called': b'\x80\x02' + _DOUBLED + b')R.',
    'tuple from a list': b'\x80\x02K\x00' + b'q\x00cbuiltins\ntuple\n]h\x00ah\x00a\x85R' * 60 + b'.',
    'frozenset': b'\x80\x04K\x00' + b'q\x00(h\x00(h\x00\x91\x91' * 60 + b'q\x01}h\x01K\x00s.',
    'frozenset from a list': b'\x80\x02K\x00'
    + b'q\x00cbuiltins\nfrozenset\n]h\x00ah\x00\x85a\x85R' * 60
    + b'q\x01}h\x01K\x00s.',
}


@pytest.mark.parametrize('name', ENDLESS)
def test_values_without_end_are_refused(name):
    """At once: hashing, converting to text or walking over them would not end."""
    with pytest.raises(CheckpointError, match='a.pth contains more than 10000000 values or 100 levels of dicts and'):
        RestrictedUnpickler(io.BytesIO(ENDLESS[name]), 'a.pth').load()


def test_messages_about_values_are_short():
    value = nested(list, 40)
    with pytest.raises(ValueError, match=r'a tensor without a storage: \[\[\[.{,100}$'):
        strided(value, 0, (), ())
