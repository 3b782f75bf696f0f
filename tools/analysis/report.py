"""Write all analyses of a network, on some images, as one HTML page that needs nothing else."""

import argparse

from arguments import add_arguments, check_arguments, file_name, find_images

from fcvit_mm.analysis.report import write_report
from fcvit_mm.apis.load import load_network
from fcvit_mm.errors import run_command
from fcvit_mm.files import write_atomic


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help="config file of a classifier, detector or segmentor, or timm:NAME for one of timm's models"
    )
    parser.add_argument('checkpoint', help='checkpoint file that was trained with it')
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGES',
        help='images or folders of them: the first four are drawn, numbers are means over all',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    paths = find_images(args.images)
    network = load_network(args.config, args.checkpoint, args.device)
    page = write_report(network, args.config, paths, args.size)
    path = args.out / f'report_{file_name(network.name)}.html'
    write_atomic(path, page.encode())
    print(path)


if __name__ == '__main__':
    run_command(main)
