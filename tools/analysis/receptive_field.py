"""Draw the effective receptive field of each stage: which pixels its centre rests on, by the gradient."""

import argparse

from arguments import NETWORK_HELP, add_arguments, check_arguments, file_name, find_images, load_networks

from fcvit_mm.analysis.plots import save_figure, write_json
from fcvit_mm.analysis.receptive_field import describe_fields, draw_fields, receptive_fields
from fcvit_mm.errors import run_command
from fcvit_mm.images import read_image


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument(
        '--images',
        nargs='+',
        required=True,
        metavar='IMAGE',
        help='images or folders of them; the gradient is averaged over them. Where a network is '
        'tested on images of several sizes, --size must say one',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='modules of the backbone, which every network must have (default: the last block of each '
        'stage, or four blocks of a network of one stage)',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    paths = find_images(args.images)
    samples = [read_image(path) for path in paths]
    networks = load_networks(args.networks, args.device)

    found = {}
    for network in networks:
        images = (network.prepare(pixels, args.size).image for pixels in samples)
        found[network.name] = receptive_fields(network.model, images, args.layers)
    for network in networks:
        figure = draw_fields(found[network.name], f'Effective receptive fields of {network.label}')
        print(save_figure(figure, args.out / f'receptive_field_{file_name(network.name)}.png'))
    print(
        write_json(
            args.out / 'receptive_field.json',
            dict(
                images=paths,
                unit='pixels of the input',
                networks={
                    network.name: dict(
                        network=spec, checkpoint=network.checkpoint, layers=describe_fields(found[network.name])
                    )
                    for network, spec in zip(networks, args.networks)
                },
            ),
        )
    )


if __name__ == '__main__':
    run_command(main)
