"""The demo that tests wheel and sdist."""

import importlib
import sys
from pathlib import Path

import pytest
from harness import ROOT

import fcvit_mm
from fcvit_mm.errors import UserError


@pytest.fixture
def quick_demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('quick_demo')


def test_package_must_be_installed(quick_demo):
    with pytest.raises(UserError, match='fcvit_mm is not in .*: install the package there'):
        quick_demo.find_installed(None)


def test_wrong_version_is_reported(quick_demo, monkeypatch):
    monkeypatch.setattr(sys, 'prefix', str(Path(fcvit_mm.__file__).parents[1]))
    assert quick_demo.find_installed(fcvit_mm.__version__).name == '.mim'
    with pytest.raises(UserError, match=rf'fcvit_mm is {fcvit_mm.__version__}, expected 99\.0'):
        quick_demo.find_installed('99.0')


def test_networks_run_forward(quick_demo, capsys):
    quick_demo.forward()
    assert [line.partition(':')[0] for line in capsys.readouterr().out.splitlines()] == ['FCViT', 'DWNet']


def test_failed_command_is_reported_with_its_output(quick_demo, tmp_path):
    tool = tmp_path / 'train.py'
    tool.write_text("import sys\nprint('accuracy/top1: 20.0')\nprint('no memory', file=sys.stderr)\nsys.exit(3)\n")
    with pytest.raises(UserError, match=r'train\.py failed with status 3:\n(.*\n)*no memory'):
        quick_demo.run(tool)


def test_successful_command_is_reported_in_one_line(quick_demo, tmp_path, capsys):
    tool = tmp_path / 'test.py'
    tool.write_text("import sys\nprint('accuracy/top1:', sys.argv[1])\n")
    quick_demo.run(tool, 20.0)
    assert capsys.readouterr().out == 'test.py: accuracy/top1: 20.0\n'
