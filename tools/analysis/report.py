"""Write all analyses of a network, on some images, as one self-contained HTML page."""

import argparse
from typing import Optional, Sequence

from arguments import CHECKPOINT_HELP, MODEL_HELP, add_arguments, check_arguments, file_name, find_all_images

from fcvit_mm.analysis.report import write_report
from fcvit_mm.apis.load import load_network
from fcvit_mm.errors import command_parser, run_command
from fcvit_mm.files import write_atomic


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help=MODEL_HELP)
    parser.add_argument('checkpoint', help=CHECKPOINT_HELP)
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help='images or folders of them: the first four are drawn, numbers are means over all',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    check_arguments(args)
    paths = find_all_images(args.images)
    network = load_network(args.config, args.checkpoint, args.device)
    page = write_report(network, args.config, paths, args.size)
    path = args.out / f'report_{file_name(network.name)}.html'
    write_atomic(path, page.encode())
    print(path)


if __name__ == '__main__':
    run_command(main)
