"""Graphs recorded at one image size agree with PyTorch at any other size, for all backbones and formats.

By default, only TorchScript is tested, because torch.export takes seconds per block. ``LONG_EXPORTS=1 python -m pytest
tests/export/test_formats.py`` also tests torch.export and ONNX on the first stage of each network, in minutes.
"""

import importlib
import os

import pytest
import torch
from networks import NETWORKS, assert_same, build, images, randomize_norms

from fcvit_mm.errors import UserError
from fcvit_mm.export.any_size import SameSize
from fcvit_mm.export.errors import ExportError
from fcvit_mm.export.formats import FORMATS, check_format, write_export
from fcvit_mm.export.parts import Features, Part
from fcvit_mm.files import WriteError
from fcvit_mm.models.dwnet import DWNetBlock

#: Batch size, height and width. At 224, position embeddings are not resized. At 27, a window of Swin is as high as the
#: map, so that it is not shifted, unlike in the recorded example. 27 and 61 are multiples of no stride.
SHAPES = ((1, 27, 40), (3, 61, 50), (2, 224, 224))
LONG = bool(os.environ.get('LONG_EXPORTS'))
#: Options that build only the first stage.
FIRST_STAGE = dict.fromkeys(NETWORKS, dict(out_indices=(0,))) | dict(
    vit=dict(arch=dict(depths=(1,), channels=(24,), num_heads=(3,))),
    cait=dict(arch=dict(depths=(1, 1), channels=(24, 24), num_heads=(3, 3))),
)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('name', NETWORKS)
def test_backbones_at_any_size(name, kind, tmp_path):
    traced = kind == 'torchscript'
    if not traced and not LONG:
        pytest.skip('takes minutes: set LONG_EXPORTS=1')
    if kind == 'aot_inductor' and name != 'fcvit':
        pytest.skip('compiles for minutes')
    model = randomize_norms(build(NETWORKS[name], **({} if traced else FIRST_STAGE[name])))
    differences = write_export(Features(model), str(tmp_path / f'a{FORMATS[kind].suffix}'), kind, shapes=SHAPES)
    assert [found.shape for found in differences] == list(SHAPES)
    assert all(found.of > 0.1 for found in differences)  # the outputs are not all zero


@pytest.mark.parametrize('name', ['vit', 'cait'])
@torch.no_grad()
def test_class_tokens_at_any_size(name):
    model = randomize_norms(build(NETWORKS[name], **NETWORKS[name].classifier))
    traced = torch.jit.trace(model, images(96, 80), check_trace=False)
    for x in (images(33, 50, batch=1), images(224, 224, batch=3)):
        assert_same(traced(x), model(x))


@torch.no_grad()
def test_position_embeddings_at_any_size():
    model = randomize_norms(build(NETWORKS['dwnet'], position_size=16))
    traced = torch.jit.trace(model, images(64, 64), check_trace=False)
    assert_same(traced(images(50, 71)), model(images(50, 71)))


class Function(Part):
    """A part that exports a function."""

    output = 'scores'

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_blocks_that_pad_and_crop_keep_their_size(tmp_path, needs):
    """Otherwise torch.export cannot prove that the sizes of the residual branch and the shortcut are equal."""
    needs('torch_export')
    network = randomize_norms(build(NETWORKS['dwnet']))
    block = next(module for module in network.modules() if isinstance(module, DWNetBlock))
    out, shapes = str(tmp_path / 'a.pt2'), SHAPES[:2]
    differences = write_export(Function(block), out, 'torch_export', shapes=shapes, channels=block.norm.num_features)
    assert [found.shape for found in differences] == list(shapes)
    assert not any(isinstance(module, SameSize) for module in block.modules())  # only the recorded copy has them


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


@pytest.mark.parametrize(
    'kind, function, message',
    [
        ('onnx', torch.special.bessel_j0, r'the operator \w+\.(special_)?bessel_j0 cannot be exported'),
        ('torchscript', lambda x: _Double.apply(x), 'the operator _Double cannot be exported'),
        (
            'torch_export',
            lambda x: torch.from_numpy(x.numpy() * 2),
            r'the error names no operator, called in .*test_formats.py',
        ),
        ('torchscript', lambda x: x * int(x.shape[2]), r'differs from PyTorch by .* on 1 images of 97x131'),
    ],
)
def test_failed_export_names_the_operator_and_writes_no_file(kind, function, message, tmp_path, needs):
    needs(kind)
    out = tmp_path / f'a{FORMATS[kind].suffix}'
    out.write_text('previous content')
    with pytest.raises(ExportError, match=message):
        write_export(Function(function), str(out), kind)
    assert os.listdir(tmp_path) == [out.name] and out.read_text() == 'previous content'


