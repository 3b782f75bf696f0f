"""tools/launch.sh, tested with the scripts that source it."""

import os
import re
import shutil
import socket
import sys

import pytest
from harness import ROOT, run_tool, write_config

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
# Starts two tasks on this machine, whatever the options are.
echo "srun $*"
while [[ $1 == -* ]]; do if [[ $1 == -p ]]; then shift; fi; shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=here
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def test_slurm_script_starts_two_processes(config, tmp_path):
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
def test_scripts_without_arguments_print_their_usage(script, usage):
    done = run_tool(script, check=False)
    assert done.returncode == 2 and usage in done.stdout


def test_option_out_with_an_equals_sign():
    done = run_tool('dist_predict.sh', 'no.py', 'a.pth', 1, 'a.jpg', '--out=out', check=False)
    assert done.returncode == 2 and done.stdout.startswith('dist_predict.sh: config no.py does not exist'), done.stdout
    done = run_tool('slurm_predict.sh', 'part', 'job', 'no.py', 'a.pth', 'a.jpg', '--out=out', check=False)
    assert done.returncode == 2 and done.stdout.startswith('slurm_predict.sh: config no.py does not exist'), done.stdout


CONFIG = 'configs/classification/fcvit_tiny_in1k.py'


@pytest.mark.parametrize(
    'env, arguments, message',
    [
        (
            {},
            [CONFIG, 'two'],
            "GPUS is 'two', expected the number of processes on this node, a whole number of at least 1",
        ),
        ({}, [CONFIG, '0'], "GPUS is '0'"),
        ({}, [CONFIG, '--amp'], "GPUS is '--amp'"),
        ({}, ['8', CONFIG], 'config 8 does not exist: .* Without arguments, .*dist_train.sh prints their order'),
        ({'NNODES': 'a'}, [CONFIG, '2'], "NNODES is 'a', expected the number of nodes"),
        ({'NNODES': '2:4'}, [CONFIG, '2'], 'NNODES is 2:4, expected one number: docs/examples/cluster/elastic.sh'),
        ({'NNODES': '2', 'NODE_RANK': '1'}, [CONFIG, '2'], 'NNODES is 2, but MASTER_ADDR is not set: give the address'),
        ({'NNODES': '2', 'NODE_RANK': 'x'}, [CONFIG, '2'], "NODE_RANK is 'x', expected the number of this node"),
        ({'NNODES': '2', 'NODE_RANK': '2'}, [CONFIG, '2'], 'NODE_RANK is 2, expected 0 to 1, another on each of the'),
        ({'NODE_RANK': '1'}, [CONFIG, '2'], 'NODE_RANK is 1, expected 0 to 0'),
        ({'PORT': 'a'}, [CONFIG, '2'], "PORT is 'a', expected a port of the first node"),
        ({'PORT': '70000'}, [CONFIG, '2'], 'PORT is 70000, expected a port of the first node, up to 65535'),
        ({'PYTHON': 'no_python'}, [CONFIG, '2'], 'no interpreter no_python found: activate the environment'),
    ],
)
def test_invalid_settings_are_reported_before_processes_start(env, arguments, message):
    done = run_tool('dist_train.sh', *arguments, env=env, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stdout.count('\n') == 1
    assert re.match(f'dist_train.sh: {message}', done.stdout), done.stdout


def test_unusable_address_and_port_are_reported():
    def problem(**env):
        done = run_tool('dist_train.sh', CONFIG, 1, env={'PYTHON': sys.executable, **env}, cwd=ROOT, check=False)
        assert done.returncode == 2 and done.stdout.count('\n') == 1
        return done.stdout

    unknown = "dist_train.sh: MASTER_ADDR is 'no.such.host.invalid', which is unknown on this machine ("
    assert problem(NNODES='2', MASTER_ADDR='no.such.host.invalid').startswith(unknown)
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen()
        port = other.getsockname()[1]
        used = f'dist_train.sh: PORT is {port}, which cannot be used (Address already in use): set PORT to a free port'
        assert problem(PORT=str(port)).startswith(used)


def test_interpreter_without_torch_is_reported(tmp_path):
    (tmp_path / 'python').write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    done = run_tool('dist_train.sh', CONFIG, 1, env={'PYTHON': str(tmp_path / 'python')}, cwd=ROOT, check=False)
    assert done.returncode == 2 and 'has no torch: activate the environment' in done.stdout


@pytest.mark.parametrize(
    'env, arguments, message',
    [
        ({'GPUS': 'a'}, ['part', 'job', CONFIG], "GPUS is 'a', expected the number of tasks"),
        ({'GPUS_PER_NODE': '-1'}, ['part', 'job', CONFIG], "GPUS_PER_NODE is '-1', .* at least 0"),
        ({'CPUS_PER_TASK': '0'}, ['part', 'job', CONFIG], "CPUS_PER_TASK is '0', expected the number of cores"),
        ({}, ['part', 'job', CONFIG], 'srun not found: run this on a node of a Slurm cluster'),
        ({}, [CONFIG, 'part', 'job'], 'config job does not exist'),
    ],
)
def test_invalid_settings_for_slurm_are_reported(env, arguments, message):
    if shutil.which('srun') and message.startswith('srun'):
        pytest.skip('this machine has Slurm')
    done = run_tool('slurm_train.sh', *arguments, env=env, cwd=ROOT, check=False)
    assert done.returncode == 2 and re.match(f'slurm_train.sh: {message}', done.stdout), done.stdout


def test_torchrun_without_launcher_option_is_refused(tmp_path):
    """Otherwise each process would train alone and write to the same work directory."""
    env = {'TORCHELASTIC_RUN_ID': 'none', 'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0'}
    done = run_tool('train.py', CONFIG, '--work-dir', tmp_path / 'w', env=env, cwd=ROOT, check=False)
    assert done.returncode == 1 and 'train.py: torchrun (tools/dist_train.sh) started 2 processes' in done.stdout
    assert not (tmp_path / 'w').exists()
