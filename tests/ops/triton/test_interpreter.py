"""The GPU kernels, in Triton's interpreter where there is no GPU.

The interpreter must be chosen before Triton is first imported, and another test may have done that: so the questions
stand in ``interpreted_triton_kernels.py``, which runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import library

import fcvit_mm.ops.triton as triton_ops

QUESTIONS = Path(__file__).with_name('interpreted_triton_kernels.py')


def run_python(*arguments, **environment):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **environment}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not triton_ops.available(), reason='needs Triton 3.3 and torch 2.4')
def test_kernels_agree_with_the_definitions():
    done = run_python(
        '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', str(QUESTIONS), TRITON_INTERPRET='1'
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_importing_the_package_imports_no_triton():
    code = 'import sys, fcvit_mm.ops.triton; print(sorted({"triton", "torch._dynamo"} & {*sys.modules}))'
    done = run_python('-c', code, TRITON_INTERPRET='0')
    assert done.stdout == '[]\n', done.stdout + done.stderr


def test_unsupported_tensors_are_left_to_the_definitions():
    assert not triton_ops.applies(torch.rand(1, 2, 3, 3))  # on the CPU, without the interpreter
    assert not triton_ops.applies(torch.rand(1, 2, 3, 3, dtype=torch.float64))


def test_a_torch_without_custom_operators_has_no_kernels(monkeypatch):
    monkeypatch.delattr(library, 'custom_op', raising=False)
    triton_ops.support.available.cache_clear()
    try:
        assert not triton_ops.available()
        function = triton_ops.support.custom_op('never_registered', None)(abs)
        assert function is abs
    finally:
        triton_ops.support.available.cache_clear()


@pytest.mark.skipif(not triton_ops.available(), reason='needs Triton 3.3 and torch 2.4')
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    script = Path(__file__).parents[2] / 'tools' / 'benchmark' / 'compile_kernels.py'
    done = run_python(
        str(script),
        '--channels',
        '320',
        '--kernel-sizes',
        '3',
        '--dtypes',
        'bfloat16',
        '--capabilities',
        '80',
        TRITON_INTERPRET='0',
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kernel in ('depthwise', 'depthwise_grad_weight', 'similarity', 'apply', 'grad_similarity', 'grad_map'):
        assert f'{kernel}_kernel' in done.stdout
