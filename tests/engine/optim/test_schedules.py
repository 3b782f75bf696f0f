import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper

from fcvit_mm.engine.optim.schedules import all_settings, follow_config
from fcvit_mm.errors import UserError

LENGTH = 4


def make_run(lr=1.0, weight_decay=0.0, cosine=6, extra=None):
    """An optimizer with a warm-up by iteration and a decay by epoch, as a runner builds it."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=[weights[0]]), dict(params=[weights[1]], lr=lr / 2)]
    optimizer = torch.optim.SGD(groups[: extra or 2], lr=lr, weight_decay=weight_decay)
    optimizer = OptimWrapper(optimizer)
    schedulers = [
        LinearLR(optimizer, 0.1, by_epoch=False, end=6),
        CosineAnnealingLR(optimizer, T_max=cosine, by_epoch=True) if cosine else MultiStepLR(optimizer, [1, 2]),
    ]
    return SimpleNamespace(optim_wrapper=optimizer, param_schedulers=schedulers)


def train(run, begin, end):
    for done in range(begin + 1, end + 1):
        run.optim_wrapper.optimizer.step()
        run.param_schedulers[0].step()
        if done % LENGTH == 0:
            run.param_schedulers[1].step()
    return run


def save(run):
    return dict(
        optimizer=run.optim_wrapper.state_dict(), param_schedulers=[each.state_dict() for each in run.param_schedulers]
    )


def load(run, checkpoint):
    run.optim_wrapper.load_state_dict(checkpoint['optimizer'])
    for scheduler, state in zip(run.param_schedulers, checkpoint['param_schedulers']):
        scheduler.load_state_dict(state)
    return run


def rates(run):
    return [group['lr'] for group in run.optim_wrapper.param_groups]


def test_same_config_changes_nothing():
    checkpoint, run = copy.deepcopy(save(train(make_run(), 0, 9))), make_run()
    before = str(checkpoint)
    assert follow_config(run, checkpoint, all_settings(make_run()), 9, LENGTH, False) == []
    assert str(checkpoint) == before


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(cosine=12), 'CosineAnnealingLR.T_max 6 -> 12'),
        (dict(cosine=None), 'MultiStepLR replaces another schedule'),
        (dict(lr=2.0), 'optimizer: lr'),
        (dict(weight_decay=0.1), 'optimizer: weight_decay 0.0 -> 0.1'),
    ],
)
def test_changed_settings_apply_as_if_set_from_the_start(options, words):
    checkpoint, run = copy.deepcopy(save(train(make_run(), 0, 9))), make_run(**options)
    found = follow_config(run, checkpoint, all_settings(make_run()), 9, LENGTH, False)
    assert any(words.replace(': lr', ': initial_lr') in text for text in found), found
    expected = train(make_run(**options), 0, 9)
    assert rates(load(run, checkpoint)) == rates(expected)
    assert rates(train(run, 9, 17)) == rates(train(expected, 9, 17))
    assert run.optim_wrapper.param_groups[1]['weight_decay'] == options.get('weight_decay', 0.0)


def test_iterations_are_converted_to_the_new_batch_size():
    """Twelve iterations with a smaller batch are six with the current one."""
    checkpoint, run = copy.deepcopy(save(train(make_run(), 0, 12))), make_run()
    assert follow_config(run, checkpoint, None, 6, LENGTH, True) == []
    assert rates(load(run, checkpoint)) == rates(train(make_run(), 0, 6))


def test_other_groups_of_parameters_are_refused():
    with pytest.raises(UserError, match='has 1 parameter groups, the checkpoint 3: resume with the original param'):
        follow_config(make_run(extra=1), save(make_run()), None, 0, LENGTH, False)
