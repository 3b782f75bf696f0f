"""Draw the effective receptive field of each stage: which pixels its centre rests on, by the gradient."""
import argparse

from arguments import NETWORK_HELP, add_arguments, check_arguments, file_name, find_pictures, load_networks

from fcvit_mm.analysis.plots import save_figure, write_json
from fcvit_mm.analysis.receptive_field import describe_fields, draw_fields, receptive_fields
from fcvit_mm.engine.errors import run_tool
from fcvit_mm.engine.network import read_picture


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument('--pictures', nargs='+', required=True, metavar='PICTURE',
                        help='pictures or folders of them; the gradient is averaged over them. Where a network is '
                        'tested on pictures of several sizes, --size must say one')
    parser.add_argument('--layers', nargs='+', metavar='NAME',
                        help='modules of the backbone, which every network must have (default: the last block of each '
                        'stage, or four blocks of a network of one stage)')
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
        found[network.name] = receptive_fields(network.model, images, args.layers)
    for network in networks:
        figure = draw_fields(found[network.name], f'Effective receptive fields of {network.label}')
        print(save_figure(figure, args.out / f'receptive_field_{file_name(network.name)}.png'))
    print(write_json(args.out / 'receptive_field.json', dict(
        pictures=paths, unit='pixels of the input',
        networks={network.name: dict(network=spec, checkpoint=network.checkpoint,
                                     layers=describe_fields(found[network.name]))
                  for network, spec in zip(networks, args.networks)})))


if __name__ == '__main__':
    run_tool(main)
