import json

import pytest
from harness import run_tool


def write_run(folder, values):
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    lines = [json.dumps({'loss': 1.0, 'step': 1}), *(json.dumps({'mIoU': v, 'step': s}) for s, v in values.items())]
    (logs / 'scalars.json').write_text('\n'.join(lines) + '\n{"mIoU": 9')
    return folder


def test_draws_runs_side_by_side(tmp_path):
    pytest.importorskip('matplotlib')
    runs = [write_run(tmp_path / 'a', {1: 10.5, 2: 20.0}), write_run(tmp_path / 'b', {1: 11.0})]
    done = run_tool('plot_metric.py', *runs, '--key', 'mIoU', '--out', tmp_path / 'out.png')
    assert 'a  1: 10.5  2: 20' in done.stdout and 'b  1: 11' in done.stdout
    assert (tmp_path / 'out.png').read_bytes().startswith(b'\x89PNG')
    done = run_tool('plot_metric.py', *runs, '--key', 'lost', '--out', tmp_path / 'lost.png', check=False)
    assert done.returncode == 1 and "has no 'lost': give one of loss, mIoU" in done.stdout
    assert not (tmp_path / 'lost.png').exists()
    done = run_tool('plot_metric.py', tmp_path, '--key', 'mIoU', '--out', tmp_path / 'lost.png', check=False)
    assert "has no 'mIoU': give the work directory of a run with logs" in done.stdout
