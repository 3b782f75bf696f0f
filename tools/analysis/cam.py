"""Draw class activation maps: which parts of images are evidence for a class. Needs the extra analysis."""

import argparse
from typing import Optional, Sequence

from arguments import CHECKPOINT_HELP, add_arguments, check_arguments, find_all_images, parse_arguments
from command_line import CAM_METHODS, command_parser, run_command

#: Number of images side by side in a figure.
COLUMNS = 8


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help="config file of a classifier, or timm:NAME for one of timm's models")
    parser.add_argument('checkpoint', help=CHECKPOINT_HELP)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='images or folders of them')
    parser.add_argument(
        '--target',
        nargs='+',
        metavar='CLASS',
        help='classes by name or index (default: the one predicted for each image)',
    )
    parser.add_argument('--layer', metavar='NAME', help='module of the backbone (default: its last block)')
    parser.add_argument('--method', choices=list(CAM_METHODS), default='gradcam', help='method (default: %(default)s)')
    add_arguments(parser)
    return parse_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.analysis.cam import class_activation_map, describe_class_map, draw_class_maps
    from fcvit_mm.analysis.plots import save_figure, write_json
    from fcvit_mm.apis.load import load_network

    check_arguments(args)
    paths = find_all_images(args.images)
    network = load_network(args.config, args.checkpoint, args.device)
    prepared = [network.prepare(path, args.size) for path in paths]
    maps = [
        [
            class_activation_map(network.model, each.image, target, args.layer, args.method, network.class_names)
            for target in args.target or (None,)
        ]
        for each in prepared
    ]

    title = f'Class activation maps of {network.name}'
    for start in range(0, len(paths), COLUMNS):
        chosen = slice(start, start + COLUMNS)
        figure = draw_class_maps([each.pixels for each in prepared[chosen]], maps[chosen], network.class_names, title)
        number = f'_{start // COLUMNS + 1}' if len(paths) > COLUMNS else ''
        print(save_figure(figure, args.out / f'cam{number}.png'))
    content = dict(
        network=network.name,
        config=args.config,
        checkpoint=args.checkpoint,
        method=args.method,
        images=[
            dict(image=path, maps=[describe_class_map(found, network.class_names) for found in each])
            for path, each in zip(paths, maps)
        ],
    )
    print(write_json(args.out / 'cam.json', content))


if __name__ == '__main__':
    run_command(main, parse_args)
