"""Several processes on machines without an accelerator.

MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` and its runner hands DDP a device number; both fail on a CPU.
With CUDA (or another accelerator) everything is left to MMEngine.
"""

import os
import socket
import subprocess
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, Iterator

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log

from ..deprecation import renamed_in
from ..errors import UserError, library_errors

DEFAULT_PORT = '29500'  # torch.distributed's own


class LauncherError(UserError):
    """The environment lacks variables that the launcher sets."""


class LostProcessError(UserError):
    """Another process of the run ended, was killed or is unreachable.

    Args:
        error (Exception): The error in this process.
    """

    def __init__(self, error: Exception) -> None:
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get('RANK', '?')
        super().__init__(
            f'process {rank} lost the connection to another process of this run, which ended, was killed or is '
            f'unreachable ({str(error).strip().splitlines()[0]}). See the output of that process for the reason, or '
            'the system log if memory ran out. Restart all processes with --resume'
        )


#: What torch says when the other end of a connection is gone or silent.
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
    """Check whether a torch error means that another process is gone."""
    return dist.is_available() and dist.is_initialized() and any(words in str(error) for words in LOST)


def rendezvous_env(launcher: str, env: Dict[str, str]) -> Dict[str, str]:
    """Return the environment variables of ``torch.distributed`` from those of a launcher.

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
            f'--launcher {launcher} needs {", ".join(missing)} in the environment: start the processes with '
            f'{starters[launcher]}, or omit --launcher for a single process'
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
        raise LauncherError(
            f"--launcher {launcher} needs MASTER_ADDR in the environment: set it to the first node's host name"
        )
    return found


def uses_cpus(cfg: Config) -> bool:
    """Check whether this package joins the processes of a run: several, on a machine without an accelerator."""
    return cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu'


def wrap_model_for_cpus(cfg: Config) -> None:
    """Let the runner wrap the model without device numbers, where several processes run on CPUs."""
    if not uses_cpus(cfg):
        return
    wrapper = ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


@contextmanager
def joined_processes(cfg: Config) -> Iterator[None]:
    """Join several CPU processes over gloo within the context; on accelerators MMEngine does it.

    Args:
        cfg (Config): A config whose ``launcher`` started the processes: one of :data:`~fcvit_mm.options.LAUNCHERS`.

    Raises:
        LauncherError: See :func:`rendezvous_env`.
        LostProcessError: Another process ended first; on accelerators, too.
    """
    joins = uses_cpus(cfg)
    if joins:
        _join_over_gloo(cfg)
    try:
        yield
    except RuntimeError as error:
        if lost_process(error):
            raise LostProcessError(error) from error
        raise
    finally:
        if joins:
            dist.destroy_process_group()


def _join_over_gloo(cfg: Config) -> None:
    os.environ.update(rendezvous_env(cfg.launcher, dict(os.environ)))
    interfaces = [name for _, name in socket.if_nameindex()]
    if os.environ['MASTER_ADDR'] in ('127.0.0.1', 'localhost') and 'lo' in interfaces:
        # gloo would look up the machine's own name, which need not resolve on a machine without a network.
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    # MMEngine's own setting of how long to wait for a process that is silent but not gone, in seconds.
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    options: Dict[str, Any] = {} if seconds is None else {'timeout': timedelta(seconds=seconds)}
    with library_errors('joining the processes', 'Check MASTER_ADDR, the port and the number of processes'):
        dist.init_process_group('gloo', **options)
    print_log(f'No accelerator: {dist.get_world_size()} CPU processes joined over gloo.', logger='current')


__getattr__ = renamed_in(__name__)
