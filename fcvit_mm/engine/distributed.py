"""Several processes on machines without an accelerator.

MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` and its runner hands DDP a device number; both fail on a CPU.
Where there is CUDA (or another accelerator) everything is left to MMEngine.
"""

import os
import socket
import subprocess
from datetime import timedelta

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from ..errors import UserError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
DEFAULT_PORT = '29500'  # torch.distributed's own


class LauncherError(UserError):
    """The environment lacks what a launcher sets."""


class LostProcessError(UserError):
    """Another process of the run ended, was killed or cannot be reached.

    Args:
        error (Exception): How this process noticed.
    """

    def __init__(self, error: Exception) -> None:
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get('RANK', '?')
        super().__init__(
            f'process {rank} lost another process of this run, which ended, was killed or cannot be '
            f"reached ({str(error).strip().splitlines()[0]}). The reason stands in that process's own "
            "output, or in the system's log if its memory ran out. Start all of them again with --resume"
        )


#: What torch says where the other end of a connection is gone or silent.
LOST = (
    'Connection closed by peer',
    'Connection reset by peer',
    'Broken pipe',
    'Socket closed',
    'Timed out waiting',
    'connection timed out',
    'Connection refused',
    'NCCL communicator was aborted',
    'Watchdog caught collective',
)


def lost_process(error: Exception) -> bool:
    """Whether an error of torch's means that another process is gone."""
    return dist.is_available() and dist.is_initialized() and any(words in str(error) for words in LOST)


def rendezvous_env(launcher: str, env: dict) -> dict:
    """What ``torch.distributed`` reads from the environment, from what a launcher set there.

    Args:
        launcher (str): ``'pytorch'`` (torchrun), ``'slurm'`` (srun) or ``'mpi'`` (Open MPI's mpirun).
        env (dict): The environment.

    Returns:
        dict: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``.

    Raises:
        LauncherError: A variable is missing, so the launcher is another one or none.
    """
    names = dict(
        pytorch=dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE', LOCAL_RANK='LOCAL_RANK'),
        slurm=dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
        mpi=dict(
            RANK='OMPI_COMM_WORLD_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE', LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'
        ),
    )[launcher]
    starters = dict(pytorch='torchrun (tools/dist_train.sh)', slurm='srun (tools/slurm_train.sh)', mpi='mpirun')
    missing = [name for name in names.values() if name not in env]
    if missing:
        raise LauncherError(
            f'--launcher {launcher} needs {", ".join(missing)} in the environment: start the processes '
            f'with {starters[launcher]}, or leave --launcher out for one process'
        )
    found = {key: env[name] for key, name in names.items()}
    found['MASTER_PORT'] = env.get('MASTER_PORT', DEFAULT_PORT)
    if 'MASTER_ADDR' in env:
        found['MASTER_ADDR'] = env['MASTER_ADDR']
    elif launcher == 'slurm' and 'SLURM_NODELIST' in env:
        shown = subprocess.run(
            ['scontrol', 'show', 'hostname', env['SLURM_NODELIST']], check=True, capture_output=True, text=True
        )
        found['MASTER_ADDR'] = shown.stdout.split()[0]
    elif env.get('OMPI_COMM_WORLD_LOCAL_SIZE') == found['WORLD_SIZE']:
        found['MASTER_ADDR'] = '127.0.0.1'
    else:
        raise LauncherError(f"--launcher {launcher} needs MASTER_ADDR in the environment: the first node's address")
    return found


def init_cpu_distributed(cfg: Config, launcher: str) -> bool:
    """Join the processes over gloo before the runner is built, and tell it to wrap the model for a CPU.

    Args:
        cfg (Config): Gets a ``model_wrapper_cfg`` without device numbers.
        launcher (str): One of ``LAUNCHERS``.

    Returns:
        bool: Whether it did; ``False`` with one process or with an accelerator, which MMEngine handles itself.

    Raises:
        LauncherError: See :func:`rendezvous_env`.
    """
    if launcher == 'none' or get_device() != 'cpu':
        return False
    os.environ.update(rendezvous_env(launcher, dict(os.environ)))
    interfaces = [name for _, name in socket.if_nameindex()]
    if os.environ['MASTER_ADDR'] in ('127.0.0.1', 'localhost') and 'lo' in interfaces:
        # gloo would look the host's own name up, which need not resolve on a lone machine.
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    # MMEngine's own setting of how long to wait for a process that is silent but not gone, in seconds.
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    dist.init_process_group('gloo', **({} if timeout is None else {'timeout': timedelta(seconds=timeout)}))
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    print_log(f'No accelerator: {dist.get_world_size()} CPU processes joined over gloo.', logger='current')
    return True
