"""The table of operators: all that the libraries call are there, with the compiled build's results."""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import ROOT
from mmcv_cases import CASES

from fcvit_mm.mmcv_ext import operators

mmcv = pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


@pytest.fixture(scope='module')
def recorded():
    with np.load(ROOT / 'tests' / 'data' / 'mmcv_ops.npz') as file:
        return dict(file)


@pytest.mark.parametrize('name', CASES)
def test_gives_what_the_compiled_build_gives(name, recorded):
    found = CASES[name]()
    expected = [recorded[f'{name}/{index}'] for index in range(len(found))]
    assert f'{name}/{len(found)}' not in recorded
    for got, want in zip(found, expected):
        torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=1e-4, atol=1e-5)


def test_reports_of_the_environment_name_the_operators():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'torchvision' in get_compiler_version() and get_compiling_cuda_version() == 'not compiled'


def test_the_table_names_each_operator_as_mmcv_does():
    for name, (function, computed_by) in operators.OPERATORS.items():
        assert function.__name__ == name and getattr(operators, name) is function
        assert computed_by in (operators.TORCHVISION, operators.PYTORCH, operators.MMCV)


IMPORTS = r'from (mmcv\.ops[\w.]*) import (\([^)]*\)|[^\n]*)'


#: Parts of mmcv.ops that some stock config names by its type, of those that the libraries' code does not import.
BY_TYPE = {'mmdet': {'MMSyncBN', 'DeformRoIPoolPack', 'SAC', 'DCNv2', 'carafe'}, 'mmseg': set()}


#: Operators of files that the libraries use for others: of quadrilaterals.
NOT_ASKED_FOR = r'\w*quadri'


def named_in_configs(package):
    """Return the parts of mmcv.ops that a library's stock configs name by their types."""
    from mmengine.registry import MODELS

    texts = [path.read_text(encoding='utf-8') for path in (package / '.mim' / 'configs').rglob('*.py')]
    types = {name for text in texts for name in re.findall(r"\btype='(?:mmcv\.)?(\w+)'", text)}
    parts = {name: MODELS.module_dict.get(name) or getattr(mmcv.ops, name, None) for name in sorted(types)}
    return {name: part for name, part in parts.items() if getattr(part, '__module__', '').startswith('mmcv.ops')}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_every_operator_that_the_library_imports_is_here(library):
    """Read from its code: what it imports of mmcv.ops, and which compiled operators the files of these ask for."""
    package = pytest.importorskip(library)
    files = [path for path in Path(package.__file__).parent.rglob('*.py') if '.mim' not in path.parts]
    found = [pair for path in files for pair in re.findall(IMPORTS, path.read_text(encoding='utf-8'))]
    parts = {(where, name.split(' as ')[0].strip()) for where, line in found for name in line.strip('()').split(',')}
    nms = 'line_nms' if hasattr(mmcv.ops, 'line_nms') else 'batched_nms'
    assert ('mmcv.ops', {'mmdet': nms, 'mmseg': 'PSAMask'}[library]) in parts
    named = named_in_configs(Path(package.__file__).parent)
    assert set(named) >= BY_TYPE[library]
    parts |= {(part.__module__, part.__name__) for part in named.values()}
    asked = set()
    for where, name in parts:
        if name:  # not after the last comma
            part = getattr(importlib.import_module(where), name)
            module = inspect.getmodule(getattr(part, '__self__', part))  # the class of a function's `apply`
            asked |= set(re.findall(r'ext_module\.(\w+)', inspect.getsource(module)))
    assert len(asked) > 5
    missing = {name for name in asked if name not in operators.OPERATORS and not re.fullmatch(NOT_ASKED_FOR, name)}
    assert not missing
