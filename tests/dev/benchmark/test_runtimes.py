"""Exported files and PyTorch are timed in turn."""

import json

import pytest
from harness import LIBRARIES, ROOT

from fcvit_mm.errors import UserError

#: Networks with one block per stage, whose tracing takes a second.
SMALL = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels=(16, 24, 32, 40), mlp_ratios=(2, 2, 2, 2)),
        kernel_sizes=(5,), drop_path_rate=0.0, init_cfg=None),
    {rest})
"""
REST = {
    'classification': 'head=dict(in_channels=40)',
    'detection': 'neck=dict(in_channels=[16, 24, 32, 40])',
}


@pytest.mark.parametrize(
    'task, base', [('classification', 'fcvit_tiny_shapes'), ('detection', 'mask_rcnn_fcvit_tiny_shapes')]
)
def test_files_are_written_once_and_timed(load, capsys, tmp_path, task, base):
    pytest.importorskip(LIBRARIES[task])
    config = tmp_path / 'small.py'
    config.write_text(SMALL.format(base=str(ROOT / 'configs' / task / f'{base}.py'), rest=REST[task]))
    given = [f'{config}@64x96', '--files', str(tmp_path), '--rounds', '1', '--warmup', '0']
    given += ['--out', str(tmp_path / 'a.json'), '--ways', 'pytorch', 'pytorch_optimized', 'torchscript']
    load('runtimes').main(given)
    assert f'writing {tmp_path}/small.pt' in capsys.readouterr().out
    load('runtimes').main(given)
    text = capsys.readouterr().out
    assert 'writing' not in text and '| small, 1 x 64x96' in text and '\n| torchscript | ' in text
    found = json.loads((tmp_path / 'a.json').read_text())['results']['small']
    assert list(found['seconds']) == ['pytorch', 'pytorch_optimized', 'torchscript']
    assert all(len(times) == 1 and times[0] > 0 for times in found['seconds'].values())
    assert (found['detections'] is not None) == (task == 'detection')


def test_invalid_rounds_are_refused(load, tmp_path):
    with pytest.raises(UserError, match='--rounds is 0, expected at least 1'):
        load('runtimes').main(['a.py', '--files', str(tmp_path), '--rounds', '0'])
