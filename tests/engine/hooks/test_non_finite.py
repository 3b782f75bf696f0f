import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import ROOT, run_ranks
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import nn

from fcvit_mm.engine.hooks.non_finite import NonFiniteError, NonFiniteHook

BAD = 3  # the iteration, counted from 0


class Net(BaseModel):
    """A model whose fourth batch makes the loss, or only one gradient, non-finite."""

    def __init__(self, trouble):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.bn = nn.BatchNorm1d(2)
        self.trouble = trouble

    def forward(self, inputs, data_samples=None, mode='loss'):
        bad = bool(inputs[0, 0] == BAD)
        if bad and self.trouble == 'input':
            inputs = inputs * math.nan
        out = self.bn(self.fc(inputs)).square().mean()
        if bad and self.trouble == 'gradient':
            out = out + (self.fc.bias - self.fc.bias.detach()).sqrt().sum()  # 0, with slope infinity
        if bad and self.trouble == 'loss':
            out = out + math.inf
        return dict(loss=out)


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        torch.manual_seed(index)
        inputs = torch.rand(4, 4)
        inputs[0, 0] = index
        return dict(inputs=inputs, data_samples=[SimpleNamespace(img_path=f'{index}.jpg')])


def train(tmp_path, trouble, iterations=8, **options):
    torch.manual_seed(0)
    model = Net(trouble)
    runner = Runner(
        model,
        str(tmp_path),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        train_dataloader=torch.utils.data.DataLoader(Batches(), collate_fn=lambda samples: samples[0]),
        optim_wrapper=OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1)),
        custom_hooks=[NonFiniteHook(**options), dict(type='EMAHook')],
        experiment_name=tmp_path.name + trouble,
        default_hooks=dict(logger=None, checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=2)),
    )
    error = None
    try:
        runner.train()
    except NonFiniteError as caught:
        error = str(caught)
    return runner, error


def values(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize(
    'trouble, words',
    [
        (
            'input',
            r'iteration 4: non-finite loss: loss = nan. 4 of 4 gradients are not finite \(fc.weight, .*'
            r'largest finite ones: none. Images of the batch: 3.jpg',
        ),
        (
            'gradient',
            r'iteration 4: non-finite gradients: loss = [\d.]+. 1 of 4 gradients are not finite '
            r'\(fc.bias\); largest finite ones: .*(fc|bn).weight [\d.e-]+',
        ),
        ('loss', r'iteration 4: non-finite loss: loss = inf'),
    ],
)
def test_training_stops_before_the_step(trouble, words, tmp_path):
    runner, error = train(tmp_path, trouble)
    assert re.search(words, error), error
    assert 'the last checkpoint is' in error and 'iter_2.pth' in error and "action='skip'" in error
    assert runner.iter == BAD and torch.isfinite(runner.model.fc.weight).all()


@pytest.mark.parametrize('trouble', ['input', 'gradient'])
def test_step_can_be_skipped(trouble, tmp_path):
    runner, error = train(tmp_path, trouble, action='skip')
    assert error is None and runner.iter == 8
    assert torch.isfinite(values(runner.model)).all()
    # Averaged weights and the running statistics of norms have not seen it either.
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert torch.isfinite(values(ema)).all()
    skipper = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteHook))
    assert skipper.total == 1 and skipper.in_a_row == 0


def test_skipped_step_changes_nothing(tmp_path):
    before, _ = train(tmp_path / 'a', 'none', iterations=BAD)
    after, _ = train(tmp_path / 'b', 'input', iterations=BAD + 1, action='skip')
    assert torch.equal(values(before.model), values(after.model))


def test_weights_become_nan_without_the_hook(tmp_path, monkeypatch):
    """Otherwise the tests above could not fail."""
    monkeypatch.setattr(NonFiniteHook, '_check_gradients', lambda *args: None)
    monkeypatch.setattr(NonFiniteHook, 'after_train_iter', lambda *args, **kwargs: None)
    runner, _ = train(tmp_path, 'input')
    assert torch.isnan(runner.model.fc.weight).all()


def test_too_many_skipped_steps_in_a_row_end_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, 'forward', lambda self, **batch: dict(loss=self.fc.weight.sum() * math.nan))
    runner, error = train(tmp_path, 'none', action='skip', max_skips=3)
    assert '3 steps in a row were skipped' in error and runner.iter == 2


#: Trains with FSDP: each of two processes has the gradients of some parameters only.
RANK = """
import logging, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from mmengine.optim import OptimWrapper
from torch.distributed.fsdp import FullyShardedDataParallel
sys.path[:0] = PATHS
from test_non_finite import BAD, Batches, Net, NonFiniteHook

logging.basicConfig(stream=sys.stdout)
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
torch.manual_seed(0)
model = FullyShardedDataParallel(Net(sys.argv[1]), use_orig_params=True, device_id=torch.device('cpu'))
wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, logger=logging.getLogger())
hook = NonFiniteHook('skip')
hook.before_train(runner)
for runner.iter in range(BAD + 2):
    batch = Batches()[runner.iter if rank == 1 else 7]
    hook.before_train_iter(runner, 0, batch)
    loss = model(**batch)['loss']
    wrapper.update_params(loss)
    hook.after_train_iter(runner, 0, batch, dict(loss=loss))
print('skips', hook.total, 'steps', {int(state['step']) for state in wrapper.optimizer.state.values()})
"""


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.4'), reason='older: no FSDP over gloo')
@pytest.mark.parametrize(
    'trouble, words',
    [
        ('input', r'iteration 4: non-finite loss of process 1: loss = nan. 4 of 4 gradients .* batch: 3.jpg. The step'),
        ('gradient', r'iteration 4: non-finite gradients: .* 1 of 4 .* \(fc.bias\); .* batch: 7.jpg, 3.jpg. The step'),
    ],
)
def test_all_processes_skip_a_step_of_which_one_has_the_gradients(trouble, words, tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(f'PATHS = {[str(Path(__file__).parent), str(ROOT / "tests")]}\n{RANK}')
    for process in run_ranks(2, str(script), trouble):
        assert re.search(words, process.stdout) and 'skips 1 steps {4}' in process.stdout, process.stdout


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(action='ignore'), r"action is 'ignore', expected one of \['stop', 'skip'\]"),
        (dict(max_skips=0), 'max_skips is 0, expected 1 or more'),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NonFiniteHook(**options)
