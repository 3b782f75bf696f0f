"""Conditions that several tables share."""

from types import SimpleNamespace

import pytest
import torch

from fcvit_mm.ops import conditions
from fcvit_mm.ops.dispatch import operation


def test_needs_grad():
    x, leaf = torch.ones(1), torch.ones(1, requires_grad=True)
    assert conditions.needs_grad(x, leaf, None)
    assert not conditions.needs_grad(x, None)
    with torch.no_grad():
        assert not conditions.needs_grad(leaf)


def test_is_channels_last():
    x = torch.ones(2, 3, 4, 5)
    assert conditions.is_channels_last(x.contiguous(memory_format=torch.channels_last))
    assert not conditions.is_channels_last(x)
    assert conditions.is_channels_last(torch.ones(2, 1, 4, 5))  # one channel: both layouts


@pytest.fixture
def instructions(monkeypatch):
    """Set which half-precision instructions PyTorch reports for this CPU; None: this torch cannot report it."""

    def set_to(bfloat16, float16):
        values = dict(_is_mkldnn_bf16_supported=bfloat16, _is_mkldnn_fp16_supported=float16)
        present = {name: lambda value=value: value for name, value in values.items() if value is not None}
        monkeypatch.setattr(conditions.torch, 'ops', SimpleNamespace(mkldnn=SimpleNamespace(**present)))
        conditions.cpu_convolves.cache_clear()

    yield set_to
    conditions.cpu_convolves.cache_clear()


@pytest.mark.parametrize('bfloat16, float16', [(True, False), (False, True), (True, None)])
def test_cpu_without_half_precision(instructions, bfloat16, float16):
    instructions(bfloat16, float16)
    for dtype, fast in ((torch.float32, True), (torch.bfloat16, bfloat16), (torch.float16, bool(float16))):
        assert conditions.cpu_convolves(dtype) is fast
        assert conditions.lacks_half(torch.ones(1, dtype=dtype), None) is not fast
        assert not conditions.lacks_half(torch.ones(1, dtype=dtype, device='meta'))


def test_in_float32():
    seen = []

    @operation()
    def scale(x, factor, times, bias=None):
        seen.append((x.dtype, factor.dtype, times, bias))
        return x * factor * times

    result = conditions.in_float32(scale)(torch.ones(2).half(), torch.ones(2).half(), 3, None)
    assert result.dtype == torch.float16 and result.tolist() == [3, 3]
    assert seen == [(torch.float32, torch.float32, 3, None)]
