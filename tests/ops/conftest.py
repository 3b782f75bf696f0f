"""A fixture with which small maps meet the conditions for large ones."""

import importlib

import pytest

from fcvit_mm.ops import conditions, conv

# The package exports the operation under the module's name.
channel_mixer = importlib.import_module('fcvit_mm.ops.channel_mixer')


@pytest.fixture
def small_machine(monkeypatch):
    """Use slices and im2col for small maps and weights too, and treat this CPU as one without half precision."""
    monkeypatch.setattr(conv, 'MANY_WEIGHTS', 1)
    monkeypatch.setattr(channel_mixer, 'SLICE_BYTES', 2048)
    monkeypatch.setattr(channel_mixer, 'WIDE', 16)
    monkeypatch.setattr(channel_mixer, 'NARROW', 8)
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: dtype not in conditions.HALF)
