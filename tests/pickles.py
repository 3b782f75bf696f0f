"""Writers of checkpoint files, and of pickles that would run code."""

import pickle
import struct
import zipfile

import pytest
import torch

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


class Call:
    """An object whose pickle calls ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Global:
    """An object whose pickle is a name in a module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class NamingPickler(pickle._Pickler):
    """A pickler that writes :class:`Global` as the opcode that imports a name, without any check."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_global_by_name(self, obj):
        self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())

    dispatch[Global] = save_global_by_name


def op(*codes) -> bytes:
    return b'\x80\x02' + b''.join(codes) + b'.'


def name_op(module, name) -> bytes:
    return b'c' + f'{module}\n{name}\n'.encode()


def text(value) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def write_zip(path, pickled: bytes, compression=zipfile.ZIP_STORED, **records):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', pickled)
        for name, data in records.items():
            archive.writestr(f'archive/{name}', data)


class Storage:
    """An object whose pickle is a reference to 3 float32 values."""


class StoragePickler(NamingPickler):
    numel = 3

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return 'storage', Global('torch', 'FloatStorage'), '0', 'cpu', self.numel
        return None
