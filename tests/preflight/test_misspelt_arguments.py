import pytest
from harness import LIBRARIES

from fcvit_mm.preflight.misspelt_arguments import report_misspelt_arguments


@pytest.mark.parametrize('task', LIBRARIES)
def test_arguments_that_are_known(own, said, task):
    report_misspelt_arguments(own(task)[0])
    assert said == []


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
def test_arguments_that_are_ignored(own, said, task, options, text):
    cfg, _ = own(task, options)
    report_misspelt_arguments(cfg)
    assert said == ([text] if text else [])
