"""The output of the command, without warnings."""

import pytest
from harness import run_python

pytest.importorskip('mmcv')


def test_command(tmp_path):
    done = run_python('-m', 'fcvit_mm.mmcv_ext', 'status')
    assert done.returncode == 0 and 'operators' in done.stdout and 'RuntimeWarning' not in done.stderr
    done = run_python('-m', 'fcvit_mm.mmcv_ext', 'remove')
    assert done.returncode == 2 and "invalid choice: 'remove'" in done.stderr
