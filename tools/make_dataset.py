"""Generate a data set of images of shapes, in the layout of ImageNet, COCO or ADE20K."""

import argparse
from typing import Optional, Sequence

from command_line import DATASET_KINDS, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('kind', choices=list(DATASET_KINDS), help='data set whose layout is used')
    parser.add_argument('root', nargs='?', help='folder to create (default: data/shapes/KIND)')
    for option, meaning in (
        ('num_train', 'number of training images'),
        ('num_val', 'number of validation images'),
        ('size', 'side of the images in pixels'),
    ):
        defaults = ', '.join(f'{kind} {values[option]}' for kind, values in DATASET_KINDS.items())
        parser.add_argument(f'--{option.replace("_", "-")}', type=int, help=f'{meaning} (default: {defaults})')
    parser.add_argument('--seed', type=int, default=0, help='seed of the images (default: %(default)s)')
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.datasets import generate

    root = args.root or f'data/shapes/{args.kind}'
    written = generate(args.kind, root, args.num_train, args.num_val, args.size, args.seed)
    print(f'{root}: {"written" if written else "already there"}')


if __name__ == '__main__':
    run_command(main, parse_args)
