"""tools/replace_backbone.py prints a child config and writes the complete config."""

import re

import pytest
from harness import ROOT, run_tool
from mmengine.config import Config

STOCK = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco'


def test_prints_the_changes_and_writes_the_config(tmp_path):
    pytest.importorskip('mmdet')
    out = tmp_path / 'configs' / 'own.py'
    arguments = ('--pretrained', 'net.pth', '--options', 'drop_path_rate=0.2', '--out', out)
    done = run_tool('replace_backbone.py', STOCK, 'fcvit_tiny', *arguments, cwd=tmp_path)
    for words in (
        f'# {STOCK} with fcvit_tiny',
        '_delete_=True',
        'drop_path_rate=0.2',
        'custom_imports',
        f'# The complete config was written to {out}',
    ):
        assert words in done.stdout
    printed = Config.fromstring(done.stdout, '.py')
    cfg = Config.fromfile(out)
    assert printed.model.neck == dict(in_channels=[64, 160, 320], start_level=0)
    assert cfg.model.neck.in_channels == [64, 160, 320] and cfg.model.backbone.out_indices == (1, 2, 3)
    assert cfg.model.backbone.init_cfg.checkpoint == cfg.pretrained == printed.pretrained == 'net.pth'


def test_documentation_shows_the_printed_config(tmp_path):
    pytest.importorskip('mmdet')
    page = (ROOT / 'docs' / 'stock_configs.md').read_text()
    command = re.search(r'^python tools/(replace_backbone.py .*) --out', page, re.MULTILINE)[1]
    shown = re.search(r'^```python\n(custom_imports.*?)```', page, re.DOTALL | re.MULTILINE)[1]
    printed = run_tool(*command.split(), cwd=tmp_path).stdout
    assert Config.fromstring(printed, '.py').to_dict() == Config.fromstring(shown, '.py').to_dict()


def test_errors_are_reported(tmp_path):
    pytest.importorskip('mmdet')
    for arguments, words in (
        ((STOCK, 'fcvit_tiny', '--out', 'own.json'), '--out is own.json, expected a file name ending in .py'),
        (('mmdet::retinanet/nothing', 'fcvit_tiny'), 'mmdet::retinanet/nothing is not a config of the installed mmdet'),
        (('own.py', 'fcvit_tiny', '--out', './own.py'), '--out is ./own.py, which is read and would be replaced'),
        ((STOCK, 'resnet', '--out', '/dev/null/own.py'), '/dev/null/own.py could not be written: Not a directory'),
        ((STOCK, 'resnet'), "unknown network 'resnet', expected one of"),
    ):
        done = run_tool('replace_backbone.py', *arguments, cwd=tmp_path, check=False)
        assert done.returncode == 1 and words in done.stdout and 'Traceback' not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_pure_python_configs_are_not_written(tmp_path):
    """MMEngine writes RoIAlign as mmcv.ops.RoIAlign, for example, which mmdet refuses."""
    pytest.importorskip('mmdet')
    (tmp_path / 'base.py').write_text("model = dict(backbone=dict(type='ResNet', depth=18))\n")
    (tmp_path / 'mine.py').write_text(
        'from mmdet.models import RetinaNet\nfrom mmengine.config import read_base\n\nwith read_base():\n'
        '    from .base import *\nmodel.update(type=RetinaNet)\n'
    )
    done = run_tool('replace_backbone.py', 'mine.py', 'fcvit_tiny', '--out', 'own.py', cwd=tmp_path, check=False)
    assert done.returncode == 1 and '--out: mine.py is a pure-Python config (read_base)' in done.stdout
    assert not (tmp_path / 'own.py').exists()
