import importlib
import sys

import pytest
from harness import LIBRARIES, ROOT, run_tool
from mmengine.config import ConfigDict

sys.path.insert(0, str(ROOT / 'dev'))
check_misspelt = importlib.import_module('check_misspelt')


def test_counts_configs_and_warnings(tmp_path):
    for library in LIBRARIES.values():
        pytest.importorskip(library)
    lines = run_tool('check_misspelt.py', '--every', 300, '--without', 'mask_head', cwd=tmp_path).stdout.splitlines()
    assert [line for line in lines if 'configs' in line][0] == 'mmpretrain: 2 configs' and lines[-1] == '0 warnings'


def test_option_without_sets_parts_to_none():
    model = ConfigDict(roi_head=[dict(mask_head=dict(a=1), b=2)], mask_head=3)
    check_misspelt.without_parts(model, ['mask_head'])
    assert model == dict(roi_head=[dict(mask_head=None, b=2)], mask_head=None)
