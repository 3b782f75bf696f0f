import mmengine.runner
import pytest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Skip the report of the environment and the pauses of MMEngine's runner."""
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.runner.loops.time, 'sleep', lambda seconds: None)
