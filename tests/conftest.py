"""Shared by all tests. That it stands here puts this folder on the path, for ``import reference``."""
import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def log(caplog):
    """What MMEngine's logger says: ``log.text``, ``log.records``. (It does not propagate to the root logger.)"""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
