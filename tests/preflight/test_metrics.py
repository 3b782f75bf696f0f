import pytest
from mmengine.config import Config
from problems import only_training_problem as only_problem

from fcvit_mm.apis.stock import read_stock
from fcvit_mm.preflight import metrics
from fcvit_mm.preflight.checks import check_training


@pytest.mark.parametrize(
    'task, options, message',
    [
        (
            'detection',
            {'val_evaluator': dict(type='VOCMetric'), 'default_hooks.checkpoint.save_best': 'coco/bbox_mAP'},
            "default_hooks.checkpoint.save_best='coco/bbox_mAP' is not one of the metrics (pascal_voc/",
        ),
        (
            'detection',
            {'default_hooks.checkpoint.save_best': ['coco/bbox_mAP', 'bbox_mAP']},
            "save_best='bbox_mAP' is not one of the metrics (coco/bbox_mAP",
        ),
        (
            'classification',
            {'val_evaluator.topk': (1, 3), 'default_hooks.checkpoint.save_best': 'accuracy/top5'},
            '(accuracy/top1, accuracy/top3)',
        ),
        (
            'classification',
            {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='accuracy')]},
            "custom_hooks[0].monitor='accuracy' is not",
        ),
        (
            'segmentation',
            {'param_scheduler': [dict(type='ReduceOnPlateauLR', rule='less')], 'val_evaluator.iou_metrics': ['mIoU']},
            "ReduceOnPlateauLR.monitor='loss' is not one of the metrics (aAcc, mIoU, mAcc)",
        ),
    ],
)
def test_monitored_metric_that_the_evaluator_does_not_compute(task, options, message, make_config):
    cfg, _ = make_config(task)
    if isinstance(options.get('val_evaluator'), dict):
        cfg.val_evaluator = options.pop('val_evaluator')
    cfg.merge_from_dict(options)
    assert message in only_problem(cfg)


def test_metric_segm_without_a_mask_head(make_config):
    cfg, _ = make_config('detection', {'model.roi_head.mask_head': None})
    assert only_problem(cfg) == (
        "val_evaluator: CocoMetric has metric='segm', but MaskRCNN (RPNHead, StandardRoIHead, Shared2FCBBoxHead) "
        "predicts boxes only: set metric='bbox', or add a mask head"
    )
    cfg.val_evaluator.metric = 'bbox'
    check_training(cfg)
    cfg.val_evaluator.metric = 5
    assert "metric should be one of 'bbox', 'segm'" in only_problem(cfg) and 'but got 5' in only_problem(cfg)


def test_detectors_that_predict_masks_without_a_mask_head():
    """RTMDet-Ins predicts masks in its bbox_head."""
    pytest.importorskip('mmdet')
    cfg = read_stock('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco')
    assert metrics.mask_metric_problems(cfg, 'val_evaluator') == []
    cfg = read_stock('mmdet::retinanet/retinanet_r50_fpn_1x_coco')
    assert metrics.mask_metric_problems(cfg, 'val_evaluator') == []
    cfg.val_evaluator.metric = ['bbox', 'segm']
    assert 'RetinaNet (RetinaHead) predicts boxes only' in metrics.mask_metric_problems(cfg, 'val_evaluator')[0]


def test_monitored_metric_that_the_evaluator_computes(make_config):
    """Also a metric whose scores are unknown, because its type is not checked."""
    cfg, _ = make_config(
        'detection',
        {
            'default_hooks.checkpoint.save_best': ['coco/segm_mAP', 'coco/bbox_mAP_s'],
            'custom_hooks': [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP_50')],
        },
    )
    check_training(cfg)
    cfg.default_hooks.checkpoint.save_best = 'auto'
    check_training(cfg)
    cfg.default_hooks.checkpoint.save_best = 5
    assert 'default_hooks.checkpoint.save_best=5 is not one of the metrics (coco/bbox_mAP' in only_problem(cfg)
    cfg.default_hooks.checkpoint.save_best = 'mine/score'
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='OVCocoMetric', ann_file=cfg.val_evaluator.ann_file)]
    check_training(cfg)


def test_metrics_of_other_validation_loops():
    """Which name them in their own way."""

    def found(loop, best):
        cfg = Config(dict(val_cfg=loop, default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=best))))
        return metrics.monitor_problems(cfg, ['coco/bbox_mAP'])

    semi = dict(type='TeacherStudentValLoop')
    assert not found({}, 'coco/bbox_mAP') and not found(dict(type='ValLoop'), 'coco/bbox_mAP')
    assert not found(semi, 'teacher/coco/bbox_mAP') and not found(dict(type='MyLoop'), 'mine')
    assert "'teacher/coco/bbox_mAP' is not one of" in found({}, 'teacher/coco/bbox_mAP')[0]
    (problem,) = found(semi, 'coco/bbox_mAP')
    assert 'is not one of the metrics (teacher/coco/bbox_mAP, student/coco/bbox_mAP)' in problem


def test_metric_whose_type_is_a_number_is_not_checked(make_config):
    check_training(make_config('classification', {'val_evaluator.type': 1.5})[0])


@pytest.mark.parametrize(
    'options, message',
    [
        ({'param_scheduler': [dict(type='ReduceOnPlateauLR', monitor='mIoU')]}, "ReduceOnPlateauLR.monitor='mIoU'"),
        ({'default_hooks.checkpoint.rule': 'less'}, "default_hooks.checkpoint.save_best='mIoU'"),
        (
            {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='aAcc', rule='less')]},
            "custom_hooks[0].monitor='aAcc'",
        ),
    ],
)
def test_rule_that_is_the_reverse_of_the_metric(options, message, make_config, logged):
    check_training(make_config('segmentation', options)[0])
    (text,) = [text for text in logged if '.rule' in text]
    assert text.startswith(message) and text.endswith(
        ".rule is 'less', but higher values of this metric are better: set "
        + message.rpartition('.')[0]
        + ".rule='greater'"
    )


def test_one_rule_for_several_metrics(make_config, logged):
    options = {'default_hooks.checkpoint.save_best': ['mIoU', 'aAcc'], 'default_hooks.checkpoint.rule': ['less']}
    check_training(make_config('segmentation', options)[0])
    assert len([text for text in logged if '.rule' in text]) == 2
    cfg, _ = make_config('segmentation', {**options, 'default_hooks.checkpoint.save_best': ['mIoU', 'mine']})
    assert "save_best='mine' is not one of the metrics" in only_problem(cfg)


@pytest.mark.parametrize('rule', [None, 'less', 'greater'])
def test_rules_of_metrics_without_a_name(make_config, logged, rule):
    """``'auto'`` is the first metric of the evaluator, whatever its name."""
    options = {'default_hooks.checkpoint.save_best': 'auto', 'default_hooks.checkpoint.rule': rule}
    cfg, _ = make_config('segmentation', options)
    check_training(cfg)
    assert not any('.rule' in text for text in logged)
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor=None, rule=rule)]
    assert 'custom_hooks[0].monitor=None is not one of the metrics' in only_problem(cfg)


def test_rules_that_fit_their_metric(make_config, logged):
    options = {
        'default_hooks.checkpoint.save_best': ['mIoU', 'aAcc'],
        'default_hooks.checkpoint.rule': ['greater', 'greater'],
        'param_scheduler': [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater')],
    }
    check_training(make_config('segmentation', options)[0])
    assert not any('.rule' in text for text in logged)
