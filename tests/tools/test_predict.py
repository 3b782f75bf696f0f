"""tools/predict.py; tests/apis/predict tests its functions."""

import shutil

import pytest
from harness import run_tool


def test_detector_predicts_a_folder(trained, tmp_path):
    pytest.importorskip('mmdet')
    result = trained('detection')
    shutil.copytree(result.data / 'val2017', tmp_path / 'in')
    first = sorted((tmp_path / 'in').iterdir())[0]
    (tmp_path / 'in' / 'broken.jpg').write_bytes(first.read_bytes()[:200])
    arguments = (result.config, result.checkpoint, tmp_path / 'in', '--out', tmp_path / 'out', '--device', 'cpu')
    done = run_tool('predict.py', *arguments, '--batch-size', 2, '--workers', 1, '--score-thr', 0.1)
    assert 'results.json' in done.stdout and 'annotations.json' in done.stdout
    assert '1 of 6 images skipped' in done.stdout and 'images a second' in done.stdout
    assert 'cannot be decoded' in (tmp_path / 'out' / 'skipped.csv').read_text()
    done = run_tool('predict.py', *arguments, '--score-thr', 0.1)
    assert 'already contains the results of this run' in done.stdout and '1 of 6 images skipped' in done.stdout
    done = run_tool('predict.py', *arguments, check=False)
    assert done.returncode == 1 and 'contains results of another run, with different score_thr' in done.stdout
    assert 'Traceback' not in done.stdout
