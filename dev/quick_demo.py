"""Try an installed fcvit_mm in a minute or two, on generated images: what dev/release.py asks of wheel and sdist.

Nothing but the installed package is used: not this project's folder. Every network that needs no timm runs forward;
where mmpretrain is installed, the shipped tools/train.py trains the shipped classifier for a few iterations, and
tools/test.py reads its checkpoint.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ITERATIONS = 10


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', help='that fcvit_mm must have')
    return parser.parse_args()


def check_installed(package, version):
    """Check that the installed package is what is imported, and return the folder with configs and tools."""
    folder = Path(package.__file__).parent
    if not folder.is_relative_to(sys.prefix):
        raise SystemExit(f'{folder} is not in {sys.prefix}: install the package')
    if version not in (None, package.__version__):
        raise SystemExit(f'fcvit_mm is {package.__version__}, expected {version}')
    return folder / '.mim'


def forward(package):
    """Run a backbone forward and print the shapes of its outputs."""
    import torch

    for network in (package.FCViT('tiny'), package.DWNet('tiny')):
        with torch.no_grad():
            shapes = [tuple(output.shape) for output in network.eval()(torch.rand(1, 3, 64, 64))]
        print(f'{type(network).__name__}: {shapes}')


def train(shipped):
    """Train and test the shipped classifier on generated images."""
    from fcvit_mm.datasets import generate

    generate('imagenet', 'shapes', num_train=16 * ITERATIONS, num_val=50, size=64)
    config = shipped / 'configs' / 'classification' / 'fcvit_tiny_shapes.py'
    data = [f'{split}_dataloader.dataset.data_root=shapes' for split in ('train', 'val', 'test')]
    run(shipped / 'tools' / 'train.py', config, '--work-dir', 'run', '--cfg-options', *data, 'train_cfg.max_epochs=1')
    run(shipped / 'tools' / 'test.py', config, 'run/epoch_1.pth', '--work-dir', 'run', '--cfg-options', *data)


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=dict(os.environ, OMP_NUM_THREADS='2'), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f'{command[0].name} failed:\n{(done.stdout + done.stderr)[-3000:]}')
    lines = [line for line in (done.stdout + done.stderr).splitlines() if 'accuracy' in line]
    print(f'{command[0].name}: {lines[-1].strip() if lines else "done"}')


def main():
    args = parse_args()
    import fcvit_mm

    shipped = check_installed(fcvit_mm, args.version)
    print(f'fcvit_mm {fcvit_mm.__version__} from {shipped.parent}')
    forward(fcvit_mm)
    if importlib.util.find_spec('mmpretrain'):
        train(shipped)
    else:
        print('mmpretrain is not installed: nothing is trained')


if __name__ == '__main__':
    main()
