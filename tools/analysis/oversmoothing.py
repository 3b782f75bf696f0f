"""Compare how networks smooth with depth: frequencies in their feature maps, and similarity of their tokens."""

import argparse

from arguments import NETWORK_HELP, add_arguments, check_arguments, file_name, find_images, load_networks

from fcvit_mm.analysis.frequency import describe_frequencies, draw_oversmoothing, draw_spectra, oversmoothing
from fcvit_mm.analysis.plots import save_figure, write_json
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
        help='images or folders of them; all numbers are means over them',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='modules of the backbone, which every network must have (default: all blocks)',
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
        found[network.label] = oversmoothing(network.model, images, args.layers)
    print(save_figure(draw_oversmoothing(found), args.out / 'oversmoothing.png'))
    for network, (label, layers) in zip(networks, found.items()):
        print(
            save_figure(
                draw_spectra(layers, f'Spectra of {label}'), args.out / f'spectra_{file_name(network.name)}.png'
            )
        )
    print(
        write_json(
            args.out / 'oversmoothing.json',
            dict(
                images=paths,
                logarithm='natural',
                networks={
                    network.name: dict(network=spec, checkpoint=network.checkpoint, layers=describe_frequencies(layers))
                    for network, spec, layers in zip(networks, args.networks, found.values())
                },
            ),
        )
    )


if __name__ == '__main__':
    run_command(main)
