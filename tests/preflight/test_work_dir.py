import re
import shutil

import pytest
import torch
from problems import only_training_problem as only_problem

from fcvit_mm.preflight import work_dir
from fcvit_mm.preflight.checks import PreflightError, check_testing


def test_work_dir_that_is_a_file(own, tmp_path):
    cfg, _ = own('classification')
    cfg.work_dir = str(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').touch()
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    expected = f'work_dir {cfg.work_dir} is a file, expected a folder: give another --work-dir'
    assert only_problem(cfg) == expected
    with pytest.raises(PreflightError, match=re.escape(expected)):
        check_testing(cfg, str(tmp_path / 'a.pth'))
    cfg.work_dir = str(tmp_path / 'list.txt' / 'run' / '1')
    assert only_problem(cfg).startswith(f'work_dir {cfg.work_dir}: {tmp_path / "list.txt"}, above it, is a file, ')


def test_no_room_and_no_right(own, tmp_path, monkeypatch):
    cfg, _ = own('classification')
    cfg.work_dir = str(tmp_path / 'w' / 'deeper')
    (tmp_path / 'w').mkdir()
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    monkeypatch.setattr(work_dir.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    assert 'has 0 MiB free, the checkpoints of this run need' in only_problem(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(work_dir.os, 'access', lambda *args: False)
    assert f'work_dir {cfg.work_dir} cannot be written ({tmp_path / "w"} is read-only, or belongs to ' in only_problem(
        cfg
    )
