"""Exported files beside PyTorch, in turn."""

import json

import pytest
from harness import LIBRARIES, ROOT

from fcvit_mm.errors import UserError


@pytest.mark.parametrize(
    'task, config',
    [
        ('classification', 'fcvit_tiny_shapes'),
        ('detection', 'mask_rcnn_fcvit_tiny_shapes'),
        ('segmentation', 'upernet_fcvit_tiny_shapes'),
    ],
)
def test_files_are_written_once_and_timed(load, capsys, tmp_path, task, config):
    pytest.importorskip(LIBRARIES[task])
    path = f'{ROOT / "configs" / task / config}.py@64x96'
    given = ['--files', str(tmp_path), '--rounds', '1', '--warmup', '0', '--out', str(tmp_path / 'a.json')]
    given += ['--ways', 'pytorch', 'pytorch_optimized', 'torchscript']
    load('runtimes').main([path, *given])
    assert f'writing {tmp_path / config}.pt' in capsys.readouterr().out
    load('runtimes').main([path, *given])
    text = capsys.readouterr().out
    assert 'writing' not in text and f'| {config}, 1 x 64x96' in text and '\n| torchscript | ' in text
    found = json.loads((tmp_path / 'a.json').read_text())['results'][config]
    assert list(found['seconds']) == ['pytorch', 'pytorch_optimized', 'torchscript']
    assert all(len(times) == 1 and times[0] > 0 for times in found['seconds'].values())
    assert (found['detections'] is not None) == (task == 'detection')


def test_what_cannot_be_timed(load, tmp_path):
    with pytest.raises(UserError, match='--rounds 0: expected at least 1'):
        load('runtimes').main(['a.py', '--files', str(tmp_path), '--rounds', '0'])
