"""tools/get_flops.py: counts for all tasks, and errors."""

from functools import partial

import pytest
from harness import ROOT, call_tool, load_tool, run_python

from fcvit_mm.errors import UserError

CONFIGS = ROOT / 'configs'


@pytest.fixture(scope='module')
def main():
    return partial(call_tool, load_tool('get_flops.py'))


def test_prints_a_table(main, capsys):
    main(
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


def test_image_of_a_detector_is_padded_and_its_heads_are_counted(main, capsys):
    pytest.importorskip('mmdet')
    main(
        [
            str(CONFIGS / 'detection' / 'mask_rcnn_fcvit_tiny_coco.py'),
            '--size',
            '60',
            '100',
            '--cfg-options',
            'model.test_cfg.rpn.max_per_img=10',
            'model.test_cfg.rcnn.max_per_img=5',
        ]
    )
    printed = capsys.readouterr().out
    assert 'input 3x64x128' in printed
    assert '24,516,984' in printed
    for part in ('neck', 'rpn_head', 'roi_head'):
        (line,) = (line for line in printed.splitlines() if line.startswith(part))
        assert float(line.split()[-2]) > 0
    assert 'proposals of the model with random weights' in printed


def test_auxiliary_head_is_not_counted(main, capsys):
    pytest.importorskip('mmseg')
    config = str(CONFIGS / 'segmentation' / 'upernet_fcvit_tiny_ade20k.py')
    main([config, '--shape', '64'])
    printed = capsys.readouterr().out
    assert 'input 3x64x64' in printed
    assert 'auxiliary head is used in training only' in printed


def test_missing_config_is_reported(main):
    with pytest.raises(UserError, match='nowhere.py does not exist: the configs are in configs/classification'):
        main(['nowhere.py'])


def test_error_is_a_message_without_a_traceback():
    done = run_python(str(ROOT / 'tools' / 'get_flops.py'), 'nowhere.py')
    assert done.returncode == 1
    assert 'get_flops.py: config nowhere.py does not exist' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('shape', [['1', '2', '3'], ['0']])
def test_invalid_shape_is_refused(main, shape):
    with pytest.raises(UserError, match='expected a height and a width in pixels, or one number'):
        main([str(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py'), '--shape', *shape])
