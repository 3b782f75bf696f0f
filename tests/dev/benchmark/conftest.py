"""Modules of dev/benchmark, imported as its commands do, and the results of a run."""

import importlib
import json
import sys

import pytest
from harness import ROOT

FILES = ['plot.png', 'results.json', 'table.md']


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of dev/benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / 'dev' / 'benchmark'))
    yield importlib.import_module
    if 'torch._inductor.config' in sys.modules:
        sys.modules['torch._inductor.config'].freezing = False  # commands set it for the complete process


@pytest.fixture
def results():
    """Return a function that reads the results that a run wrote to a folder."""

    def read(folder):
        assert sorted(path.name for path in folder.iterdir() if path.name != 'profile.txt') == FILES
        assert (folder / 'plot.png').read_bytes().startswith(b'\x89PNG')
        return json.loads((folder / 'results.json').read_text())

    return read
