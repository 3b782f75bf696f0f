"""tools/get_flops.py: counts of all three tasks, and what it says when it cannot count."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from fcvit_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'


@pytest.fixture(autouse=True)
def no_scope_left_behind():
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('get_flops', ROOT / 'tools' / 'get_flops.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('variant, published', [('tiny', '0.90'), ('b12', '2.65'), ('b24', '5.06'), ('b48', '9.88')])
def test_published_multiply_adds(tool, variant, published):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(CONFIGS / 'classification' / f'fcvit_{variant}_in1k.py')
    found = tool.measure(cfg)
    assert found.shape == (224, 224)
    assert f'{found.flops / 1e9:.2f}' == published
    entries = yaml.safe_load((CONFIGS / 'classification' / 'metafile.yml').read_text())['Models']
    (recorded,) = (entry['Metadata'] for entry in entries if entry['Name'] == f'fcvit_{variant}_in1k')
    assert (found.params, found.flops) == (recorded['Parameters'], recorded['FLOPs'])
    assert [part.name for part in found.parts] == [
        'stem',
        'stage 1',
        'stage 2',
        'stage 3',
        'stage 4',
        'output norms',
        'neck',
        'head',
    ]
    assert sum(part.params for part in found.parts) == found.params
    assert sum(part.flops for part in found.parts) == found.flops


def test_known_layers_are_counted_exactly(tool):
    """The stem by hand: 7x7 convolutions of 3 to 32 channels at 56x56 positions; BatchNorm counts nothing."""
    stem = tool.measure(Config.fromfile(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py')).parts[0]
    assert stem == ('stem', 7 * 7 * 3 * 32 + 32 + 2 * 32, 7 * 7 * 3 * 32 * 56 * 56)


def test_command_prints_a_table(tool, capsys):
    tool.main(
        [
            str(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py'),
            '--shape',
            '64',
            '96',
            '--cfg-options',
            'model.head.num_classes=10',
        ]
    )
    printed = capsys.readouterr().out
    assert 'input 3x64x96' in printed
    assert 'stage 4' in printed and 'output norms' in printed
    assert f'{4_784_752 - 321 * 990:,}' in printed
    assert 'multiply-add counts as one' in printed


def test_detector_is_padded_and_its_heads_are_counted(tool, capsys):
    pytest.importorskip('mmdet')
    tool.main(
        [
            str(CONFIGS / 'detection' / 'mask_rcnn_fcvit_tiny_coco.py'),
            '--size',
            '60',
            '100',
            '--cfg-options',
            'model.test_cfg.rpn.max_per_img=10',
        ]
    )
    printed = capsys.readouterr().out
    assert 'input 3x64x128' in printed
    assert '24,516,984' in printed
    for part in ('neck', 'rpn_head', 'roi_head'):
        (line,) = (line for line in printed.splitlines() if line.startswith(part))
        assert float(line.split()[-2]) > 0
    assert 'proposals that random weights gave' in printed


def test_segmentor_with_an_auxiliary_head(tool, capsys):
    pytest.importorskip('mmseg')
    config = str(CONFIGS / 'segmentation' / 'upernet_fcvit_tiny_ade20k.py')
    tool.main([config, '--shape', '64'])
    printed = capsys.readouterr().out
    assert 'input 3x64x64' in printed
    assert 'auxiliary head works in training only' in printed


def test_counting_leaves_no_random_state_behind(tool):
    cfg = Config.fromfile(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py')
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tool.measure(cfg, (64,))
    assert torch.equal(torch.rand(1), expected)


def test_missing_config(tool):
    with pytest.raises(UserError, match='nowhere.py does not exist: configs stand in configs/classification'):
        tool.main(['nowhere.py'])


def test_command_ends_with_a_message_and_without_a_traceback():
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'get_flops.py'), 'nowhere.py'],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 1
    assert 'get_flops.py: config nowhere.py does not exist' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('shape', [['1', '2', '3'], ['0']])
def test_shape_that_is_none(tool, shape):
    with pytest.raises(UserError, match='expected a height and a width in pixels, or one number'):
        tool.main([str(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py'), '--shape', *shape])


def test_config_of_another_library(tool):
    with pytest.raises(UserError, match="default_scope='mmpose', expected one of"):
        tool.measure(Config(dict(default_scope='mmpose', model=dict())))
