#!/usr/bin/env python
"""Convert a published checkpoint into one for this package's configs.

Reads torch (.pth, .pth.tar, .pt), Paddle (.pdparams) and safetensors files of classifiers, detectors and segmentors,
which are recognized by their keys, without running code from them. Writes tensors only. For example:

    python tools/convert_checkpoint.py fcvit_b12.pth.tar checkpoints/fcvit_b12_in1k.pth
"""

import argparse
from typing import Optional, Sequence

from command_line import add_import_option, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('src', help='checkpoint to read, or published:NAME')
    parser.add_argument('dst', help='file to write')
    parser.add_argument('--ema', action='store_true', help='convert the averaged (EMA) weights if the file has both')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    add_import_option(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.checkpoints import convert_checkpoint, is_published, published_path

    source = published_path(args.src) if is_published(args.src) else args.src
    summary = convert_checkpoint(source, args.dst, ema=args.ema, force=args.force)
    print(f'{args.src}:')
    for name, value in summary.items():
        print(f'  {name:<8} {value}')
    print(f'written to {args.dst}')


if __name__ == '__main__':
    run_command(main, parse_args)