def test_unwritable_path_is_reported(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match='could not be written'):
        write_export(Function(lambda x: x * 2), str(tmp_path / 'file' / 'a.pt'), 'torchscript')


def test_missing_packages_are_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"onnx is not installed: in the project folder, pip install .*'.\[export\]'"):
        check_format('a.onnx', 'onnx')
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    with pytest.raises(UserError, match='--format torch_export needs torch 2.9 or newer, found 2.1.2'):
        check_format('a.pt2', 'torch_export')
    check_format('a.pt', 'torchscript')


def test_missing_compiler_is_reported(tmp_path, monkeypatch, needs):
    needs('torch_export')
    from torch._inductor.exc import InvalidCxxCompiler

    def compile_nothing(*args, **kwargs):
        raise InvalidCxxCompiler

    monkeypatch.setattr('torch._inductor.aoti_compile_and_package', compile_nothing)
    with pytest.raises(ExportError, match=r'found no C\+\+ compiler: install g\+\+ or clang\+\+.*torch_export needs n'):
        write_export(Function(lambda x: x * 2), str(tmp_path / 'a.pt2'), 'aot_inductor')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('wrapped', [False, True])
def test_failure_of_inductor_is_reported(tmp_path, monkeypatch, needs, wrapped):
    needs('torch_export')
    from torch._inductor import exc

    def compile_wrongly(*args, **kwargs):
        error = exc.CppCompileError(['g++'], "a.cpp:1: error: 'u0' was not declared")
        raise exc.InductorError(error, None) if wrapped else error

    if wrapped and not hasattr(exc, 'InductorError'):
        pytest.skip('before torch 2.7')
    monkeypatch.setattr('torch._inductor.aoti_compile_and_package', compile_wrongly)
    with pytest.raises(ExportError, match=r'Inductor of torch \S+ cannot compile this model.*C\+\+.*use --format t'):
        write_export(Function(lambda x: x * 2), str(tmp_path / 'a.pt2'), 'aot_inductor')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    'layers, changed',
    [
        ((), dict(freezing=True)),
        ((torch.nn.Conv2d(3, 2, 1),), dict(layout_optimization=False)),
        ((torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)), {}),
    ],
    ids=['none', 'convolution', 'linear'],
)
def test_inductor_options_for_layers_on_regions(tmp_path, monkeypatch, needs, layers, changed):
    needs('torch_export')
    used = {}

    def keep_options(program, package_path, inductor_configs):
        used.update(inductor_configs)
        raise KeyboardInterrupt  # ends before anything is compiled

    monkeypatch.setattr('torch._inductor.aoti_compile_and_package', keep_options)
    shared, on_regions = torch.nn.Conv2d(3, 3, 1), torch.nn.Sequential(*layers)

    def find(images):
        maps = shared(images)
        return on_regions(maps[(maps.mean((1, 2, 3)) > 0).nonzero()[:, 0]])

    with pytest.raises(KeyboardInterrupt):
        write_export(Function(find), str(tmp_path / 'a.pt2'), 'aot_inductor')
    del used['aot_inductor.metadata']
    assert used == {'freezing': False, **changed} and not os.listdir(tmp_path)


def test_inductor_without_freezing_where_that_fails(tmp_path, monkeypatch, needs):
    needs('torch_export')
    tried = []

    def compile_program(program, package_path, inductor_configs):
        tried.append(inductor_configs['freezing'])
        if inductor_configs['freezing']:
            raise RuntimeError('Node a target a references nonexistent attribute a of ')
        raise KeyboardInterrupt  # ends before anything is compiled

    monkeypatch.setattr('torch._inductor.aoti_compile_and_package', compile_program)
    with pytest.raises(KeyboardInterrupt):
        write_export(Function(torch.nn.Conv2d(3, 3, 1)), str(tmp_path / 'a.pt2'), 'aot_inductor')
    assert tried == [True, False]


def test_old_onnxscript_is_reported(tmp_path, monkeypatch):
    if torch.__version__ < '2.9':
        pytest.skip('the exporter of ONNX started from TorchScript before')
    for package in FORMATS['onnx'].packages:
        pytest.importorskip(package)

    def export(*_, **__):
        raise RuntimeError('failed') from ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_9_9'")

    monkeypatch.setattr('torch.onnx.export', export)
    monkeypatch.setattr('fcvit_mm.export.formats._program', lambda part, example: None)
    with pytest.raises(
        ExportError,
        match=r"^onnxscript \S+ is too old for torch \S+ \(No module named 'onnxscript.*torch_9_9'\): pip install",
    ):
        write_export(Features(torch.nn.Conv2d(3, 4, 1)), str(tmp_path / 'a.onnx'), 'onnx')
    assert not os.listdir(tmp_path)
