"""Compare how networks smooth features with depth: frequencies in feature maps, and similarity of tokens."""

import argparse
from typing import Optional, Sequence

from arguments import (
    add_arguments,
    add_networks_and_images,
    check_arguments,
    file_name,
    find_all_images,
    load_networks,
    parse_arguments,
)
from command_line import command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_networks_and_images(parser, 'all numbers are means over them')
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='modules of the backbone, which every network must have (default: all blocks)',
    )
    add_arguments(parser)
    return parse_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.analysis.frequency import describe_frequencies, draw_oversmoothing, draw_spectra, oversmoothing
    from fcvit_mm.analysis.plots import save_figure, write_json

    check_arguments(args)
    paths = find_all_images(args.images)
    networks = load_networks(args.networks, args.device)

    found = {}
    for network in networks:
        inputs = (network.prepare(path, args.size).image for path in paths)
        found[network.label] = oversmoothing(network.model, inputs, args.layers)
    print(save_figure(draw_oversmoothing(found), args.out / 'oversmoothing.png'))
    for network, (label, layers) in zip(networks, found.items()):
        figure = draw_spectra(layers, f'Spectra of {label}')
        print(save_figure(figure, args.out / f'spectra_{file_name(network.name)}.png'))
    content = dict(
        images=paths,
        logarithm='natural',
        networks={
            network.name: dict(network=spec, checkpoint=network.checkpoint, layers=describe_frequencies(layers))
            for network, spec, layers in zip(networks, args.networks, found.values())
        },
    )
    print(write_json(args.out / 'oversmoothing.json', content))


if __name__ == '__main__':
    run_command(main, parse_args)
