"""Make a data set of generated images of shapes, laid out like ImageNet, COCO or ADE20K."""

import argparse

from fcvit_mm.datasets import KINDS, generate
from fcvit_mm.errors import command_parser, run_command


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('kind', choices=list(KINDS), help='whose layout')
    parser.add_argument('root', nargs='?', help='folder to make (default: data/shapes/KIND)')
    parser.add_argument('--num-train', type=int, help='images to train on')
    parser.add_argument('--num-val', type=int, help='images held out')
    parser.add_argument('--size', type=int, help='side of the images in pixels')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    root = args.root or f'data/shapes/{args.kind}'
    written = generate(args.kind, root, args.num_train, args.num_val, args.size, args.seed)
    print(f'{root}: {"written" if written else "already there"}')


if __name__ == '__main__':
    run_command(main)
