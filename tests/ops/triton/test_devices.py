"""Devices that run the kernels: each is tested once, and a failure is reported."""

import warnings

import pytest
import torch
from kernel_cases import DEVICE, launches_kernels, random
from torch import library

from fcvit_mm.ops.triton import applies, available, devices, support

in_interpreter = pytest.mark.skipif(support.INTERPRETED, reason='not about kernels: asked outside the interpreter')


@in_interpreter
def test_does_not_apply_on_a_cpu_or_in_float64():
    assert not applies(torch.rand(1, 2, 3, 3))
    assert not applies(torch.rand(1, 2, 3, 3, dtype=torch.float64), torch.rand(1))


@in_interpreter
@pytest.mark.parametrize('version, enough', [('3.2.1', False), ('3.3.0', True), ('4.0', True), ('odd', False)])
def test_needs_a_recent_version_of_triton(monkeypatch, version, enough):
    monkeypatch.setattr(library, 'infer_schema', None, raising=False)
    monkeypatch.setattr(devices.metadata, 'version', lambda name: version)
    monkeypatch.setattr(torch.version, 'hip', None)
    available.cache_clear()
    try:
        assert available() is enough
    finally:
        available.cache_clear()


@launches_kernels
def test_kernels_that_are_wrong_are_turned_off(monkeypatch):
    right = devices.depthwise_conv2d
    monkeypatch.setattr(devices, '_usable', {})
    monkeypatch.setattr(devices, 'depthwise_conv2d', lambda *args: right(*args) * 1.1)
    with pytest.warns(RuntimeWarning, match='11x11 convolution in bfloat16 is off'):
        assert not applies(random(1, 4, 2, 3))


@launches_kernels
def test_kernels_that_do_not_build_are_turned_off(monkeypatch):
    def fail(device):
        raise RuntimeError('ptxas died')

    x = random(1, 4, 2, 3)
    monkeypatch.setattr(devices, '_usable', {})
    monkeypatch.setattr(devices, '_smoke', fail)
    with pytest.warns(RuntimeWarning, match=f'cannot be built on {DEVICE}.*RuntimeError: ptxas died.*reference'):
        assert not applies(x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not applies(x)  # tried once, warned of once


@launches_kernels
def test_trial_ignores_inference_mode_and_autocast(monkeypatch):
    monkeypatch.setattr(devices, '_usable', {})
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        assert applies(torch.rand(1, 4, 2, 3, device=DEVICE))
        assert not applies(torch.rand(1, 4, 2, 3, device=DEVICE, dtype=torch.float64))
