import inspect

import pytest
import torch
from mmengine.optim import MultiStepLR

from fcvit_mm.engine.optim.steps import call_before_step


@pytest.fixture
def optimizer():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.5)


def test_function_is_called_before_each_step_until_removed(optimizer):
    seen = []
    end = call_before_step(optimizer, lambda: seen.append(optimizer.param_groups[0]['params'][0][0].item()))
    optimizer.step()
    assert optimizer.step(lambda: 7.0) == 7.0
    assert 'closure' in inspect.signature(optimizer.step).parameters
    end()
    assert 'step' not in vars(optimizer)
    optimizer.step()
    assert seen == [1.0, 0.5]


def test_function_is_called_without_optimizer_hooks(optimizer, monkeypatch):
    monkeypatch.setattr(type(optimizer), 'step', lambda self, closure=None: calls.append('step'))
    calls = []
    call_before_step(optimizer, lambda: calls.append('before'))
    optimizer.step()
    assert calls == ['before', 'step']


@pytest.mark.parametrize('first', ['the function', 'the scheduler'])
@pytest.mark.parametrize('library', ['torch', 'mmengine'])
def test_schedulers_count_steps_in_either_order(library, first, optimizer, recwarn):
    calls, ends = [], []

    def schedule():
        if library == 'torch':
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
        return MultiStepLR(optimizer, [1], by_epoch=False)

    def add():
        ends.append(call_before_step(optimizer, lambda: calls.append(1)))

    if first == 'the scheduler':
        scheduler = schedule()
        add()
    else:
        add()
        scheduler = schedule()
    optimizer.step()
    scheduler.step()
    assert calls == [1] and optimizer.param_groups[0]['lr'] == pytest.approx(0.05)
    assert not [warning for warning in recwarn if 'optimizer.step()' in str(warning.message)]
    ends[0]()
    optimizer.step()
    assert calls == [1]


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch before 2.3 scales gradients on GPUs only')
def test_function_is_not_called_for_steps_that_the_scaler_skips(optimizer):
    calls = []
    call_before_step(optimizer, lambda: calls.append(1))
    scaler = torch.amp.GradScaler('cpu', init_scale=1.0)
    (parameter,) = optimizer.param_groups[0]['params']
    for gradient, expected in ((1.0, 1), (float('inf'), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * gradient).backward()
        scaler.step(optimizer)
        scaler.update()
        assert len(calls) == expected
