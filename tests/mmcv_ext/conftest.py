"""The fixture that lets mmcv call our operators."""

import importlib
import sys

import pytest

from fcvit_mm.mmcv_ext import operators


@pytest.fixture
def our_operators(monkeypatch):
    """Let mmcv's operators call ours, whatever build of mmcv is installed."""
    importlib.import_module('mmcv.ops')
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', operators)
