"""Valid checkpoint files are read completely, others are refused with the reason."""

import argparse
import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torch.nn as nn
from pickles import WRITERS, Storage, StoragePickler, op, torch_only, write_zip

from fcvit_mm.checkpoints import CheckpointError, CheckpointNotFoundError, load_complete, read_checkpoint


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


def test_tensor_of_a_dtype_without_a_storage_class(tmp_path):
    if not hasattr(torch, 'uint16'):
        pytest.skip('needs torch 2.3')
    torch.save({'a': torch.tensor([1, 65535], dtype=torch.uint16)}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['a'].tolist() == [1, 65535]


def test_file_without_checksums(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('needs torch 2.6')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.arange(5)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / 'a.pth')['a'].tolist() == [0, 1, 2, 3, 4]


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
    # The length of the header comes first: 0x80, 0x0280 and 0x0380 look like pickles of protocols 0, 2 and 3.
    for length in (0x80, 0x280, 0x380, 0x480):
        for padding in range(length):
            save_file({'a': torch.arange(3.0)}, tmp_path / 'a.safetensors', {'padding': ' ' * padding})
            if (tmp_path / 'a.safetensors').read_bytes()[:8] == length.to_bytes(8, 'little'):
                break
        else:
            pytest.fail(f'no header of {length} bytes')
        assert read_checkpoint(tmp_path / 'a.safetensors')['a'].tolist() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth')
    assert read_checkpoint('~/a.pth')


def test_scripted_model_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / 'a.pt'))
    with pytest.raises(CheckpointError, match='TorchScript archive, which contains code'):
        read_checkpoint(tmp_path / 'a.pt')


def test_files_that_declare_more_data_than_they_contain(tmp_path):
    """Otherwise reading them would allocate far more memory than they have bytes."""
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


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'<!DOCTYPE html>\n<html>', 'is a web page'),
        (b'\n <html><body>404', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS pointer.*git lfs pull'),
        (b'Not Found', "is text that begins with b'Not Found'"),
        (b'\x1f\x8b\x08\x00', 'compressed or tar archive'),
        (b'\x89PNG\r\n\x1a\n\x00\x00', 'expected a torch, Paddle or safetensors checkpoint: give the file'),
        (b'\x00' * 100, 'expected a torch, Paddle'),
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


def test_misspelt_name_of_published_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointNotFoundError, match=r'dwnet_tniy does not exist: did you mean published:dwnet_tiny o'
    ):
        read_checkpoint('dwnet_tniy')
    # A path is not one.
    with pytest.raises(CheckpointNotFoundError, match=r'dwnet_tiny/a.pth does not exist: give the path of one'):
        read_checkpoint('dwnet_tiny/a.pth')


