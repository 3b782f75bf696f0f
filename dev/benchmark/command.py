"""Common code of the benchmark commands: arguments, the device, and the description of machine and code."""

import argparse
import datetime
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from timed_networks import DTYPES

import fcvit_mm
from fcvit_mm.errors import CommandParser, UserError
from fcvit_mm.files import check_writable_folder
from fcvit_mm.options import add_import_option


def add_arguments(parser: CommandParser, memory: bool = True) -> None:
    """Add the arguments of every benchmark command, with ``memory`` also those for measuring memory."""
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda or cuda:N')
    parser.add_argument('--dtype', default='float32', choices=list(DTYPES))
    parser.add_argument(
        '--rounds', type=int, default=20, help='number of timing rounds; all networks are timed in turn (default: 20)'
    )
    parser.add_argument('--warmup', type=int, default=3, help='number of untimed rounds before them (default: 3)')
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='number of PyTorch threads on the CPU (default: %(default)s)',
    )
    if memory:
        parser.add_argument(
            '--no-memory',
            action='store_true',
            help='do not measure peak memory (on a CPU this starts one process per network)',
        )
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        help='folder for results.json, table.md and plot.png; existing files are overwritten',
    )
    add_import_option(parser)


def check_arguments(args: argparse.Namespace) -> torch.device:
    """Check the arguments, and set up the device.

    Raises:
        UserError: No such device, or a number out of range.
        WriteError: ``--out`` cannot be written.
    """
    for name, least in (('batch', 1), ('rounds', 1), ('warmup', 0), ('threads', 1)):
        if getattr(args, name) < least:
            raise UserError(f'--{name} is {getattr(args, name)}, expected at least {least}')
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise UserError(f'--device is {args.device}, expected cpu, cuda or cuda:N') from error
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device is {args.device}, expected cpu, cuda or cuda:N')
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(
                f'--device {args.device}: PyTorch {torch.__version__} sees {count} CUDA devices: use --device cpu, or '
                'a PyTorch built for the GPU and its driver'
            )
        torch.cuda.set_device(device.index or 0)
        torch.backends.cudnn.benchmark = True
    check_writable_folder(args.out)
    torch.set_num_threads(args.threads)
    return device


def parse_size(text: str) -> Tuple[int, int]:
    """Parse ``224`` or ``800x1216``: height and width.

    Raises:
        UserError: The text is neither.
    """
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(
            f'--size is {text}, expected a height and a width in pixels, such as 800x1216, or one number for both'
        )
    return int(parts[0]), int(parts[-1])


def describe_run(device: torch.device) -> Dict[str, Any]:
    """Return command, date, code, versions and machine, for the record."""
    return dict(
        command=shlex.join(['python', *sys.argv]),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        code=_describe_code(),
        versions=dict(
            python=platform.python_version(),
            torch=torch.__version__,
            cuda=torch.version.cuda,
            timm=_version('timm'),
            triton=_version('triton'),
            fcvit_mm=fcvit_mm.__version__,
        ),
        machine=dict(
            system=platform.platform(),
            cpu=_cpu_name(),
            instructions=torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
            tf32=dict(convolutions=torch.backends.cudnn.allow_tf32, products=torch.backends.cuda.matmul.allow_tf32)
            if device.type == 'cuda'
            else None,
        ),
    )


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def _describe_code() -> Dict[str, Any]:
    """Return the commit of the tree that is measured and the files that differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-C', str(Path(fcvit_mm.__file__).parent), *arguments], check=True, capture_output=True, text=True
        ).stdout.rstrip()

    try:
        return dict(commit=git('rev-parse', 'HEAD'), modified=git('status', '--porcelain').splitlines())
    except (OSError, subprocess.CalledProcessError):
        return dict(commit=None, modified=[])
