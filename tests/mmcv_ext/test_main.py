"""The command: what it says, and without a warning."""

import subprocess
import sys

import pytest

pytest.importorskip('mmcv')


def test_command(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'fcvit_mm.mmcv_ext', 'status'], capture_output=True, text=True)
    assert done.returncode == 0 and 'operators' in done.stdout and 'RuntimeWarning' not in done.stderr
    done = subprocess.run([sys.executable, '-m', 'fcvit_mm.mmcv_ext', 'remove'], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'remove'" in done.stderr
