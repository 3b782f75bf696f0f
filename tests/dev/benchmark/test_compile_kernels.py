"""The Triton kernels can be compiled for a GPU on a machine without one."""

import pytest
from harness import run_tool

from fcvit_mm.ops import triton

pytestmark = pytest.mark.skipif(not triton.available(), reason='needs Triton 3.3 and torch 2.5')


def test_kernels_compile_without_a_gpu(tmp_path):
    arguments = ['--channels', '320', '--kernel-sizes', '3', '--dtypes', 'bfloat16', '--capabilities', '80']
    env = dict(TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(tmp_path))
    done = run_tool('benchmark/compile_kernels.py', *arguments, env=env)
    for kernel in (
        'depthwise',
        'depthwise_grad_weight',
        'similarity',
        'apply',
        'grad_similarity',
        'grad_map',
        'statistics',
        'normalize',
        'grad_sums',
        'add_scaled',
        'add_scaled_grad',
    ):
        assert f'{kernel}_kernel' in done.stdout
    assert ', 0 of them spill' in done.stdout
