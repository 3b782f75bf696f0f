"""Recording the outputs of mmcv's compiled operators."""

import importlib

import numpy as np
import pytest
from harness import ROOT

from fcvit_mm.errors import UserError

pytest.importorskip('mmcv')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('record_mmcv_ops')


def test_all_cases_are_recorded(tool, monkeypatch, tmp_path):
    import mmcv_cases
    import torch

    monkeypatch.setattr(tool, 'is_compiled', lambda: True)
    monkeypatch.setattr(mmcv_cases, 'CASES', dict(one=lambda: [torch.ones(2), torch.zeros(3)]))
    tool.main(['--out', str(tmp_path / 'ops.npz')])
    with np.load(tmp_path / 'ops.npz') as file:
        assert {name: file[name].tolist() for name in file} == {'one/0': [1, 1], 'one/1': [0, 0, 0]}


def test_build_without_compiled_operators_is_refused(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, 'is_compiled', lambda: False)
    with pytest.raises(UserError, match='no compiled operators.*MMCV=compiled make setup'):
        tool.main(['--out', str(tmp_path / 'ops.npz')])
    assert not list(tmp_path.iterdir())
