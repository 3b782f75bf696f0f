"""Draw the effective receptive field of each stage: the pixels on which its centre depends."""

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
    add_networks_and_images(
        parser,
        'the gradient is averaged over them. Where a network is tested on images of several sizes, --size is required',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='modules of the backbone, which every network must have (default: the last block of each stage, or four '
        'blocks of a network with one stage)',
    )
    add_arguments(parser)
    return parse_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.analysis.plots import save_figure, write_json
    from fcvit_mm.analysis.receptive_field import describe_fields, draw_fields, receptive_fields

    check_arguments(args)
    paths = find_all_images(args.images)
    networks = load_networks(args.networks, args.device)

    found = {}
    for network in networks:
        inputs = (network.prepare(path, args.size).image for path in paths)
        found[network.name] = receptive_fields(network.model, inputs, args.layers)
    for network in networks:
        figure = draw_fields(found[network.name], f'Effective receptive fields of {network.label}')
        print(save_figure(figure, args.out / f'receptive_field_{file_name(network.name)}.png'))
    content = dict(
        images=paths,
        unit='pixels of the input',
        networks={
            network.name: dict(network=spec, checkpoint=network.checkpoint, layers=describe_fields(found[network.name]))
            for network, spec in zip(networks, args.networks)
        },
    )
    print(write_json(args.out / 'receptive_field.json', content))


if __name__ == '__main__':
    run_command(main, parse_args)
