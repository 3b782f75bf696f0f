import pytest
from harness import LIBRARIES

from fcvit_mm.preflight.misspelt_arguments import report_misspelt_arguments


@pytest.mark.parametrize('task', LIBRARIES)
def test_correct_arguments_are_not_reported(make_config, logged, task):
    report_misspelt_arguments(make_config(task)[0])
    assert logged == []


@pytest.mark.parametrize(
    ('task', 'options', 'text'),
    [
        (
            'segmentation',
            {'val_evaluator.iou_metric': ['mIoU']},
            "val_evaluator: IoUMetric has no argument 'iou_metric' of its own; did you mean 'iou_metrics'?",
        ),
        (
            'classification',
            {'default_hooks.checkpoint.max_keep_ckpt': 3},
            "default_hooks.checkpoint: CheckpointHook has no argument 'max_keep_ckpt' of its own; did you mean "
            "'max_keep_ckpts'?",
        ),
        ('segmentation', {'val_evaluator.something': 3}, ''),
        ('classification', {'train_dataloader.dataset.pipeline.1.scales': 64}, ''),  # which its class rejects
        ('classification', {'model.head.type': 'NoSuchHead', 'model.head.num_class': 5}, ''),
    ],
)
def test_misspelt_arguments_are_reported(make_config, logged, task, options, text):
    cfg, _ = make_config(task, options)
    report_misspelt_arguments(cfg)
    assert logged == ([text] if text else [])
