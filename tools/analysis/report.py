"""Write all analyses of a network, on some images, as one self-contained HTML page."""

import argparse
from typing import Optional, Sequence

from arguments import (
    CHECKPOINT_HELP,
    MODEL_HELP,
    add_arguments,
    check_arguments,
    file_name,
    find_all_images,
    parse_arguments,
)
from command_line import command_parser, run_command


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
    return parse_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.analysis.report import write_report
    from fcvit_mm.apis.load import load_network
    from fcvit_mm.files import write_atomic

    check_arguments(args)
    paths = find_all_images(args.images)
    network = load_network(args.config, args.checkpoint, args.device)
    page = write_report(network, args.config, paths, args.size)
    path = args.out / f'report_{file_name(network.name)}.html'
    write_atomic(path, page.encode())
    print(path)


if __name__ == '__main__':
    run_command(main, parse_args)
