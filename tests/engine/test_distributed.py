import socket

import pytest
import torch.distributed
from mmengine.config import Config

from fcvit_mm.engine import distributed
from fcvit_mm.engine.distributed import (
    LauncherError,
    joined_processes,
    rendezvous_env,
    wrap_model_for_cpus,
)

SLURM = {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1'}
TORCHRUN = {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29501'}
MPI = {
    'OMPI_COMM_WORLD_RANK': '1',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
}


@pytest.mark.parametrize(
    'launcher, env, expected',
    [
        (
            'pytorch',
            {'RANK': '3', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a', 'MASTER_PORT': '5'},
            {'RANK': '3', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a', 'MASTER_PORT': '5'},
        ),
        # LOCAL_RANK stands there because tools/train.py sets it for everybody.
        (
            'slurm',
            {**SLURM, 'MASTER_ADDR': 'a', 'LOCAL_RANK': '0'},
            {'RANK': '3', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a', 'MASTER_PORT': '29500'},
        ),
        (
            'mpi',
            MPI,
            {'RANK': '1', 'WORLD_SIZE': '2', 'LOCAL_RANK': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'},
        ),
    ],
)
def test_rendezvous(launcher, env, expected):
    assert rendezvous_env(launcher, env) == expected


def test_slurm_asks_for_the_first_node(tmp_path, monkeypatch):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\necho first\necho second\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    assert rendezvous_env('slurm', {**SLURM, 'SLURM_NODELIST': 'n[1-2]'})['MASTER_ADDR'] == 'first'


@pytest.mark.parametrize(
    'launcher, env, message',
    [
        ('pytorch', {}, 'RANK, WORLD_SIZE, LOCAL_RANK in the environment.*torchrun'),
        ('slurm', {'SLURM_PROCID': '0'}, 'SLURM_NTASKS, SLURM_LOCALID.*srun'),
        ('mpi', {**MPI, 'OMPI_COMM_WORLD_SIZE': '4'}, 'needs MASTER_ADDR'),
        ('pytorch', {**TORCHRUN, 'WORLD_SIZE': ''}, '--launcher pytorch needs WORLD_SIZE in the environment'),
        (
            'pytorch',
            {**TORCHRUN, 'MASTER_ADDR': ''},
            "needs MASTER_ADDR in the environment: set it to the first node's",
        ),
        (
            'pytorch',
            {**TORCHRUN, 'WORLD_SIZE': '0'},
            "WORLD_SIZE is '0' .* expected the number of processes, at least 1:",
        ),
        (
            'pytorch',
            {**TORCHRUN, 'RANK': '2'},
            r"RANK is '2' in the environment, expected the number of this process among 2 \(WORLD_SIZE\), 0 to 1: let "
            'the launcher set it, or correct it for all processes',
        ),
        ('slurm', {**SLURM, 'SLURM_PROCID': 'a'}, r"SLURM_PROCID is 'a' .* among 4 \(SLURM_NTASKS\), 0 to 3:"),
        ('pytorch', {**TORCHRUN, 'MASTER_PORT': 'abc'}, "MASTER_PORT is 'abc' .* a free port .*, 1 to 65535"),
        ('pytorch', {**TORCHRUN, 'MASTER_PORT': '70000'}, "MASTER_PORT is '70000'"),
        ('pytorch', {**TORCHRUN, 'LOCAL_RANK': '-1'}, "LOCAL_RANK is '-1' .* on its machine, at least 0"),
    ],
)
def test_missing_or_wrong_environment(launcher, env, message):
    with pytest.raises(LauncherError, match=message):
        rendezvous_env(launcher, env)


@pytest.mark.parametrize('script', [None, '#!/bin/sh\necho Invalid hostlist >&2; exit 1\n', '#!/bin/sh\n'])
def test_unknown_first_node_of_slurm_is_reported(tmp_path, monkeypatch, script):
    if script:
        (tmp_path / 'scontrol').write_text(script)
        (tmp_path / 'scontrol').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    reason = 'Invalid hostlist' if script and 'Invalid' in script else ''
    message = rf'scontrol show hostname n\[1-2\] does not name the first node \(.*{reason}.*\): set MASTER_ADDR to its'
    with pytest.raises(LauncherError, match=message):
        rendezvous_env('slurm', {**SLURM, 'SLURM_NODELIST': 'n[1-2]'})


@pytest.fixture
def launched(monkeypatch):
    """Set the environment as torchrun does for the first of two processes; return a function that changes it."""

    def change(**env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)
    change(**TORCHRUN)
    return change


def join(**env_cfg):
    with joined_processes(Config(dict(launcher='pytorch', env_cfg=env_cfg))):
        pytest.fail('the processes joined')


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('seconds', ['1h', 0, -1.0, True])
def test_invalid_timeout_is_refused(launched, monkeypatch, device, seconds):
    monkeypatch.setattr(distributed, 'get_device', lambda: device)
    expected = rf'env_cfg.dist_cfg.timeout is {seconds!r}, expected a number of seconds above 0, such as 3600'
    with pytest.raises(LauncherError, match=expected):
        join(dist_cfg=dict(timeout=seconds))


def test_occupied_port_is_reported(launched):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        launched(MASTER_PORT=str(port))
        with pytest.raises(
            LauncherError, match=f'process 0 of 2 cannot listen on 127.0.0.1:{port} .* another program uses'
        ):
            join()


def test_unknown_network_interface_is_reported(launched):
    launched(GLOO_SOCKET_IFNAME='lo,eth99')
    with pytest.raises(LauncherError, match='GLOO_SOCKET_IFNAME is eth99 .* network interface of this machine: .*lo'):
        join()


def test_missing_processes_are_reported(launched, monkeypatch):
    """The waiting process reports what it waits for, and ends after the time-out."""
    logged = []
    monkeypatch.setattr(distributed, 'print_log', lambda text, **_: logged.append(text))
    monkeypatch.setattr(distributed, 'LONG_WAIT', 0.2)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        place = f'127.0.0.1:{free.getsockname()[1]}'
    launched(MASTER_PORT=place.partition(':')[2])
    causes = 'All 2 processes must be started, with this address and port of the first node'
    late = '(Timed out|Socket Timeout)'  # torch 2.1: the second
    with pytest.raises(LauncherError, match=rf'process 0 of 2 cannot join the others at {place} .*{late}.*\. {causes}'):
        join(dist_cfg=dict(timeout=1))
    (line,) = logged
    assert (
        line.startswith(f'process 0 of 2 waits for the others at {place} (MASTER_ADDR, MASTER_PORT)') and causes in line
    )


def test_more_processes_than_gpus(launched, monkeypatch):
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(distributed.torch.cuda, 'device_count', lambda: 1)
    launched(CUDA_VISIBLE_DEVICES='3', LOCAL_RANK='1')
    message = (
        r'process 2 of this machine \(LOCAL_RANK=1\) sees 1 GPUs \(CUDA_VISIBLE_DEVICES=3\), expected one for each'
    )
    with pytest.raises(LauncherError, match=message):
        join()


def test_leaves_accelerators_and_single_processes_to_mmengine(launched, monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, 'device_count', lambda: 1)
    for launcher, device in (('none', 'cpu'), ('pytorch', 'cuda')):
        monkeypatch.setattr(distributed, 'get_device', lambda device=device: device)
        cfg = Config(dict(launcher=launcher))
        wrap_model_for_cpus(cfg)
        with joined_processes(cfg):
            assert not torch.distributed.is_initialized()
        assert 'model_wrapper_cfg' not in cfg
