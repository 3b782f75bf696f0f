"""Distributed training on CPUs: several processes, joined over gloo.

MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` and its runner hands DDP a device number; both fail on a CPU.
With CUDA (or another accelerator) everything is left to MMEngine.
"""

import logging
import os
import re
import socket
import subprocess
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, Iterator, Optional

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log

from ..deprecation import renamed_in
from ..errors import UserError
from ..options import LAUNCHER_VARIABLES, check_started_by

DEFAULT_PORT = '29500'  # torch.distributed's own
#: Seconds after which a process logs that it is waiting for others to start.
LONG_WAIT = 60.0


class LauncherError(UserError):
    """The environment that the launcher set is incomplete or wrong, or the processes do not find each other."""


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


#: Parts of torch's error messages when the other end of a connection is gone or silent.
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
        LauncherError: A variable is missing or wrong: the launcher is another one or none.
    """
    names = LAUNCHER_VARIABLES[launcher]
    check_started_by(launcher, env, LauncherError)
    wanted = dict(RANK=names.rank, WORLD_SIZE=names.processes, LOCAL_RANK=names.local_rank)
    found = {key: env[name] for key, name in wanted.items()}
    found['MASTER_PORT'] = env.get('MASTER_PORT') or DEFAULT_PORT
    _check_number(names.processes, found['WORLD_SIZE'], 'the number of processes', 1)
    of_all = f'the number of this process among {found["WORLD_SIZE"]} ({names.processes})'
    _check_number(names.rank, found['RANK'], of_all, 0, int(found['WORLD_SIZE']) - 1)
    _check_number(names.local_rank, found['LOCAL_RANK'], 'the number of this process on its machine', 0)
    _check_number('MASTER_PORT', found['MASTER_PORT'], 'a free port of the first node', 1, 65535)
    if env.get('MASTER_ADDR'):
        found['MASTER_ADDR'] = env['MASTER_ADDR']
    elif launcher == 'slurm' and 'SLURM_NODELIST' in env:
        found['MASTER_ADDR'] = _first_node(env['SLURM_NODELIST'])
    elif env.get('OMPI_COMM_WORLD_LOCAL_SIZE') == found['WORLD_SIZE']:
        found['MASTER_ADDR'] = '127.0.0.1'
    else:
        raise LauncherError(
            f"--launcher {launcher} needs MASTER_ADDR in the environment: set it to the first node's host name"
        )
    return found


def _check_number(name: str, value: str, meaning: str, least: int, most: Optional[int] = None) -> None:
    if not (value.isdecimal() and least <= int(value) and (most is None or int(value) <= most)):
        expected = f'at least {least}' if most is None else f'{least} to {most}' if most > least else str(least)
        raise LauncherError(
            f'{name} is {value!r} in the environment, expected {meaning}, {expected}: let the launcher set it, or '
            'correct it for all processes'
        )


def _first_node(nodes: str) -> str:
    """Return the first of the nodes of a Slurm job, which ``scontrol`` expands."""
    command = ['scontrol', 'show', 'hostname', nodes]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        output = getattr(error, 'stderr', None) or str(error)
        raise LauncherError(
            f'{" ".join(command)} does not name the first node ({output.strip()}): set MASTER_ADDR to its host name'
        ) from error


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

    The environment that the launcher set is checked first, on accelerators too.

    Args:
        cfg (Config): A config whose ``launcher`` started the processes: one of :data:`~fcvit_mm.options.LAUNCHERS`.

    Raises:
        LauncherError: See :func:`rendezvous_env`.
        LostProcessError: Another process ended first; on accelerators, too.
    """
    joins = uses_cpus(cfg)
    if joins:
        join_over_gloo(cfg.launcher, _timeout(cfg))
        print_log(f'No accelerator: {dist.get_world_size()} CPU processes joined over gloo.', logger='current')
    elif cfg.get('launcher', 'none') != 'none':
        os.environ.update(rendezvous_env(cfg.launcher, dict(os.environ)))
        _timeout(cfg)
        check_accelerator(int(os.environ['LOCAL_RANK']))
    try:
        yield
    except RuntimeError as error:
        if lost_process(error):
            raise LostProcessError(error) from error
        raise
    finally:
        if joins:
            dist.destroy_process_group()


