"""What must be installed, and what to type when it is not."""

import configparser

import pytest
from harness import ROOT, run_python

from fcvit_mm import dependencies


@pytest.mark.parametrize('package, extra', [('mmdet', 'det'), ('mmseg', 'seg'), ('mmpretrain', 'cls')])
def test_a_missing_package_names_the_extra(monkeypatch, package, extra):
    monkeypatch.setattr(dependencies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError) as caught:
        dependencies.require(package)
    for word in (f'{package} is not installed', f"'fcvit_mm[{extra}]'", f'mim install {package}'):
        assert word in str(caught.value)


def test_without_mmengine_the_import_says_what_to_install():
    code = (
        'import importlib.util as u; find = u.find_spec; '
        'u.find_spec = lambda name, *rest: None if name == "mmengine" else find(name, *rest); import fcvit_mm'
    )
    result = run_python('-c', code)
    assert 'MissingPackageError: mmengine is not installed' in result.stderr
    assert 'fcvit_mm[cls]' in result.stderr


def test_an_old_torch_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch, '__version__', '1.13.1+cu117')
    with pytest.raises(ImportError, match=r'torch 2\.0 or newer, found 1\.13\.1\+cu117'):
        dependencies.check_core()


def test_every_extra_that_an_error_names_exists():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert set(dependencies.EXTRAS.values()) <= set(setup['options.extras_require'])
