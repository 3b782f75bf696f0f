import multiprocessing
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_run
import torch
from harness import ROOT, run_python
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from small_run import train

from fcvit_mm import files
from fcvit_mm.engine.hooks.checkpoint import AtomicCheckpointHook, CheckpointWriteError
from fcvit_mm.engine.resume_point import find_resume_point
from fcvit_mm.registry import HOOKS

ALONE = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import small_run

class Group(small_run.RecordingHook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            os.killpg(0, signal.SIGTERM)

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.iter >= 5:
            os.kill(os.getpid(), signal.SIGTERM)  # again, as torchrun does

small_run.RecordingHook = Group
small_run.train(Path({work_dir!r}), by_epoch=True, workers=2)
"""


@pytest.mark.parametrize(
    'error, reason, solution',
    [
        (
            OSError(28, 'No space left on device'),
            'No space left on device; .* are free there',
            'Free disk space, or .*',
        ),
        (FileNotFoundError(2, 'No such file'), 'No such file', r'Check that no other run writes .* own --work-dir\)'),
        (PermissionError(13, 'Permission denied'), 'Permission denied', 'Make the folder writable'),
    ],
)
def test_failed_write_ends_training_and_keeps_the_last_checkpoint(error, reason, solution, tmp_path, monkeypatch):
    original = files.os.replace

    def replace(source, target):
        if target.endswith('epoch_2.pth'):
            raise error
        original(source, target)

    monkeypatch.setattr(files.os, 'replace', replace)
    with pytest.raises(
        CheckpointWriteError,
        match=f'epoch_2.pth .* could not be written: {reason}. {solution}. Training ends here. .*epoch_1.pth '
        'is complete: resume from it with --resume',
    ):
        train(tmp_path, by_epoch=True)
    assert find_resume_point(str(tmp_path)).endswith('epoch_1.pth')
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['epoch_1.pth']


def test_full_disk_while_writing_last_checkpoint(tmp_path, monkeypatch):
    original = files.os.replace

    def replace(source, target):
        if target.endswith('last_checkpoint'):
            raise OSError(28, 'No space left on device')
        original(source, target)

    monkeypatch.setattr(files.os, 'replace', replace)
    with pytest.raises(CheckpointWriteError, match='last_checkpoint .* Training ends here. .*epoch_1.pth is complete'):
        train(tmp_path, by_epoch=True)
    assert find_resume_point(str(tmp_path)).endswith('epoch_1.pth')


@HOOKS.register_module()
class Validates(Hook):
    """Report a score as a validation does, with the type that mmseg's metric returns."""

    def after_train_epoch(self, runner):
        hook = next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
        hook.after_val_epoch(runner, {'mIoU': np.float32(12.5), 'name': 'a'})


def test_best_score_of_numpy_is_saved_as_a_float(tmp_path):
    change = dict(custom_hooks=[dict(type='Validates', priority='VERY_HIGH')])
    train(tmp_path, by_epoch=True, change=change, save_best='mIoU', rule='greater')
    found = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['message_hub']['runtime_info']['best_score']
    assert type(found) is float and found == 12.5


@pytest.mark.parametrize('keep, left', [(1, ['epoch_3.pth']), (2, ['epoch_2.pth', 'epoch_3.pth'])])
def test_old_checkpoints_are_removed_after_the_new_one_is_written(keep, left, tmp_path, monkeypatch):
    seen = []
    original = AtomicCheckpointHook._point_to

    def point_to(self, runner, path):
        seen.append(sorted(file.name for file in tmp_path.glob('*.pth')))
        original(self, runner, path)

    monkeypatch.setattr(AtomicCheckpointHook, '_point_to', point_to)
    train(tmp_path, by_epoch=True, max_keep_ckpts=keep)
    # While last_checkpoint is written, the checkpoint that it named is still there.
    assert [len(files) for files in seen] == [1, 2, min(keep + 1, 3)]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == left


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('copied', [False, True])
def test_checkpoints_of_a_run_resumed_in_another_folder_are_kept(several, copied, tmp_path):
    there, here = tmp_path / 'there', tmp_path / 'here'
    for folder in [there, here] if copied else [there]:
        folder.mkdir()
        for name in ('best_a_epoch_1.pth', 'best_b_epoch_1.pth', 'epoch_1.pth'):
            (folder / name).touch()
    here.mkdir(exist_ok=True)
    hook = AtomicCheckpointHook(save_best=['a', 'b'] if several else 'a', rule='greater')
    keys = dict(best_ckpt_a='a', best_ckpt_b='b') if several else dict(best_ckpt='a')
    info = {key: str(there / f'best_{name}_epoch_1.pth') for key, name in keys.items()}
    info['last_ckpt'] = str(there / 'epoch_1.pth')
    hub = SimpleNamespace(runtime_info=info, get_info=info.get)
    logger = SimpleNamespace(info=print)
    hook.before_train(SimpleNamespace(work_dir=str(here), message_hub=hub, logger=logger, _resume=False))
    hook.stop_listening()
    bests = [str(here / f'best_{name}_epoch_1.pth') if copied else None for name in keys.values()]
    assert hook._bests() == ([None, *bests] if several else bests)
    assert [info[key] for key in keys] == bests
    assert hook.last_ckpt == str((here if copied else there) / 'epoch_1.pth')


def test_temporary_files_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / '.epoch_1.pth.abcdefgh.tmp').write_bytes(b'half')
    (tmp_path / '.last_checkpoint.abcdefgh.tmp').write_bytes(b'half')
    train(tmp_path, by_epoch=True)
    assert not list(tmp_path.glob('.*.tmp'))


