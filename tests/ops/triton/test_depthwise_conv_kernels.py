"""The kernels, those of the global context too, compiled for a GPU that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcvit_mm.ops.triton import available, support

SCRIPT = Path(__file__).parents[3] / 'dev' / 'benchmark' / 'compile_kernels.py'


@pytest.mark.skipif(not available() or support.INTERPRETED, reason='needs Triton 3.3 and torch 2.4')
def test_kernels_compile(tmp_path):
    options = ['--channels', '320', '--kernel-sizes', '3', '--dtypes', 'bfloat16', '--capabilities', '80']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT), *options], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kernel in ('depthwise', 'depthwise_grad_weight', 'similarity', 'apply', 'grad_similarity', 'grad_map'):
        assert f'{kernel}_kernel' in done.stdout
