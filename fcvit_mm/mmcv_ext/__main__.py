"""Let mmcv find its operators in torchvision: ``python -m fcvit_mm.mmcv_ext install``."""

from ..errors import command_parser, run_command
from .finder import install, is_compiled, mmcv_folder


def main() -> None:
    """Install the operators, or print which are in use."""
    parser = command_parser('Let mmcv find its operators in torchvision.')
    parser.prog = 'python -m fcvit_mm.mmcv_ext'
    parser.add_argument('command', choices=['install', 'status'])
    if parser.parse_args().command == 'install':
        print(install())
    else:
        print(f'{mmcv_folder()}: ' + ('compiled operators' if is_compiled() else 'operators from torchvision'))


if __name__ == '__main__':
    run_command(main)
