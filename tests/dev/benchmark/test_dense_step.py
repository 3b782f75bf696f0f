"""Training steps of detectors and segmentors."""

import numpy as np
import pytest
from harness import LIBRARIES, ROOT

from fcvit_mm.errors import UserError

pytest.importorskip('matplotlib')


@pytest.mark.parametrize(
    'task, config', [('detection', 'mask_rcnn_fcvit_tiny_coco'), ('segmentation', 'upernet_fcvit_tiny_ade20k')]
)
def test_training_steps_are_timed(load, results, tmp_path, task, config):
    pytest.importorskip(LIBRARIES[task])
    options = {
        'detection': ['model.train_cfg.rpn_proposal.max_per_img=20', 'model.train_cfg.rcnn.sampler.num=16'],
        'segmentation': ['model.decode_head.channels=32', 'model.auxiliary_head.channels=16'],
    }
    arguments = '--ways reference ours --size 64x96 --batch 2 --objects 2 --rounds 1 --warmup 0 --threads 1 --no-memory'
    load('dense_step').main(
        [
            str(ROOT / 'configs' / task / f'{config}.py'),
            *arguments.split(),
            '--out',
            str(tmp_path),
            '--cfg-options',
            *options[task],
        ]
    )
    found = results(tmp_path)
    assert [row['label'] for row in found['rows']] == ['reference', 'ours']
    assert np.isfinite(found['rows'][1]['times_faster_than']['reference']['median_of_ratios'])


def test_classifiers_are_refused(load, tmp_path):
    pytest.importorskip('mmpretrain')
    with pytest.raises(UserError, match='expected a detector or segmentor: time classifiers with speed.py'):
        load('dense_step').main(
            [str(ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py'), '--out', str(tmp_path)]
        )
