import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from small_run import Line

from fcvit_mm.engine.hooks.foreign_checkpoints import FindWeightsHook, find_weights

FILES = {
    'mmengine': lambda weights: {'state_dict': weights},
    'bare': lambda weights: weights,
    'timm': lambda weights: {'model': weights, 'model_ema': {key: value + 1 for key, value in weights.items()}},
    'compiled': lambda weights: {'model': {f'_orig_mod.{key}': value for key, value in weights.items()}},
    'compiled part': lambda weights: {
        'state_dict': {
            '.'.join([*key.split('.')[:-1], '_orig_mod', key.split('.')[-1]]): weights[key] for key in weights
        }
    },
    'compiled and parallel': lambda weights: {
        'state_dict': {f'module._orig_mod.{key}': value for key, value in weights.items()}
    },
}


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('kind', FILES)
def test_weights_in_any_container_are_loaded(kind, ema, tmp_path):
    weights = {key: torch.rand_like(value) for key, value in Line().state_dict().items()}
    torch.save(FILES[kind](weights), tmp_path / 'a.pth')
    hooks = [dict(type='EMAHook')] if ema else []
    runner = Runner(
        dict(type='Line'), str(tmp_path), load_from=str(tmp_path / 'a.pth'), custom_hooks=hooks, log_level='ERROR'
    )
    for _ in range(2):
        find_weights(runner)
    assert sum(isinstance(hook, FindWeightsHook) for hook in runner.hooks) == 1
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_run(runner)
    runner.load_or_resume()
    assert all(torch.equal(value, weights[key]) for key, value in runner.model.state_dict().items())
