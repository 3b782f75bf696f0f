"""The kernels in Triton's interpreter, where there is no GPU.

The interpreter must be chosen before Triton is first imported, and another test, or a library that MMEngine imports,
may have done that: so the tests of this folder, and the common tests of every implementation, run in a new process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import python_path

import fcvit_mm.ops.triton as triton_ops

FOLDER = Path(__file__).parent
QUESTIONS = f'{FOLDER.parent / "test_implementations.py"}::test_agrees_with_the_reference'


@pytest.mark.skipif(
    not triton_ops.available() or triton_ops.support.INTERPRETED, reason='needs Triton 3.3 and torch 2.4'
)
def test_kernels_agree_with_the_references():
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TRITON_INTERPRET': '1', 'PYTHONPATH': python_path()}
    options = ('-q', '-p', 'no:cacheprovider', '-p', 'no:xdist')
    command = [sys.executable, '-m', 'pytest', *options, str(FOLDER), QUESTIONS]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert 'needs a GPU' not in done.stdout and ' passed' in done.stdout
