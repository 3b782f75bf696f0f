"""Write all analyses of a network, on some pictures, as one HTML page that needs nothing else."""
import argparse

from arguments import add_arguments, check_arguments, file_name, find_pictures

from fcvit_mm.analysis.report import write_report
from fcvit_mm.engine.errors import run_tool
from fcvit_mm.engine.network import load_network
from fcvit_mm.engine.storage import write_whole


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="config file of a classifier, detector or segmentor, or timm:NAME for one of "
                        "timm's models")
    parser.add_argument('checkpoint', help='checkpoint file that was trained with it')
    parser.add_argument('pictures', nargs='+', metavar='IMAGES',
                        help='pictures or folders of them: the first four are drawn, numbers are means over all')
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    paths = find_pictures(args.pictures)
    network = load_network(args.config, args.checkpoint, args.device)
    page = write_report(network, args.config, paths, args.size)
    path = args.out / f'report_{file_name(network.name)}.html'
    write_whole(path, page.encode())
    print(path)


if __name__ == '__main__':
    run_tool(main)
