"""Optimizer states that are missing in a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict

from fcvit_mm.engine.optim.states import count_states, keeps_state, missing_states
from fcvit_mm.errors import UserError


def make_run(kind=torch.optim.AdamW, unused=False, several=False, **options):
    """A run with an optimizer, after one step; ``unused``: its last parameter gets no gradient."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = kind(model.parameters(), lr=0.1, **options)
    for name, parameter in model.named_parameters():
        if not unused or name != '1.bias':
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    wrapper = OptimWrapper(optimizer)
    if several:
        wrapper = OptimWrapperDict(first=wrapper)
    return SimpleNamespace(model=model, optim_wrapper=wrapper, param_schedulers={} if several else [])


@pytest.mark.parametrize('several', [False, True])
def test_complete_states(several):
    run = make_run(several=several)
    saved = run.optim_wrapper.state_dict()
    assert count_states(run, saved) == [4]
    for before in ([4], None):
        assert missing_states(run, saved, before) == ''


@pytest.mark.parametrize('before', [[4], None])
def test_missing_states_are_refused(before):
    run = make_run()
    saved = dict(run.optim_wrapper.state_dict(), state={})
    way_out = 'resume from another checkpoint, or start from its weights only, with load_from and without --resume'
    with pytest.raises(UserError, match=way_out) as error:
        missing_states(run, saved, before)
    part = '(AdamW) of 0 of 4 parameters, but of 4 when it was written' if before else 'state (AdamW) of any parameter'
    assert part in str(error.value)


def test_partly_missing_states():
    run = make_run()
    saved = run.optim_wrapper.state_dict()
    saved['state'] = {key: value for key, value in saved['state'].items() if key < 2}
    with pytest.raises(UserError, match='of 2 of 4 parameters, but of 4 when it was written, so it was changed since'):
        missing_states(run, saved, [4])
    # Of a checkpoint that does not say how many there were, it is unknown whether they ever were.
    problem = missing_states(run, saved, None)
    assert 'has no optimizer state (AdamW) of 2 of 4 parameters (1.weight, 1.bias), which start without one' in problem
    run.model[1].requires_grad_(False)
    assert missing_states(run, saved, None) == ''


def test_parameter_without_a_gradient():
    run = make_run(unused=True)
    saved = run.optim_wrapper.state_dict()
    assert count_states(run, saved) == [3] and missing_states(run, saved, [3]) == ''
    assert '1 of 4 parameters (1.bias)' in missing_states(run, saved, None)


def test_optimizers_that_keep_no_state():
    run = make_run(torch.optim.SGD)
    saved = dict(run.optim_wrapper.state_dict(), state={})
    assert missing_states(run, saved, None) == '' and missing_states(run, saved, [0]) == ''
    assert not keeps_state(run.optim_wrapper.optimizer)
    assert keeps_state(make_run(torch.optim.SGD, momentum=0.9).optim_wrapper.optimizer)
    assert not keeps_state(torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))]))  # its step needs a closure


def test_groups_of_other_sizes_are_refused():
    run, other = make_run(), make_run()
    saved = other.optim_wrapper.state_dict()
    saved['param_groups'][0]['params'].pop()
    with pytest.raises(UserError, match='group 0 of the optimizer has 4 parameters, in the checkpoint 3: resume from'):
        missing_states(run, saved, None)


def test_states_with_names_are_not_checked():
    """FSDP saves states under the names of parameters, but its optimizer has one parameter for each unit."""
    run = make_run()
    names = [f'layer.{number}.weight' for number in range(9)]
    saved = dict(state={name: dict(step=1) for name in names}, param_groups=[dict(params=names)])
    assert count_states(run, saved) == [] and missing_states(run, saved, None) == missing_states(run, saved, []) == ''


def test_groups_of_other_sizes_do_not_prevent_saving():
    run = make_run()
    saved = run.optim_wrapper.state_dict()
    saved['param_groups'][0]['params'] = [0, 1]
    assert count_states(run, saved) == [2]
