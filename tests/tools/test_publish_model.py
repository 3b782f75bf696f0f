"""tools/publish_model.py: its arguments."""

import pytest
from published import main

from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='need --config'):
        main(['a.pth', 'b.pth', '--shape', '64'])
    with pytest.raises(CheckpointError, match='a.pth does not exist'):
        main(['a.pth', 'b.pth'])
