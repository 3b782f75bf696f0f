"""Networks are timed in turn, and the results are written."""

import pytest
import torch
from harness import run_tool

from fcvit_mm.errors import UserError

pytest.importorskip('timm')
pytest.importorskip('matplotlib')
SMALL = ['--size', '32', '--batch', '2', '--rounds', '2', '--warmup', '1', '--threads', '1']


def test_times_a_network_and_its_reference(results, tmp_path):
    names = ['fcvit_tiny_reference', 'fcvit_tiny_as_built']
    done = run_tool('benchmark/speed.py', '--networks', *names, *SMALL, '--no-memory', '--out', tmp_path / 'out')
    found = results(tmp_path / 'out')
    assert (tmp_path / 'out' / 'table.md').read_text() in done.stdout
    reference, ours = found['rows']
    assert (reference['kind'], ours['kind']) == ('reference', 'ours')
    assert [reference['label'], ours['label']] == names
    assert (reference['layout'], ours['layout']) == ('NCHW', 'channels_last')
    assert reference['params'] == ours['params'] == 4_784_752
    assert reference['multiply_adds'] == ours['multiply_adds'] > 1e7
    assert all(len(row['times']) == 2 for row in found['rows'])
    assert all(0 < row['matrix_share'] < 1 for row in found['rows'])
    assert found['ceilings']['bandwidth'] > 1e8 and found['machine']['threads'] == 1
    assert 'speed.py' in found['command'] and found['versions']['torch'] == torch.__version__
    assert reference['times_faster_than']['fcvit_tiny_reference']['median_of_ratios'] == 1


def test_times_other_networks_with_dtypes_and_a_profile(load, results, tmp_path, capsys):
    load('speed').main(
        [
            '--networks',
            'resnet50',
            'resnet50@bfloat16',
            '--baseline',
            'resnet50@bfloat16',
            *SMALL,
            '--no-memory',
            '--no-ceilings',
            '--profile',
            '--out',
            str(tmp_path),
        ]
    )
    peer, half = results(tmp_path)['rows']
    assert set(peer['layouts_tried']) == {'NCHW', 'channels_last'}
    assert peer['layout'] == min(peer['layouts_tried'], key=peer['layouts_tried'].get)
    assert (peer['dtype'], half['dtype']) == ('float32', 'bfloat16')
    assert 2 * half['traffic'] == peer['traffic']
    assert peer['kind'] == 'peer' and list(peer['times_faster_than']) == ['resnet50@bfloat16']
    assert 'peak_growth' not in peer and 'peak' not in capsys.readouterr().out
    assert 'aten::' in (tmp_path / 'profile.txt').read_text()


def test_times_training_steps_with_all_stages(load, results, tmp_path):
    load('speed').main(
        [
            '--networks',
            'fcvit_tiny',
            *SMALL,
            '--mode',
            'train',
            '--features',
            '--warmup',
            '0',
            '--rounds',
            '1',
            '--no-ceilings',
            '--no-memory',
            '--out',
            str(tmp_path),
        ]
    )
    found = results(tmp_path)
    assert found['title'] == 'Training step, batch 2, 32x32, all stages'
    assert 'traffic' not in found['rows'][0]


def test_unsupported_dtype_is_reported(load, tmp_path, monkeypatch):
    speed = load('speed')

    def prepare(*args):
        raise RuntimeError('"addmm_impl_cpu_" not implemented for \'Half\'')

    monkeypatch.setattr(speed, 'prepare', prepare)
    with pytest.raises(UserError, match='fcvit_tiny: PyTorch .* cannot run it in float16 on cpu .*another dtype'):
        speed.main(['--networks', 'fcvit_tiny', '--dtype', 'float16', *SMALL, '--out', str(tmp_path / 'out')])
