import json

import pytest
from harness import call_tool, load_tool, run_tool

from fcvit_mm.errors import UserError


def write_run(folder, values):
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    lines = [json.dumps({'loss': 1.0, 'step': 1}), *(json.dumps({'mIoU': v, 'step': s}) for s, v in values.items())]
    (logs / 'scalars.json').write_text('\n'.join(lines) + '\n{"mIoU": 9')
    return folder


def test_metric_of_several_runs_is_plotted(tmp_path):
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


def test_runs_are_named_by_their_folders(tmp_path, monkeypatch, capsys):
    pytest.importorskip('matplotlib')
    runs = [write_run(tmp_path / name / 'run', {1: 10.5}) for name in 'ab']
    monkeypatch.chdir(runs[0])
    call_tool(load_tool('plot_metric.py'), ['.', '--key', 'mIoU', '--out', 'out.png'])
    assert capsys.readouterr().out == 'run  1: 10.5\n'
    call_tool(load_tool('plot_metric.py'), [*runs, '--key', 'mIoU', '--out', 'out.png'])
    assert capsys.readouterr().out == f'{runs[0]}  1: 10.5\n{runs[1]}  1: 10.5\n'
    with pytest.raises(UserError, match='--out is out.pdf, expected a file name ending in .png'):
        load_tool('plot_metric.py').parse_args(['.', '--key', 'mIoU', '--out', 'out.pdf'])