@HOOKS.register_module()
class TheirCheckpointHook(CheckpointHook):
    """A checkpoint hook of another package, which saves one more checkpoint."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if runner.iter == 1:
            runner.save_checkpoint(runner.work_dir, 'theirs.pth', by_epoch=False)


@pytest.mark.parametrize('runner', [{}, dict(runner_type='FlexibleRunner', env_cfg={})])
def test_other_checkpoint_hooks_write_atomically_and_at_sigterm(runner, tmp_path, monkeypatch):
    written, original = [], files.write_atomic
    monkeypatch.setattr(
        files, 'write_atomic', lambda path, data: (written.append(Path(path).name), original(path, data))
    )
    change = {**runner, **({'strategy': dict(type='SingleDeviceStrategy')} if runner else {})}
    change['default_hooks.checkpoint.type'] = 'TheirCheckpointHook'
    train(tmp_path, by_epoch=True, end=6, how='SIGTERM', change=change)
    assert {'theirs.pth', 'epoch_1.pth', 'interrupted.pth'} <= set(written)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('interrupted.pth')
    assert torch.load(tmp_path / 'interrupted.pth', weights_only=False)['meta']['iter'] == 7
    assert 'atomic' not in LocalBackend.put.__qualname__.lower()


@pytest.mark.parametrize('ended', ['in training', 'before the removal', 'in the last validation'])
def test_complete_run_removes_the_interrupted_checkpoint(ended, tmp_path):
    """Also if no later checkpoint replaces it."""
    interrupted, last = tmp_path / 'interrupted.pth', tmp_path / 'last_checkpoint'
    train(tmp_path, by_epoch=True, end=6, how='SIGTERM')
    state = interrupted.read_bytes()
    if ended != 'in training':
        train(tmp_path, by_epoch=True, resume=True)
    if ended == 'before the removal':
        interrupted.write_bytes(state)
    elif ended == 'in the last validation':
        interrupted.write_bytes((tmp_path / 'epoch_3.pth').read_bytes())
        last.write_text(str(interrupted))
    seen, runner = train(tmp_path, by_epoch=True, resume=True)
    assert (len(seen), runner.iter) == (5 if ended == 'in training' else 0, 12)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
    assert last.read_text() == str(tmp_path / 'epoch_3.pth')


def test_interrupted_checkpoint_that_is_a_folder_is_removed(tmp_path, monkeypatch):
    """FSDP and DeepSpeed write folders."""

    class InLastValidation(small_run.RecordingHook):
        def after_train(self, runner):
            (tmp_path / 'interrupted.pth').mkdir()
            (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'interrupted.pth'))

    monkeypatch.setattr(small_run, 'RecordingHook', InLastValidation)
    train(tmp_path, by_epoch=True)
    assert not (tmp_path / 'interrupted.pth').exists()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


def test_forked_processes_end_at_sigterm(tmp_path, monkeypatch):
    """mmdet's VOCMetric ends the processes of its pool with SIGTERM and waits for them: training hung."""
    ended = []

    class Forks(small_run.RecordingHook):
        def after_train_epoch(self, runner):
            process = multiprocessing.get_context('fork').Process(target=threading.Event().wait, args=(60,))
            process.start()
            process.terminate()
            process.join(20)
            ended.append(process.exitcode)
            process.kill()

    monkeypatch.setattr(small_run, 'RecordingHook', Forks)
    train(tmp_path, by_epoch=True)
    assert ended == [-signal.SIGTERM] * 3
    assert not (tmp_path / 'interrupted.pth').exists()


def test_sigterm_to_the_process_group_and_while_saving(tmp_path):
    """Slurm sends SIGTERM to the process group, maybe twice; torch would end training because its workers ended."""
    code = ALONE.format(root=str(ROOT), tests=str(ROOT / 'tests'), work_dir=str(tmp_path))
    done = run_python('-c', code, start_new_session=True)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('interrupted.pth'), done.stderr
    saved = torch.load(tmp_path / 'interrupted.pth', map_location='cpu', weights_only=False)
    assert saved['meta']['iter'] in (5, 6) and saved['optimizer']['state']
