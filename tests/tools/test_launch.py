"""tools/launch.sh, by the scripts that source it."""

import os

import pytest
from harness import run_tool, write_config

MORE = """
model.update(backbone=dict(arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
train_dataloader['batch_size'] = 2
val_cfg = val_dataloader = val_evaluator = None
"""


@pytest.fixture
def config(tmp_path, shapes):
    pytest.importorskip('mmpretrain')
    return write_config('classification', tmp_path, shapes('classification'), MORE)


FAKE_SRUN = """#!/bin/bash
# Two tasks on this machine, for all that srun is asked.
echo "srun $*"
while [[ $1 == -* ]]; do if [[ $1 == -p ]]; then shift; fi; shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=here
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def test_slurm(config, tmp_path):
    for name, text in {'srun': FAKE_SRUN, 'scontrol': '#!/bin/sh\necho 127.0.0.1\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'GPUS': '2',
        'GPUS_PER_NODE': '0',
        'SRUN_ARGS': '--exclusive --time=5',
        'MASTER_PORT': str(20001 + os.getpid() % 20000),
    }
    done = run_tool('slurm_train.sh', 'part', 'job', config, tmp_path / 'work', env=env)
    assert (
        '-p part --job-name=job --ntasks=2 --cpus-per-task=5 --kill-on-bad-exit=1 --exclusive --time=5' in done.stdout
    )
    assert '2 CPU processes joined over gloo' in done.stdout
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    'script, usage',
    [
        ('dist_train.sh', 'CONFIG GPUS'),
        ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
        ('dist_predict.sh', 'CONFIG CHECKPOINT GPUS INPUT... --out DIR'),
        ('slurm_predict.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT INPUT... --out DIR'),
        ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG'),
        ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_scripts_say_how_they_are_used(script, usage):
    done = run_tool(script, check=False)
    assert done.returncode == 2 and usage in done.stdout
