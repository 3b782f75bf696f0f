"""tools/convert_checkpoint.py; tests/checkpoints/test_convert.py tests the conversion."""

import os
from functools import partial

import pytest
import torch
from harness import ROOT, call_tool, load_tool, run_python
from reference import published

from fcvit_mm.checkpoints import CheckpointExistsError, CheckpointNotFoundError

TOOL = ROOT / 'tools' / 'convert_checkpoint.py'
main = partial(call_tool, load_tool('convert_checkpoint.py'))


@pytest.fixture
def source(tmp_path) -> str:
    torch.save({'state_dict': published(), 'epoch': 299}, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def test_summary_is_printed(source, tmp_path, capsys):
    main([source, str(tmp_path / 'out.pth')])
    output = capsys.readouterr().out
    assert 'network  FCViT\n' in output and 'task     classifier\n' in output and 'epoch    299\n' in output
    assert f'written to {tmp_path / "out.pth"}' in output
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['meta']['source_file'] == 'a.pth'


def test_ema_weights_are_converted(tmp_path, capsys):
    averaged = {key: torch.full_like(value, 2) for key, value in published().items()}
    torch.save({'state_dict': published(), 'state_dict_ema': averaged}, tmp_path / 'a.pth')
    main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth'), '--ema'])
    assert 'averaged (EMA) weights, state_dict_ema' in capsys.readouterr().out
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['head.fc.bias'].eq(2).all()


def test_existing_file_is_overwritten_only_with_force(source, tmp_path):
    (tmp_path / 'out.pth').write_text('precious')
    with pytest.raises(CheckpointExistsError, match='out.pth already exists: give another name, or --force'):
        main([source, str(tmp_path / 'out.pth')])
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    main([source, str(tmp_path / 'out.pth'), '--force'])
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'out.pth']


def test_missing_source_is_refused(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match='nowhere.pth does not exist: give the path of one'):
        main([str(tmp_path / 'nowhere.pth'), str(tmp_path / 'out.pth')])


def test_command_has_exit_status_and_message(source, tmp_path):
    command = [str(TOOL), 'a.pth', 'out.pth']
    done = run_python(*command, cwd=tmp_path)
    assert done.returncode == 0 and 'written to out.pth' in done.stdout, done.stderr
    done = run_python(*command, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith('convert_checkpoint.py: out.pth already exists')
    assert 'Traceback' not in done.stderr