def _timeout(cfg: Config) -> Optional[timedelta]:
    """Return the time-out from MMEngine's ``env_cfg.dist_cfg.timeout`` (seconds); ``None`` for torch's default."""
    seconds = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds <= 0:
        raise LauncherError(
            f'env_cfg.dist_cfg.timeout is {seconds!r}, expected a number of seconds above 0, such as 3600'
        )
    return timedelta(seconds=seconds)


def check_accelerator(local_rank: int) -> None:
    """Raise an error if a process has no GPU of its own.

    Raises:
        LauncherError: Names the number of GPUs that the process sees.
    """
    if get_device() != 'cuda' or local_rank < torch.cuda.device_count():
        return
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    raise LauncherError(
        f'process {local_rank + 1} of this machine (LOCAL_RANK={local_rank}) sees {torch.cuda.device_count()} GPUs'
        f'{"" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"}, expected one for each process: start as '
        'many processes as GPUs, and let each process see all of them (Slurm: --gpus-per-node or --gres, not '
        '--gpus-per-task)'
    )


def join_over_gloo(launcher: str, timeout: Optional[timedelta] = None) -> None:
    """Join the processes that a launcher started, over gloo.

    Args:
        launcher (str): One of :data:`~fcvit_mm.options.LAUNCHERS` but ``'none'``.
        timeout (timedelta, optional): Default: torch's own, 30 minutes.

    Raises:
        LauncherError: The environment of the launcher is incomplete or wrong, or the processes do not find each other.
    """
    found = rendezvous_env(launcher, dict(os.environ))
    os.environ.update(found)
    interfaces = [name for _, name in socket.if_nameindex()]
    if found['MASTER_ADDR'] in ('127.0.0.1', 'localhost') and 'lo' in interfaces:
        # Otherwise gloo looks up the host name, which may not resolve on a machine without a network.
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    for name in filter(None, os.environ.get('GLOO_SOCKET_IFNAME', '').split(',')):
        if name not in interfaces:
            raise LauncherError(
                f'GLOO_SOCKET_IFNAME is {name} in the environment, expected a network interface of this machine: '
                f'{", ".join(interfaces)}'
            )
    place = f'{found["MASTER_ADDR"]}:{found["MASTER_PORT"]} (MASTER_ADDR, MASTER_PORT)'
    who = f'process {found["RANK"]} of {found["WORLD_SIZE"]}'
    causes = (
        f'All {found["WORLD_SIZE"]} processes must be started, with this address and port of the first node and each '
        'with a number of its own, and the network must let them connect'
    )
    options: Dict[str, Any] = {} if timeout is None else {'timeout': timeout}
    with reported_wait(f'{who} waits for the others at {place}, and for the checks of the first one. {causes}.'):
        try:
            dist.init_process_group('gloo', **options)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip('.')
            if re.search('EADDRINUSE|address already in use', reason, re.IGNORECASE):
                raise LauncherError(
                    f'{who} cannot listen on {place}: another program uses the port. Set MASTER_PORT to a free one, '
                    'the same for all processes (PORT for tools/dist_*.sh)'
                ) from error
            raise LauncherError(f'{who} cannot join the others at {place}: {reason}. {causes}') from error


@contextmanager
def reported_wait(text: str) -> Iterator[None]:
    """Log a message if the context takes longer than :data:`LONG_WAIT`."""
    timer = threading.Timer(LONG_WAIT, print_log, (text,), dict(logger='current', level=logging.WARNING))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


__getattr__ = renamed_in(__name__)
