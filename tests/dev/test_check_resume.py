"""dev/check_resume.py with a few killed and resumed runs of one task."""

import json
import subprocess

import pytest
from harness import LIBRARIES, run_tool


@pytest.fixture(scope='module')
def check(tmp_path_factory):

    def run(*arguments, check=True):
        out = tmp_path_factory.mktemp('check') / 'out.json'
        done = run_tool('../dev/check_resume.py', *arguments, '--out', out, check=check)
        return json.loads(out.read_text())['tasks'], done

    return run


def test_killed_and_resumed_runs_have_the_same_result(check):
    pytest.importorskip(LIBRARIES['classification'])
    found, done = check('classification', '--kills', 3, '--per-run', 3)
    counts = found.pop('classification')
    assert counts['kills'] == 3 and counts['failures'] == [] and not found
    assert '| task | SIGKILLs |' in done.stdout


def test_unknown_task_is_refused():
    done = run_tool('../dev/check_resume.py', 'tracking', check=False)
    assert isinstance(done, subprocess.CompletedProcess) and done.returncode == 1
    assert "unknown task 'tracking', expected some of ['classification', 'detection', 'segmentation']" in done.stdout


def test_output_path_is_checked_first(tmp_path):
    done = run_tool('../dev/check_resume.py', '--kills', 1, '--out', tmp_path, check=False)
    assert done.returncode == 1 and f'{tmp_path} could not be written: Is a directory' in done.stdout
