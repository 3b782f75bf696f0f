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
    ],
)
def test_missing_environment(launcher, env, message):
    with pytest.raises(LauncherError, match=message):
        rendezvous_env(launcher, env)


def test_leaves_accelerators_and_single_processes_to_mmengine(monkeypatch):
    for launcher, device in (('none', 'cpu'), ('pytorch', 'cuda')):
        monkeypatch.setattr(distributed, 'get_device', lambda device=device: device)
        cfg = Config(dict(launcher=launcher))
        wrap_model_for_cpus(cfg)
        with joined_processes(cfg):
            assert not torch.distributed.is_initialized()
        assert 'model_wrapper_cfg' not in cfg
