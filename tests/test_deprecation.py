"""Deprecated public names still work, with a warning that names the new one."""

import importlib
import sys

import pytest
from harness import run_python
from mmengine.fileio import get_file_backend

from fcvit_mm import deprecation
from fcvit_mm.ops import triton
from fcvit_mm.registry import HOOKS, MODELS


@pytest.mark.parametrize('old, new', deprecation.MOVED_MODULES.items())
def test_moved_modules_can_be_imported_by_their_old_names(old, new):
    if new.endswith('_kernels') and not triton.available():
        pytest.skip('Triton before 3.3 does not read these kernels')
    target = importlib.import_module(new)
    found = importlib.import_module(old)
    name = next(name for name in vars(target) if not name.startswith('_'))
    assert getattr(found, name) is getattr(target, name)
    assert importlib.util.find_spec(f'{old}_of_no_module') is None


def test_warning_about_a_moved_module_names_the_importing_line(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('import fcvit_mm.engine.network\n')
    result = run_python(str(script))
    assert f'{script}:1: DeprecationWarning: the module fcvit_mm.engine.network' in result.stderr
    assert 'use fcvit_mm.apis.load' in result.stderr


@pytest.mark.parametrize(
    'module, old, new',
    [(module, old, new) for module, names in deprecation.RENAMED.items() for old, new in names.items()],
)
def test_renamed_names_can_be_imported_from_their_old_modules(module, old, new):
    home, _, name = new.rpartition('.')
    expected = getattr(importlib.import_module(home), name)
    found = importlib.import_module(module)
    if old == name:
        assert getattr(found, old) is expected
    else:
        with pytest.warns(DeprecationWarning, match=f'{module}.{old} is deprecated .* use {new}'):
            assert getattr(found, old) is expected


def test_unknown_names_are_not_found():
    name = 'no_such_name'
    for module in ('fcvit_mm.engine', 'fcvit_mm.engine.network'):
        with pytest.raises(AttributeError, match=name):
            getattr(importlib.import_module(module), name)


OLD_TYPES = [
    (MODELS, dict(type='ScaledViT', arch='small_12', remedies=('attn_scale',)), 'ViT'),
    (MODELS, dict(type='ScaledCaiT', arch='s24', remedies=('feat_scale',)), 'CaiT'),
    (MODELS, dict(type='ScaledSwin', arch='small', remedies=('attn_scale',)), 'Swin'),
    (HOOKS, dict(type='WholeCheckpointHook', interval=1), 'AtomicCheckpointHook'),
    (HOOKS, dict(type='BrokenPictureHook'), 'SkipCorruptSamplesHook'),
]


@pytest.mark.parametrize('registry, config, new', OLD_TYPES, ids=[config['type'] for _, config, _ in OLD_TYPES])
def test_deprecated_registered_names_build_the_new_types(registry, config, new):
    if registry is MODELS:
        pytest.importorskip('timm')
    with pytest.warns(DeprecationWarning, match=f'{config["type"]} is deprecated .* use {new}'):
        assert type(registry.build(config)).__name__ == new


def test_deprecated_name_of_the_file_backend():
    assert type(get_file_backend(backend_args=dict(backend='whole_file'))).__name__ == 'AtomicFileBackend'


@pytest.mark.parametrize('mode', ['argument', 'environment'])
def test_deprecated_value_plain_of_use_ops(mode, monkeypatch):
    code = 'import warnings\nwarnings.simplefilter("default")\n'
    code += 'from fcvit_mm.ops.dispatch import current_mode, use_ops\n'
    code += 'with use_ops("plain"):\n    print(current_mode())' if mode == 'argument' else 'print(current_mode())'
    if mode == 'environment':
        monkeypatch.setenv('FCVIT_MM_OPS', 'plain')
    result = run_python('-c', code)
    assert result.stdout.strip() == 'reference', result.stderr
    assert "use 'reference'" in result.stderr


def test_deprecated_class_builds_the_new_one_and_accepts_old_arguments():
    class New:
        def __init__(self, size, methods=()):
            self.size, self.methods = size, methods

    old = deprecation.deprecated_class('Old', New, __name__, dict(remedies='methods'))
    with pytest.warns(DeprecationWarning, match=r'Old is deprecated and will be removed in fcvit_mm 0\.\d+: use New'):
        found = old(3, remedies=('attn_scale',))
    assert type(found) is New and (found.size, found.methods) == (3, ('attn_scale',))
    assert issubclass(old, New) and old.__name__ == 'Old' and 'New' in old.__doc__


def test_import_finder_is_installed_once():
    deprecation.install()
    assert sum(isinstance(finder, deprecation.MovedModules) for finder in sys.meta_path) == 1
