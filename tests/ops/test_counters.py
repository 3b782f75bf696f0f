"""PyTorch's counter of operations counts the compiled operators, too."""

import os
import subprocess
import sys

import pytest
import torch
from harness import python_path
from networks import NETWORKS, build, images
from operations import counts_flops

import fcvit_mm
from fcvit_mm.ops import conditions, use_ops

flop_counter = pytest.importorskip('torch.utils.flop_counter')


@counts_flops
@pytest.mark.parametrize('name', ['fcvit', 'dwnet'])
@torch.no_grad()
def test_flops_agree_with_the_reference(name):
    model = build(NETWORKS[name]).eval()

    def count():
        with flop_counter.FlopCounterMode(display=False) as counter:
            model(images(64, 64))
        return counter.get_total_flops()

    with use_ops('reference'):
        expected = count()
    # The similarity is counted as the matrix products that it is only where it is computed so.
    assert expected <= count() <= 1.05 * expected


@counts_flops
def test_formula_registered_later_reaches_the_counter():
    operator = torch.ops.aten.frac
    assert operator not in flop_counter.flop_registry
    try:
        conditions.register_flops(operator)
        assert operator in flop_counter.flop_registry
    finally:
        flop_counter.flop_registry.pop(operator, None)
        conditions._counted[:] = [pair for pair in conditions._counted if pair[0] is not operator]


def test_formulas_are_registered_when_the_counter_is_imported():
    """A network alone imports neither the counter nor Triton, which takes 50 MiB that CPUs do not need."""
    code = """
import importlib.util, sys
import torch, mmengine.model
before = 'triton' in sys.modules  # MMEngine imports transformers, if installed, which imports much else
import fcvit_mm
model = fcvit_mm.FCViT('tiny').eval()
assert before or 'triton' not in sys.modules, 'Triton was imported'
importlib.util.find_spec('torch.utils.flop_counter')  # to look is not to import
from torch.utils.flop_counter import FlopCounterMode
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    model(torch.zeros(1, 3, 32, 32))
print(counter.get_total_flops())
"""
    env = {**os.environ, 'PYTHONPATH': python_path()}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
        fcvit_mm.FCViT('tiny').eval()(torch.zeros(1, 3, 32, 32))
    assert int(done.stdout.split()[-1]) == counter.get_total_flops() > 0
