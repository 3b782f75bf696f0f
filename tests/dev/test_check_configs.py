"""The lint of configs, tables and metafiles reports problems."""

import importlib

import pytest
from harness import ROOT, run_tool

from fcvit_mm.errors import UserError

CONFIG = """custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
auto_scale_lr = dict(base_batch_size=8)
"""
LEAF = "_base_ = '_base_/default_runtime.py'\n"


@pytest.fixture
def check_configs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('check_configs')


@pytest.fixture
def project(tmp_path):
    """A project with one valid config."""
    folder = tmp_path / 'configs' / 'classification'
    (folder / '_base_').mkdir(parents=True)
    (folder / '_base_' / 'default_runtime.py').write_text(CONFIG)
    (folder / 'net_tiny_in1k.py').write_text(LEAF)
    (folder / 'README.md').write_text('| [net_tiny_in1k](net_tiny_in1k.py) | 1 |\n')
    (folder / 'metafile.yml').write_text(
        'Models:\n  - Name: net_tiny_in1k\n    Config: configs/classification/net_tiny_in1k.py\n'
    )
    (tmp_path / 'model-index.yml').write_text('Import:\n  - configs/classification/metafile.yml\n')
    return tmp_path


def test_valid_project_has_no_problems(project):
    """``make lint`` checks the configs of this project."""
    assert run_tool('check_configs.py', '--root', project).stdout == '1 configs are in order\n'


@pytest.mark.parametrize(
    'name, text, problem',
    [
        ('Tiny.py', LEAF, 'is not named method_backbone_dataset.py'),
        ('net_big_in1k.py', "_base_ = 'missing.py'", 'does not load: '),
        ('net_big_in1k.py', 'auto_scale_lr = dict(base_batch_size=8)', r'lacks custom_imports=dict\(imports='),
        ('net_big_in1k.py', CONFIG, 'sets custom_imports itself'),
        ('net_big_in1k.py', LEAF + 'auto_scale_lr = dict(_delete_=True)', 'lacks auto_scale_lr'),
        ('net_big_in1k.py', LEAF + "load_from = 'a.pth'", "sets load_from='a.pth', which is for the command line"),
        ('net_big_in1k.py', LEAF, r'README.md lacks net_big_in1k.py'),
        ('net_big_in1k.py', LEAF, r'metafile.yml lacks net_big_in1k.py'),
        ('README.md', '[gone](net_gone_in1k.py)', r'README.md names net_gone_in1k.py, which is not there'),
        (
            'metafile.yml',
            'Models: [{Name: net_tiny_in1k, Config: elsewhere/net_tiny_in1k.py}]',
            'net_tiny_in1k has Config elsewhere/net_tiny_in1k.py',
        ),
    ],
)
def test_problems_are_reported(check_configs, project, name, text, problem):
    (project / 'configs' / 'classification' / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        check_configs.main(['--root', str(project)])


def test_configs_for_generated_data_sets_need_no_table(check_configs, project):
    (project / 'configs' / 'classification' / 'net_tiny_shapes.py').write_text(LEAF)
    assert check_configs.find_problems(project) == []
