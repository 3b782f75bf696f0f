"""Missing packages are reported with the command that installs them."""

import configparser
import sys

import pytest
from harness import ROOT, run_python

from fcvit_mm import dependencies


@pytest.mark.parametrize('package, extra', [('mmdet', 'det'), ('mmseg', 'seg'), ('mmpretrain', 'cls')])
def test_missing_package_is_reported_with_its_extra(monkeypatch, package, extra):
    monkeypatch.setattr(dependencies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError) as caught:
        dependencies.require(package)
    for word in (f'{package} is not installed', f"'.[{extra}]'", f'mim install {package}'):
        assert word in str(caught.value)


def test_import_without_mmengine_is_reported():
    code = (
        'import importlib.util as u; find = u.find_spec; '
        'u.find_spec = lambda name, *rest: None if name == "mmengine" else find(name, *rest); import fcvit_mm'
    )
    result = run_python('-c', code)
    assert 'MissingPackageError: mmengine is not installed' in result.stderr
    assert '.[cls]' in result.stderr


def test_old_torch_is_reported(monkeypatch):
    import torch

    monkeypatch.setattr(torch, '__version__', '1.13.1+cu117')
    with pytest.raises(ImportError, match=r'torch 2\.0 or newer, found 1\.13\.1\+cu117'):
        dependencies.check_core()


def test_extras_in_error_messages_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert set(dependencies.EXTRAS.values()) <= set(setup['options.extras_require'])


def write_transformers_5(folder):
    """Write a package transformers without the functions that mmpretrain's multimodal models import, as version 5."""
    (folder / 'transformers').mkdir()
    (folder / 'transformers' / '__init__.py').write_text('')
    (folder / 'transformers' / 'pytorch_utils.py').write_text('apply_chunking_to_forward = None\n')
    (folder / 'transformers-5.0.0.dist-info').mkdir()
    (folder / 'transformers-5.0.0.dist-info' / 'METADATA').write_text('Name: transformers\nVersion: 5.0.0\n')


def test_mmpretrain_can_be_imported_with_transformers_5(tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    write_transformers_5(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    code = (
        'import fcvit_mm, mmpretrain.models; from mmpretrain.registry import MODELS; '
        'print(mmpretrain.utils.dependency.WITH_MULTIMODAL, "BlipVQA" in MODELS, "FCViT" in MODELS)'
    )
    result = run_python('-c', code)
    assert result.stdout.split() == ['False', 'True', 'True'], result.stderr


@pytest.mark.parametrize(
    'installed, expected',
    [(None, True), ('find_pruneable_heads_and_indices = None', True), ('', False), ('import no_such_module', False)],
)
def test_multimodal_models_are_supported_by_old_transformers_only(tmp_path, monkeypatch, installed, expected):
    for name in [name for name in sys.modules if name.split('.')[0] == 'transformers']:
        monkeypatch.delitem(sys.modules, name)
    if installed is None:
        monkeypatch.setitem(sys.modules, 'transformers', None)
        monkeypatch.setattr(dependencies.importlib.util, 'find_spec', lambda name: None)
    else:
        write_transformers_5(tmp_path)
        (tmp_path / 'transformers' / 'pytorch_utils.py').write_text(installed)
        monkeypatch.syspath_prepend(tmp_path)
    assert dependencies.supports_multimodal() is expected
    for name in ('transformers', 'transformers.pytorch_utils'):
        sys.modules.pop(name, None)
