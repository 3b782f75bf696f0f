import pytest
from mmengine.runner import Runner

from fcvit_mm.engine.run import train
from fcvit_mm.errors import LibraryError
from fcvit_mm.preflight import start
from fcvit_mm.preflight.checks import PreflightError
from fcvit_mm.preflight.start import explained_start


def test_component_that_cannot_be_built_is_named(make_config):
    cfg, _ = make_config('classification', {'optim_wrapper.optimzer': 1})
    text = r"- optim_wrapper: .*'optimzer'; did you mean 'optimizer'\? Correct"
    with pytest.raises(PreflightError, match=text), explained_start(cfg):
        train(cfg)


def test_other_errors_are_not_changed(make_config, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError('missing')

    cfg, _ = make_config('classification')
    monkeypatch.setattr(Runner, 'call_hook', fail)  # all parts can be built
    with pytest.raises(LibraryError, match="KeyError: 'missing'"), explained_start(cfg):
        train(cfg)
    monkeypatch.undo()
    cfg, _ = make_config('classification')
    monkeypatch.setattr('mmengine.model.BaseModel.train_step', fail)
    monkeypatch.setattr(start, 'build_problems', lambda cfg: pytest.fail('the parts were built'))
    with pytest.raises(LibraryError, match="KeyError: 'missing'"), explained_start(cfg):
        train(cfg)
