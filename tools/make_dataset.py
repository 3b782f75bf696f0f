"""Generate a data set of images of shapes, in the layout of ImageNet, COCO or ADE20K."""

import argparse
from typing import Optional, Sequence

from command_line import DATASET_KINDS, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('kind', choices=list(DATASET_KINDS), help='data set whose layout is used')
    parser.add_argument('root', nargs='?', help='folder to create (default: data/shapes/KIND)')
    parser.add_argument('--num-train', type=int, help='number of training images')
    parser.add_argument('--num-val', type=int, help='number of validation images')
    parser.add_argument('--size', type=int, help='side of the images in pixels')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.datasets import generate

    root = args.root or f'data/shapes/{args.kind}'
    written = generate(args.kind, root, args.num_train, args.num_val, args.size, args.seed)
    print(f'{root}: {"written" if written else "already there"}')


if __name__ == '__main__':
    run_command(main, parse_args)
