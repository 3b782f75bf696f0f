"""Evaluation of boxes by VOCMetric."""

import pytest
from problems import validation_problems

VOC = """
steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 128)),
         dict(type='LoadAnnotations', with_bbox=True),
         dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
val_dataloader['dataset'].update(pipeline=steps)
val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator
test_dataloader = val_dataloader
"""


def test_voc_metric(make_config, logged, monkeypatch):
    cfg, _ = make_config('detection', more=VOC)
    monkeypatch.setattr('os.fork', lambda: pytest.fail('a process was forked beside threads'))
    validation_problems(cfg, 0)
    assert logged == []
    steps = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [steps[0], steps[2], steps[1], steps[3]]
    assert 'Load the annotations after Resize' in validation_problems(cfg)
    cfg.val_dataloader.dataset.pipeline = [steps[0], steps[1], steps[3]]
    problem = validation_problems(cfg)
    assert "VOCMetric reads 'labels' of each sample, which the pipeline of the data set does not pack" in problem
    cfg.val_evaluator.metric = 'recall'
    validation_problems(cfg, 0)
    assert 'is not checked with the ground truth: it only evaluates predictions of the first class' in logged[-1]
