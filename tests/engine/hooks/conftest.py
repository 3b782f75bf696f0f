import mmengine.runner
import pytest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what MMEngine's runner asks the system at each start, and its pause between passes."""
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.runner.loops.time, 'sleep', lambda seconds: None)
