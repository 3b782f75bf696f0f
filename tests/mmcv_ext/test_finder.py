"""The operators are found in this process and in the environment; a compiled build is not changed."""

import importlib.machinery
import importlib.util

import pytest
from harness import run_python

from fcvit_mm.errors import UserError
from fcvit_mm.mmcv_ext import finder

pytest.importorskip('mmcv')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(finder, 'mmcv_folder', lambda: tmp_path)
    return tmp_path


def test_install_writes_one_module(folder):
    assert finder.install().endswith('_ext.py: operators from torchvision')
    assert [path.name for path in folder.iterdir()] == ['_ext.py']
    assert not finder.is_compiled()


def test_compiled_mmcv_is_not_touched(folder):
    library = folder / f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}'
    library.write_bytes(b'')
    assert finder.install().endswith('has its compiled operators: left as it is')
    assert list(folder.iterdir()) == [library]


def test_without_mmcv(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='mmcv is not installed: pip install onedl-mmcv'):
        finder.mmcv_folder()


@pytest.mark.parametrize('first', ['from mmcv.ops import nms', 'from mmdet.apis import init_detector; import mmcv.ops'])
def test_operators_are_found_in_any_import_order(first):
    if finder.is_compiled():
        pytest.skip('this mmcv has its compiled operators')
    code = f'{first}; import sys; print(sys.modules["mmcv._ext"].__name__)'
    done = run_python('-c', code)
    assert done.stdout.strip().endswith('fcvit_mm.mmcv_ext.operators'), done.stderr
