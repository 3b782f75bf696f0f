"""The table of operators has all that the libraries call, with the results of the compiled build."""

import importlib
import inspect
import re
from pathlib import Path

import mmcv_cases
import numpy as np
import pytest
import torch
from harness import ROOT
from mmcv_cases import CASES
from pretended_gpu import pretended_gpu

from fcvit_mm.mmcv_ext import operators

mmcv = pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


@pytest.fixture(scope='module')
def recorded():
    with np.load(ROOT / 'tests' / 'data' / 'mmcv_ops.npz') as file:
        return dict(file)


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_compiled_build(name, recorded):
    found = CASES[name]()
    expected = [recorded[f'{name}/{index}'] for index in range(len(found))]
    assert f'{name}/{len(found)}' not in recorded
    for got, want in zip(found, expected):
        torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=1e-4, atol=1e-5)


def gradients(function, *inputs):
    leaves = [x.requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output.sum(), leaves)]


def points(device):
    return torch.rand(2, 10, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0)).to(device)


#: Operators without a case of their own, by a function of the device: of regions, classes and maps of CASES' kind.
MORE = {
    'sigmoid_focal_loss': lambda device: gradients(
        lambda x: mmcv.ops.sigmoid_focal_loss(x, torch.tensor([0, 3, 1], device=device), 2.0, 0.25, None, 'none'),
        torch.linspace(-2, 2, 9, device=device).view(3, 3),
    ),
    'softmax_focal_loss': lambda device: gradients(
        lambda x: mmcv.ops.softmax_focal_loss(x, torch.tensor([0, 2, 1], device=device), 2.0, 0.25, None, 'none'),
        torch.linspace(-2, 2, 9, device=device).view(3, 3),
    ),
    'roi_pool': lambda device: gradients(
        lambda x: mmcv.ops.roi_pool(x, torch.tensor([[0.0, 1, 1, 12, 9]], device=device), 2, 0.5),
        torch.linspace(-2, 2, 144, device=device).view(1, 2, 8, 9),
    ),
    'deform_roi_pool': lambda device: gradients(
        lambda x, offset: mmcv.ops.deform_roi_pool(
            x, torch.tensor([[0.0, 1, 1, 12, 9]], device=device), offset, (2, 2), 0.5, 2
        ),
        torch.linspace(-2, 2, 144, device=device).view(1, 2, 8, 9),
        torch.full((1, 2, 2, 2), 0.1, device=device),
    ),
    'carafe': lambda device: gradients(
        lambda x, masks: mmcv.ops.carafe(x, masks.softmax(1), 3, 1, 2),
        torch.linspace(-2, 2, 40, device=device).view(1, 2, 4, 5),
        torch.linspace(-1, 1, 720, device=device).view(1, 9, 8, 10),
    ),
    'carafe_naive': lambda device: gradients(
        lambda x, masks: mmcv.ops.carafe_naive(x, masks.softmax(1), 3, 1, 2),
        torch.linspace(-2, 2, 40, device=device).view(1, 2, 4, 5),
        torch.linspace(-1, 1, 720, device=device).view(1, 9, 8, 10),
    ),
    'masked_conv2d': lambda device: [
        mmcv.ops.masked_conv2d(
            torch.linspace(-2, 2, 40, device=device).view(1, 2, 4, 5),
            (torch.arange(20, device=device) % 3 == 0).view(1, 4, 5),
            torch.linspace(-1, 1, 36, device=device).view(2, 2, 3, 3),
            torch.ones(2, device=device),
            1,
        )
    ],
    'ms_deform_attn': lambda device: gradients(
        lambda value, weights: mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            value,
            torch.tensor([[4, 5], [2, 3]], device=device),
            torch.tensor([0, 20], device=device),
            points(device),
            weights,
            64,
        ),
        torch.linspace(-1, 1, 2 * 26 * 4 * 3, device=device).view(2, 26, 4, 3),
        torch.linspace(0, 1, 320, device=device).view(2, 10, 4, 2, 2),
    ),
    'diff_iou_rotated_2d': lambda device: [
        mmcv.ops.diff_iou_rotated_2d(
            torch.tensor([[[0.5, 0.5, 1, 1, 0.1], [2, 2, 1, 2, 0.3]]], device=device),
            torch.tensor([[[0.4, 0.6, 1, 2, 0.2], [2, 2, 2, 1, 0.5]]], device=device),
        )
    ],
}


@pytest.mark.parametrize('name', CASES)
def test_recorded_operator_computes_on_the_device_of_its_inputs(name, recorded, monkeypatch):
    monkeypatch.setattr(mmcv_cases, 'DEVICE', 'cuda')
    with pretended_gpu() as device:
        found = CASES[name]()
        assert {x.device for x in found} == {device}
        found = [x.detach().cpu() for x in found]
    for index, got in enumerate(found):
        torch.testing.assert_close(got, torch.from_numpy(recorded[f'{name}/{index}']), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', MORE)
def test_operator_computes_on_the_device_of_its_inputs(name):
    with pretended_gpu() as device:
        found = MORE[name](device)
        assert {x.device for x in found} == {device}
        found = [x.detach().cpu() for x in found]
    # mmcv's carafe_naive has no gradient on a CPU.
    for got, want in zip(found, MORE[name.replace('_naive', '')]('cpu')):
        torch.testing.assert_close(got, want.detach())


def test_reports_of_the_environment_name_the_operators():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'torchvision' in get_compiler_version() and get_compiling_cuda_version() == 'not compiled'


def test_table_names_each_operator_as_mmcv_does():
    for name, (function, computed_by) in operators.OPERATORS.items():
        assert function.__name__ == name and getattr(operators, name) is function
        assert computed_by in (operators.TORCHVISION, operators.PYTORCH, operators.MMCV)


IMPORTS = r'from (mmcv\.ops[\w.]*) import (\([^)]*\)|[^\n]*)'


#: Parts of mmcv.ops that some stock config names by its type, of those that the libraries' code does not import.
BY_TYPE = {'mmdet': {'MMSyncBN', 'DeformRoIPoolPack', 'SAC', 'DCNv2', 'carafe'}, 'mmseg': set()}


#: Operators that the libraries do not use, in modules that they import: those for quadrilaterals.
NOT_ASKED_FOR = r'\w*quadri'


def named_in_configs(package):
    """Return the parts of mmcv.ops that a library's stock configs name by their types."""
    from mmengine.registry import MODELS

    texts = [path.read_text(encoding='utf-8') for path in (package / '.mim' / 'configs').rglob('*.py')]
    types = {name for text in texts for name in re.findall(r"\btype='(?:mmcv\.)?(\w+)'", text)}
    parts = {name: MODELS.module_dict.get(name) or getattr(mmcv.ops, name, None) for name in sorted(types)}
    return {name: part for name, part in parts.items() if getattr(part, '__module__', '').startswith('mmcv.ops')}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_every_operator_of_the_library_is_in_the_table(library):
    """Found in the code: the imports from mmcv.ops, and the compiled operators that these modules call."""
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
