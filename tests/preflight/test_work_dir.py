import os
import re
import shutil

import pytest
import torch
from harness import LIBRARIES
from problems import only_training_problem

from fcvit_mm.preflight import work_dir
from fcvit_mm.preflight.checks import PreflightError, check_testing, check_training
from fcvit_mm.preflight.work_dir import checkpoint_size, work_dir_problems


def only_problem(cfg):
    (problem,) = work_dir_problems(cfg)
    return problem


def test_work_dir_that_is_a_file(make_config, tmp_path):
    cfg, _ = make_config('classification')
    cfg.work_dir = str(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').touch()
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    expected = f'work_dir {cfg.work_dir} is a file, expected a folder: give another --work-dir'
    assert only_training_problem(cfg) == expected
    with pytest.raises(PreflightError, match=re.escape(expected)):
        check_testing(cfg, str(tmp_path / 'a.pth'))
    cfg.work_dir = str(tmp_path / 'list.txt' / 'run' / '1')
    assert only_training_problem(cfg).startswith(
        f'work_dir {cfg.work_dir}: {tmp_path / "list.txt"}, above it, is a file, '
    )


def test_full_disk_and_missing_permission(make_config, tmp_path, monkeypatch):
    cfg, _ = make_config('classification')
    cfg.work_dir = str(tmp_path / 'w' / 'deeper')
    (tmp_path / 'w').mkdir()
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    monkeypatch.setattr(work_dir.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    assert 'has 0 MiB free, the checkpoints of this run need' in only_problem(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(work_dir.os, 'access', lambda *args: False)
    assert only_problem(cfg) == (
        f'work_dir {cfg.work_dir} cannot be written ({tmp_path / "w"} is read-only, or belongs to another user): give '
        'another --work-dir'
    )


def test_too_little_space_for_the_first_checkpoint(make_config, tmp_path, monkeypatch):
    cfg, _ = make_config('classification')
    free = checkpoint_size(cfg) - 1
    monkeypatch.setattr(work_dir.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9, 9, free))
    assert only_problem(cfg) == (
        f'{tmp_path} has {free / 2**20:.0f} MiB free, the checkpoints of this run need {free / 2**20:.0f} MiB: free '
        'disk space, give another --work-dir, or lower default_hooks.checkpoint.max_keep_ckpts'
    )
    monkeypatch.setattr(work_dir, 'PLENTY', free)
    assert work_dir_problems(cfg) == []  # and no model is built
    monkeypatch.setattr(work_dir, 'PLENTY', 10 * free)
    cfg.default_hooks.checkpoint.save_optimizer = False
    assert checkpoint_size(cfg) < free / 2 and work_dir_problems(cfg) == []
    cfg.default_hooks.checkpoint.out_dir = '/elsewhere'
    assert checkpoint_size(cfg) == 0
    cfg.model.type = 'Nothing'
    assert checkpoint_size(cfg) == 0


@pytest.mark.parametrize('task', LIBRARIES)
def test_estimated_size_of_checkpoints(trained, make_config, task):
    """The difference are names, numbers and the log."""
    cfg, written = make_config(task)[0], os.path.getsize(trained(task).checkpoint)
    assert 0.97 * written < checkpoint_size(cfg) < written


def test_overwriting_checkpoints_is_a_warning(make_config, logged):
    cfg, _ = make_config('classification')
    os.makedirs(cfg.work_dir)
    check_training(cfg)
    assert not any('earlier run' in line for line in logged)
    torch.save({}, os.path.join(cfg.work_dir, 'epoch_1.pth'))
    check_training(cfg)
    (line,) = [line for line in logged if 'earlier run' in line]
    assert line == (
        f'{cfg.work_dir} has checkpoints of an earlier run, and those of the same name will be overwritten. To '
        'continue that run: --resume; to keep it: another --work-dir'
    )
