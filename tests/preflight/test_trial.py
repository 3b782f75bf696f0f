import logging
import re
from pathlib import Path

import pytest
from harness import write_config
from mmengine.logging import MMLogger

from fcvit_mm.engine.config import load_config
from fcvit_mm.preflight.trial import checkpoints_to_come, duration, format_trial, run_trial

SMALL = """
model.update(backbone=dict(init_cfg=None, arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
"""


@pytest.fixture
def trial(tmp_path, shapes):

    def run(more='', options=None, launcher='none'):
        pytest.importorskip('mmpretrain')
        config = write_config('classification', tmp_path, shapes('classification'), SMALL + more)
        return run_trial(load_config(config, options, str(tmp_path / 'w'), launcher), str(tmp_path / 'w'))

    return run


def test_report_of_a_trial(trial, tmp_path):
    found = trial()
    assert found.problems == [] and found.batch == 4 and found.iterations == 2
    assert found.step_seconds > 0 and found.memory > 2**20 and found.checkpoint > 10_000
    assert found.validations == 1 and found.val_batches == 2 and 'accuracy/top1' in found.metrics
    text = format_trial(found, 0)
    for words in (
        r'trainable +[\d,]+ parameters',
        r'one step +[\d.]+ s for 4 images',
        'memory .*an estimate',
        'training +2 iterations, about .*, estimated',
        'validation +1 times 2 batches',
        'checkpoints +at most 3 files of',
    ):
        assert re.search(words, text), text
    assert 'metrics: none of these predictions' in format_trial(found._replace(metrics=[]), 0)
    assert not (tmp_path / 'w').exists()
    # No logger has a handler for a file in the removed folder of the trial.
    files = [
        handler.baseFilename
        for logger in MMLogger._instance_dict.values()
        for handler in logger.handlers
        if isinstance(handler, logging.FileHandler)
    ]
    assert all(Path(file).parent.is_dir() for file in files), files


def test_problems_that_would_end_the_run_later(trial):
    found = trial(
        "default_hooks['checkpoint'] = dict(save_best='accuracy/top7', max_keep_ckpts=2)\n"
        'optim_wrapper = dict(optimizer=dict(lr=1e30), clip_grad=None)\nparam_scheduler = []\n'
    )
    assert any(
        problem.startswith(
            "default_hooks.checkpoint.save_best='accuracy/top7' is not one of the metrics (accuracy/top1"
        )
        for problem in found.problems
    )
    assert any(re.match('after 3 steps loss = nan: lower the learning rate', problem) for problem in found.problems)


def test_parameters_without_a_gradient(trial):
    found = trial(options={'model.backbone.out_indices': [2, 3]})
    (warning,) = found.warnings
    assert 'norm2' in warning and 'parameters get no gradient' in warning and 'out_indices=(3,)' in warning
    assert found.problems == [] and warning in format_trial(found, 0)
    (problem,) = trial(options={'model.backbone.out_indices': [2, 3]}, launcher='pytorch').problems
    assert 'norm2' in problem and 'out_indices=(3,)' in problem and 'DistributedDataParallel would stop' in problem
    options = {'model.backbone.out_indices': [2, 3], 'find_unused_parameters': True}
    found = trial(options=options, launcher='pytorch')
    assert found.problems == [] and found.warnings == []


@pytest.mark.parametrize(
    'checkpoint, number',
    [
        (dict(interval=1), 101),
        (dict(interval=10), 11),
        (dict(interval=1, max_keep_ckpts=3), 4),
        (dict(interval=1, max_keep_ckpts=3, save_best='a'), 5),
        (dict(), 2),
        (dict(interval=1, max_keep_ckpts=3, save_best=['a', 'b']), 6),
    ],
)
def test_number_of_checkpoints(checkpoint, number):
    class Loop:
        max_epochs, max_iters = 100, 1000

    assert checkpoints_to_come(checkpoint, Loop, by_iter=False) == number


@pytest.mark.parametrize(
    'seconds, words', [(3, '3 seconds'), (600, '10.0 minutes'), (36000, '10.0 hours'), (864000, '10.0 days')]
)
def test_duration(seconds, words):
    assert duration(seconds) == words
