"""The arguments of tools/publish_model.py."""

import pytest
from published import main

from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError


def test_invalid_arguments_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='need --config'):
        main(['a.pth', 'b.pth', '--shape', '64'])
    with pytest.raises(CheckpointError, match='a.pth does not exist'):
        main(['a.pth', 'b.pth'])
