"""Distributed training in which one process is killed, and after resuming one gets SIGTERM."""

import signal
import subprocess
import time

import pytest
import torch
from harness import forked_python, run_ranks, run_tool, write_config

END = """
import os, signal, time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class End(Hook):
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rank, iteration, name = os.environ['END'].split()
        if runner.rank == int(rank) and runner.iter + 1 == int(iteration):
            os.kill(os.getpid(), getattr(signal, name))

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.rank == 0 and runner.iter == 6:
            time.sleep(1)  # as for a large file: torchrun terminates process 0 as soon as another process has ended
"""
MORE = """
custom_imports = dict(imports=['fcvit_mm', 'end'], allow_failed_imports=False)
custom_hooks = [dict(type='End')]
model.update(backbone=dict(arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
train_dataloader['batch_size'] = 1
train_cfg = dict(max_epochs=3)
default_hooks['checkpoint'] = dict(type='AtomicCheckpointHook', listen_interval=1)
val_cfg = val_dataloader = val_evaluator = None
"""


def test_killed_process_and_sigterm_end_training_with_a_checkpoint(shapes, tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'end.py').write_text(END)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    config = write_config('classification', tmp_path, shapes('classification'), MORE)
    work_dir = tmp_path / 'w'

    subprocess.run([forked_python(), '-c', ''], check=True)  # so that the imports do not count
    # With epochs of 4 iterations, one epoch is complete.
    start = time.monotonic()
    first, second = run_ranks(2, 'train.py', config, '--work-dir', work_dir, check=False, env={'END': '1 6 SIGKILL'})
    assert first.returncode == 1 and second.returncode == -signal.SIGKILL and time.monotonic() - start < 90
    for words in (
        'process 0 lost the connection to another process of this run',
        'Restart all processes with --resume',
    ):
        assert words in first.stdout
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')

    done = run_tool(
        *('dist_train.sh', config, 2, '--work-dir', work_dir, '--resume'), check=False, env={'END': '0 7 SIGTERM'}
    )
    output = done.stdout
    assert done.returncode != 0
    assert 'resumed epoch: 1, iter: 4' in output
    assert 'SIGTERM: saving interrupted.pth after iteration 7 and exiting. Resume with --resume' in output
    assert 'exitcode  : 143' in output or 'exitcode: 143' in output, output
    saved = torch.load(work_dir / 'interrupted.pth', map_location='cpu', weights_only=False)
    assert (saved['meta']['epoch'], saved['meta']['iter']) == (1, 7) and saved['optimizer']['state']
    assert (work_dir / 'last_checkpoint').read_text().endswith('interrupted.pth')