@pytest.mark.parametrize('path', ['/dev/null', 'pipe'])
def test_devices_and_pipes_are_refused(path, tmp_path, monkeypatch):
    """Opening a pipe that nobody writes to would wait for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo('pipe')
    with pytest.raises(CheckpointError, match=f'{path} is a device, pipe or socket, expected a regular file'):
        read_checkpoint(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r'nowhere.pth does not exist: .*lists them\)$') as error:
        read_checkpoint(tmp_path / 'nowhere.pth')
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(CheckpointError, match='is a directory: give the path of a checkpoint file in it$'):
        read_checkpoint(tmp_path)
    (tmp_path / '.metadata').touch()
    with pytest.raises(CheckpointError, match='distributed format: .* dcp_to_torch .* FILE, and give that file$'):
        read_checkpoint(tmp_path)


def test_pointer_files_and_folders_name_a_checkpoint(tmp_path):
    for name in ('epoch_1.pth', 'epoch_2.pth', 'model-00001-of-00002.bin'):
        torch.save({'a': torch.ones(1)}, tmp_path / name)
    os.utime(tmp_path / 'epoch_1.pth', (0, 0))
    with pytest.raises(CheckpointError, match=r'a checkpoint file in it, such as .*epoch_2\.pth$'):
        read_checkpoint(tmp_path)
    pointer = tmp_path / 'last_checkpoint'
    for content in (str(tmp_path / 'epoch_1.pth'), 'epoch_1.pth\n', '/moved/epoch_1.pth'):
        pointer.write_text(content)
        with pytest.raises(CheckpointError, match=r'is not a checkpoint, but names one: give .*epoch_1\.pth$'):
            read_checkpoint(pointer)
        with pytest.raises(CheckpointError, match=r'such as .*epoch_1\.pth$'):
            read_checkpoint(tmp_path)
    pointer.write_text('gone.pth')
    with pytest.raises(CheckpointError, match="is text that begins with b'gone.pth', not a checkpoint"):
        read_checkpoint(pointer)


def test_sharded_checkpoints(tmp_path):
    weights = {name: torch.full((1,), float(number)) for number, name in enumerate('abc')}
    files = dict(a='model-00001-of-00002.bin', b='model-00002-of-00002.bin', c='model-00001-of-00002.bin')
    for file in set(files.values()):
        torch.save({name: weights[name] for name in files if files[name] == file}, tmp_path / file)
    index = tmp_path / 'model.bin.index.json'
    index.write_text(json.dumps(dict(metadata={}, weight_map=files)))
    assert read_checkpoint(index) == weights
    with pytest.raises(CheckpointError, match='is a directory: .* such as .*index.json'):
        read_checkpoint(tmp_path)
    model = nn.ParameterDict({name: torch.zeros(1) for name in weights})
    load_complete(model, str(index))
    assert {name: value.item() for name, value in model.items()} == dict(a=0, b=1, c=2)
    with pytest.raises(
        CheckpointError, match=r'1 of 3 values are missing \(b\)\. It is a part of a checkpoint: give the'
    ):
        load_complete(model, str(tmp_path / files['a']))
    (tmp_path / files['a']).unlink()
    with pytest.raises(CheckpointNotFoundError, match='model-00001-of-00002.bin does not exist'):
        read_checkpoint(index)
    for text in ('{"weight_map": []}', '[1]', 'x', '{"weight_map": {"a": 1}}', '[' * 100_000):
        index.write_text(text)
        with pytest.raises(CheckpointError, match='is not the index of a sharded checkpoint'):
            read_checkpoint(index)
    index.write_text(json.dumps(dict(weight_map={'a': index.name})))
    with pytest.raises(CheckpointError, match='names the index .*, expected files with weights: download it again'):
        read_checkpoint(index)


def test_unreadable_file(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(13, 'Permission denied')

    (tmp_path / 'a.pth').write_bytes(b'PK')
    monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(CheckpointError, match='a.pth cannot be read .Permission denied.: check the permissions'):
        read_checkpoint(tmp_path / 'a.pth')


def test_unknown_torch_format(tmp_path):
    """torch's old format states its version and byte order."""
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
def test_truncated_files_are_refused(writer, tmp_path):
    """A file truncated anywhere is reported as corrupt; it gives no partial state dict and no other exception."""
    content = (
        {'a': np.arange(200.0), 'b': np.ones((3, 4))}
        if writer == 'pickle 4'
        else {'a': torch.arange(200.0), 'b': torch.ones(3, 4)}
    )
    WRITERS[writer](content, tmp_path / 'a.pth')
    intact = (tmp_path / 'a.pth').read_bytes()
    ends = range(len(intact) - 60, len(intact))  # also where values of the last tensor are missing, but none is cut
    for size in {4, 10, *range(20, len(intact), len(intact) // 40), *ends}:
        (tmp_path / 'cut.pth').write_bytes(intact[:size])
        with pytest.raises(CheckpointError, match='corrupt or truncated'):
            read_checkpoint(tmp_path / 'cut.pth')


def test_changed_bytes_raise_no_other_exception(tmp_path):
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
