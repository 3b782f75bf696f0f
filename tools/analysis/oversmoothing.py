"""Compare how networks smooth with depth: frequencies in their feature maps, and similarity of their tokens."""
import argparse

from arguments import NETWORK_HELP, add_arguments, check_arguments, file_name, find_pictures, load_networks

from fcvit_mm.analysis.frequency import describe_frequencies, draw_oversmoothing, draw_spectra, oversmoothing
from fcvit_mm.analysis.plots import save_figure, write_json
from fcvit_mm.engine.errors import run_tool
from fcvit_mm.engine.network import read_picture


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument('--pictures', nargs='+', required=True, metavar='PICTURE',
                        help='pictures or folders of them; all numbers are means over them')
    parser.add_argument('--layers', nargs='+', metavar='NAME',
                        help='modules of the backbone, which every network must have (default: all blocks)')
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    paths = find_pictures(args.pictures)
    pictures = [read_picture(path) for path in paths]
    networks = load_networks(args.networks, args.device)

    found = {}
    for network in networks:
        images = (network.prepare(picture, args.size).image for picture in pictures)
        found[network.label] = oversmoothing(network.model, images, args.layers)
    print(save_figure(draw_oversmoothing(found), args.out / 'oversmoothing.png'))
    for network, (label, layers) in zip(networks, found.items()):
        print(save_figure(draw_spectra(layers, f'Spectra of {label}'),
                          args.out / f'spectra_{file_name(network.name)}.png'))
    print(write_json(args.out / 'oversmoothing.json', dict(
        pictures=paths, logarithm='natural',
        networks={network.name: dict(network=spec, checkpoint=network.checkpoint, layers=describe_frequencies(layers))
                  for network, spec, layers in zip(networks, args.networks, found.values())})))


if __name__ == '__main__':
    run_tool(main)
