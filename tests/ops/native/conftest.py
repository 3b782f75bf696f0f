"""The kernels for each of this processor's instructions in turn."""

import pytest
import torch

from fcvit_mm.ops import native

HERE = torch.backends.cpu.get_cpu_capability()


@pytest.fixture(autouse=True, params=['AVX2', 'AVX512'] if HERE == 'AVX512' else [HERE])
def instructions(request):
    """Choose the kernels for these instructions, if there are kernels, and restore the choice afterwards."""
    if not native.available():
        yield request.param
        return
    before = native.instructions()
    torch.ops.fcvit_mm_cpu.choose_instructions(request.param)
    yield request.param
    torch.ops.fcvit_mm_cpu.choose_instructions(before)
