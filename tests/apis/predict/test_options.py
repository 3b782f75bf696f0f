"""Invalid options of predictions, and options that cannot be combined."""

import pytest
from predictions import predict_to

from fcvit_mm.errors import UserError


@pytest.mark.parametrize(
    'task, options, message',
    [
        (
            'classification',
            dict(batch_size=0),
            '--batch-size is 0 and --workers is 0, expected a batch size of at least 1',
        ),
        ('classification', dict(tile=64), '--tile: a classifier'),
        ('classification', dict(coco='a.json'), '--coco is for detection, but the config is for classification'),
        ('classification', dict(table='xml'), '--format is xml, expected one of csv, parquet'),
        ('classification', dict(features=True, tta=True), '--features cannot be combined with --tta'),
        ('detection', dict(tile=64, features=True), '--tile cannot be combined with --features or --tta'),
        ('detection', dict(tile=8), '--tile is 8 and --overlap is 0.2, expected a tile of at least 32'),
        (
            'detection',
            dict(coco='gone.json'),
            '--coco gone.json cannot be read as COCO annotations .*FileNotFoundError',
        ),
        ('detection', dict(top=3), '--top is for classification, but the config is for detection: omit --top'),
        ('segmentation', dict(table='parquet'), '--format is for classification, but the config is for segmentation'),
        ('classification', dict(score_thr=0.5), '--score-thr is for detection, but the config is for classification'),
        ('segmentation', dict(draw_score_thr=0.5), '--draw-score-thr is for detection'),
        ('detection', dict(draw_score_thr=0.5), '--draw-score-thr has no effect without --draw: add --draw, or omit'),
        ('detection', dict(overlap=0.5), '--overlap has no effect without --tile'),
        ('classification', dict(top=-1), '--top is -1, expected a number of classes, or 0 for all'),
        ('detection', dict(score_thr=7.0), '--score-thr is 7, expected a number from 0 to 1'),
        ('detection', dict(draw=True, draw_score_thr=-1.0), '--draw-score-thr is -1, expected a number from 0 to 1'),
        ('classification', dict(device='banana'), '--device banana cannot be used here .*: use --device cpu'),
        ('classification', dict(device='cuda:99'), '--device cuda:99 cannot be used here'),
    ],
)
def test_invalid_options_are_refused(model_of, tmp_path, task, options, message):
    with pytest.raises(UserError, match=message):
        predict_to(model_of(task), tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()
