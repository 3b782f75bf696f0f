"""Each reader of checkpoints with each kind of invalid file; each kind has its own message."""

import os
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import fcvit_mm
from fcvit_mm.checkpoints import CheckpointError, check_fits, convert_checkpoint, load_complete
from fcvit_mm.engine.run import keep_seed
from fcvit_mm.preflight.checkpoints import checkpoint_problems, resume_problems
from fcvit_mm.preflight.checks import PreflightError

ARCH = dict(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16), mlp_ratios=(1, 1, 1, 1))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def state_dict(**changes):
    return fcvit_mm.FCViT(dict(ARCH, **changes)).state_dict()


def cut(path):
    torch.save({'state_dict': state_dict()}, path)
    path.write_bytes(path.read_bytes()[:20000])


def with_nan():
    state = state_dict()
    state['stages.2.blocks.0.norm1.weight'].fill_(float('nan'))
    return state


#: Function that writes the file, and the message of every reader.
UNREADABLE = {
    'pickle that runs code': (
        lambda path: torch.save({'state_dict': {'a': Bomb(path.parent / 'boom')}}, path),
        'mkdir, which is not plain data .* Rejected',
    ),
    'truncated': (cut, r'\(20000 bytes\) is corrupt or truncated'),
    'empty': (lambda path: path.write_bytes(b''), r'is empty \(0 bytes\)'),
    'text': (lambda path: path.write_text('state_dict of FCViT'), "is text that begins with b'state_dict of FCViT'"),
    'NumPy values in another byte order': (
        lambda path: torch.save({'state_dict': state_dict(), 'loss': np.arange(3.0).astype('>f8')}, path),
        'contains NumPy values with the properties .*expected numbers of at most 8 bytes in the byte order of this',
    ),
    'NumPy values of 16 bytes': (
        lambda path: torch.save({'state_dict': state_dict(), 'loss': np.arange(3, dtype=np.longdouble)}, path),
        "contains NumPy values of type 'f16', expected numbers of at most 8 bytes",
    ),
    'NaN': (
        lambda path: torch.save({'state_dict': with_nan()}, path),
        r'contains NaN or infinite values in 1 of \d+ tensors \(stages.2.blocks.0.norm1.weight\)',
    ),
}
#: The same for readers that know the expected network.
UNSUITABLE = {
    'another network': (
        lambda path: torch.save({'state_dict': nn.Linear(2, 2).state_dict()}, path),
        'has nothing in common with',
    ),
    'another variant': (
        lambda path: torch.save(state_dict(depths=(1, 2, 1, 1)), path),
        r'is FCViT with depths \(1, 2, 1, 1\) .* the backbone is FCViT with depths \(1, 1, 1, 1\)',
    ),
    'other shapes': (
        lambda path: torch.save(state_dict(mlp_ratios=(2, 1, 1, 1)), path),
        r'4? ?shapes differ: '
        r'stages.0.blocks.0.channel_mixer.fc1.weight is \(16, 8, 1, 1\) in the file and \(8, 8, 1, 1\) in the backbone',
    ),
    'quantized': (
        lambda path: torch.save({key: value.to(torch.int8) for key, value in state_dict().items()}, path),
        'stores weights as torch.int8.*give the checkpoint from before the quantization',
    ),
}


def init_cfg(path):
    backbone = fcvit_mm.FCViT(ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()


def convert(path):
    convert_checkpoint(str(path), str(path.parent / 'out.pth'))


def train(path):
    """Check the file as tools/train.py --resume does first."""
    raise PreflightError(resume_problems(Config(dict(load_from=str(path)))))


def test(path):
    """Check the file as tools/test.py and tools/visualize.py do."""
    raise PreflightError(checkpoint_problems(Config(), str(path), 'the checkpoint'))


test.__test__ = False
READERS = {'init_cfg': init_cfg, 'converter': convert, 'train --resume': train, 'test, visualize': test}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('kind', UNREADABLE)
def test_invalid_files_are_refused(kind, reader, tmp_path):
    write, message = UNREADABLE[kind]
    path = tmp_path / 'a.pth'
    write(path)
    with pytest.raises((CheckpointError, PreflightError), match=f'(?s)a.pth .*{message}') as caught:
        READERS[reader](path)
    assert sorted(os.listdir(tmp_path)) == ['a.pth']
    # The messages of other kinds do not match.
    others = [other for name, (_, other) in UNREADABLE.items() if name != kind]
    assert not any(re.search(other, str(caught.value)) for other in others)


@pytest.mark.parametrize('kind', UNSUITABLE)
def test_unsuitable_weights_are_refused(kind, tmp_path):
    write, message = UNSUITABLE[kind]
    write(tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'a.pth .*{message}'):
        init_cfg(tmp_path / 'a.pth')


def test_check_fits_refuses_weights_of_another_model(tmp_path):
    torch.save({'state_dict': state_dict(depths=(1, 2, 1, 1))}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'\(a, b; it has stem\.proj\.weight, .* more\)\. Give the config that'):
        check_fits(nn.ParameterDict(dict(a=torch.ones(1), b=torch.ones(1))), str(tmp_path / 'a.pth'))
    with pytest.raises(CheckpointError, match='a.pth does not fit the config: .* have another shape'):
        check_fits(fcvit_mm.FCViT(dict(ARCH, mlp_ratios=(2, 1, 1, 1))), str(tmp_path / 'a.pth'))
    torch.save({'optimizer': {}, 'epoch': 1}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='contains no weights, only optimizer, epoch: give the file with'):
        check_fits(nn.ParameterDict(dict(a=torch.ones(1))), str(tmp_path / 'a.pth'))


def test_check_fits_refuses_weights_of_a_deeper_variant(tmp_path):
    model = nn.ModuleDict(dict(backbone=fcvit_mm.FCViT(ARCH, out_indices=(0, 1))))
    for depths, fits in (((1, 2, 1, 1), False), ((1, 1, 2, 1), True)):  # the model has the first two stages
        weights = {f'backbone.{name}': value for name, value in state_dict(depths=depths).items()}
        torch.save({'state_dict': weights}, tmp_path / 'a.pth')
        expected = pytest.raises(CheckpointError, match=r'1 more blocks \(backbone\.stages\.1\.blocks\.1\), as another')
        with nullcontext() if fits else expected:
            load_complete(model, str(tmp_path / 'a.pth'))


def test_reading_the_seed_runs_no_code(tmp_path):
    UNREADABLE['pickle that runs code'][0](tmp_path / 'a.pth')
    from mmengine.config import Config

    with pytest.raises(CheckpointError, match='Rejected'):
        keep_seed(Config(dict(resume=True, load_from=str(tmp_path / 'a.pth'))))
    assert not (tmp_path / 'boom').exists()


def test_complete_weights_in_any_container(tmp_path):
    weights = state_dict()
    for content in ({'model': weights, 'args': None}, {'model': {f'_orig_mod.{key}': weights[key] for key in weights}}):
        torch.save(content, tmp_path / 'a.pth')
        model = fcvit_mm.FCViT(ARCH)
        load_complete(model, str(tmp_path / 'a.pth'))
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match='a.pth does not fit the config'):
        load_complete(fcvit_mm.FCViT(dict(ARCH, mlp_ratios=(2, 1, 1, 1))), str(tmp_path / 'a.pth'))
