"""Parameters without a gradient are reported before DistributedDataParallel stops, with a solution."""

import pytest
from harness import run_tool, write_config
from mmengine.config import Config

from fcvit_mm.apis.step import Step, WatchedOutput
from fcvit_mm.engine.config import load_config
from fcvit_mm.preflight import gradients
from fcvit_mm.preflight.checks import PreflightError, check_training
from fcvit_mm.preflight.gradients import finds_unused, gradient_problems, missing_gradients

#: RetinaNet as in stock configs: FPN starts at level 1, and the backbone returns all four stages.
STOCK = """
model = dict(
    _delete_=True,
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(
        type='FCViT',
        arch=dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))),
    neck=dict(type='FPN', in_channels=[8, 16, 24, 32], out_channels=16, start_level=1, num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=5, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32, 64, 128])),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=10, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
val_evaluator.update(metric='bbox')
test_evaluator.update(metric='bbox')
"""
OPTIONS = {
    'model.backbone.out_indices': [1, 2, 3],
    'model.neck.in_channels': [16, 24, 32],
    'model.neck.start_level': 0,
}
WAY_OUT = (
    '--cfg-options model.backbone.out_indices="[1,2,3]" model.neck.in_channels="[16,24,32]" model.neck.start_level=0'
)


@pytest.fixture
def config(tmp_path, shapes):
    pytest.importorskip('mmdet')
    return write_config('detection', tmp_path, shapes('detection'), STOCK)


def test_distributed_training_with_an_unused_output_is_refused(config):
    with pytest.raises(PreflightError) as caught:
        check_training(load_config(config, launcher='pytorch'))
    (problem,) = caught.value.problems
    assert problem.startswith('2 parameters get no gradient (backbone.norm0.weight, backbone.norm0.bias): nothing')
    assert 'of stage 0. Set model.backbone.out_indices=(1, 2, 3): ' + WAY_OUT in problem
    assert 'DistributedDataParallel would stop in the second step; find_unused_parameters=True' in problem


@pytest.mark.parametrize('options', [OPTIONS, {'find_unused_parameters': True}])
def test_suggested_options_solve_the_problem(config, options, monkeypatch):
    monkeypatch.setattr(gradients, 'print_log', lambda *texts, **others: pytest.fail(f'not asked: {texts}'))
    assert gradient_problems(load_config(config, options, launcher='pytorch')) == []


def test_one_process_is_not_checked(config):
    cfg = load_config(config)
    cfg.model.backbone.type = 'Nothing'
    assert gradient_problems(cfg) == []


def test_check_command_with_a_launcher(config):
    arguments = ('--work-dir', config.parent / 'work', '--quick')
    done = run_tool('check.py', config, *arguments, '--launcher', 'pytorch', check=False)
    assert done.returncode == 1 and WAY_OUT in done.stdout and 'Traceback' not in done.stdout


def test_failed_check_is_logged(config, monkeypatch):
    logged = []
    monkeypatch.setattr(gradients, 'print_log', lambda text, **options: logged.append(text))
    cfg = load_config(config, {'model.bbox_head.in_channels': 17}, launcher='pytorch')
    assert gradient_problems(cfg) == []
    (text,) = logged
    assert text.startswith('Not checked before the start: whether all parameters get a gradient: model.bbox_head (')


def step(used, without=('backbone.norm0.weight',), indices=(0, 1, 2, 3), channels=(8, 16, 24, 32)):
    outputs = [WatchedOutput(*pair) for pair in zip(channels, used)]
    return Step(outputs, indices, list(without), {})


def cfg_of(**model):
    return Config(dict(model=dict(backbone=dict(out_indices=(0, 1, 2, 3)), **model)))


def text(cfg, found):
    missing = missing_gradients(cfg, found)
    assert missing is not None and not missing.ends_run
    return missing.text


def test_suggested_options_change_in_index():
    cfg = cfg_of(decode_head=[dict(in_channels=24, in_index=2), dict(in_channels=32, in_index=3)])
    found = text(cfg, step((False, False, True, True)))
    assert 'of stage 0, 1. Set model.backbone.out_indices=(2, 3)' in found
    changed = 'model.backbone.out_indices="[2,3]" model.decode_head.0.in_index=0 model.decode_head.1.in_index=1.'
    assert f'--cfg-options {changed}' in found


def test_options_can_change_items_of_lists():
    cfg = cfg_of(decode_head=[dict(in_channels=24, in_index=2), dict(in_channels=32, in_index=3)])
    cfg.merge_from_dict({'model.decode_head.0.in_index': 0, 'model.backbone.out_indices': [2, 3]})
    assert cfg.model.decode_head[0].in_index == 0 and cfg.model.backbone.out_indices == [2, 3]


def test_neck_without_in_channels():
    found = text(cfg_of(neck=dict(type='Own')), step((True, True, True, False)))
    assert (
        'out_indices=(0, 1, 2): --cfg-options model.backbone.out_indices="[0,1,2]", and adapt the inputs of the neck'
        in found
    )


@pytest.mark.parametrize(
    'found', [step((True,) * 4), step((False,) * 4), step((), indices=None), step((True,), indices=None)]
)
def test_parameters_without_gradient_in_used_components(found):
    found = found._replace(without_gradient=[f'head.{number}' for number in range(7)])
    assert text(cfg_of(), found).startswith(
        '7 parameters get no gradient (head.0, head.1, head.2, head.3, head.4, ...): freeze or remove them'
    )


def test_nothing_is_reported_without_missing_gradients():
    assert missing_gradients(cfg_of(), step((True,) * 4, without=())) is None
    cfg = cfg_of()
    cfg.find_unused_parameters = True
    assert missing_gradients(cfg, step((False,) * 4)) is None


@pytest.mark.parametrize(
    'cfg, expected',
    [
        (dict(), False),
        (dict(find_unused_parameters=True), True),
        (dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', find_unused_parameters=True)), True),
        (dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', static_graph=True)), True),
        (dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel')), False),
        (dict(strategy=dict(type='DDPStrategy', model_wrapper=dict(find_unused_parameters=True))), True),
        (dict(strategy='DDPStrategy'), False),
    ],
)
def test_settings_that_allow_unused_parameters(cfg, expected):
    assert finds_unused(Config(cfg)) is expected
