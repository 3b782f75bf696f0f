"""Test an installed fcvit_mm in a minute or two, on generated images; dev/release.py runs it on wheel and sdist.

Only the installed package is used, not this project's folder. Networks run forward; if mmpretrain is installed, the
shipped tools/train.py trains the shipped classifier for a few iterations, and tools/test.py tests its checkpoint. Data
and run are written into the working directory.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional, Sequence

import torch

import fcvit_mm
from fcvit_mm.datasets import generate
from fcvit_mm.errors import UserError, command_parser, run_command

#: Number of training iterations, with 16 images each.
ITERATIONS = 10


def find_installed(version: Optional[str]) -> Path:
    """Return the folder of configs and tools in the installed package.

    Raises:
        UserError: The package is imported from elsewhere, or has another version.
    """
    folder = Path(fcvit_mm.__file__).resolve().parent
    if Path(sys.prefix).resolve() not in folder.parents:
        raise UserError(f'{folder} is not in {sys.prefix}: install the package there, and run this from another folder')
    if version not in (None, fcvit_mm.__version__):
        raise UserError(f'fcvit_mm is {fcvit_mm.__version__}, expected {version}: install that version')
    return folder / '.mim'


def forward() -> None:
    """Run networks forward and print the shapes of their outputs."""
    for network in (fcvit_mm.FCViT('tiny'), fcvit_mm.DWNet('tiny')):
        with torch.no_grad():
            shapes = [tuple(output.shape) for output in network.eval()(torch.rand(1, 3, 64, 64))]
        print(f'{type(network).__name__}: {shapes}', flush=True)


def train(shipped: Path) -> None:
    """Train and test the shipped classifier on generated images."""
    generate('imagenet', 'shapes', num_train=16 * ITERATIONS, num_val=50, size=64)
    config = shipped / 'configs' / 'classification' / 'fcvit_tiny_shapes.py'
    data = [f'{split}_dataloader.dataset.data_root=shapes' for split in ('train', 'val', 'test')]
    run(shipped / 'tools' / 'train.py', config, '--work-dir', 'run', '--cfg-options', *data, 'train_cfg.max_epochs=1')
    run(shipped / 'tools' / 'test.py', config, 'run/epoch_1.pth', '--work-dir', 'run', '--cfg-options', *data)


def run(tool: Path, *arguments: object) -> None:
    """Run a tool as a user does, and print the last line that has an accuracy.

    Raises:
        UserError: It failed; with the end of its output.
    """
    done = subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)],
        env=dict(os.environ, OMP_NUM_THREADS='1'),  # on busy cores, several threads wait for each other
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise UserError(f'{tool.name} failed with status {done.returncode}:\n{done.stdout[-3000:].rstrip()}')
    lines = [line for line in done.stdout.splitlines() if 'accuracy' in line]
    print(f'{tool.name}: {lines[-1].strip() if lines else "no accuracy"}', flush=True)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument('--version', help='expected version of fcvit_mm')
    args = parser.parse_args(argv)
    shipped = find_installed(args.version)
    print(f'fcvit_mm {fcvit_mm.__version__} in {shipped.parent}', flush=True)
    forward()
    if importlib.util.find_spec('mmpretrain'):
        train(shipped)
    else:
        print('mmpretrain is not installed: nothing is trained')


if __name__ == '__main__':
    run_command(main)
