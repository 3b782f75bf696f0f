"""Predict images, folders of images, lists and videos, and write what is found as data.

Detection: results.json (COCO results, for pycocotools' loadRes) and annotations.json (a COCO data set, for annotation
tools). Segmentation: labels/NAME.png (class indices, with palette), labels.csv, classes.csv. Classification:
predictions.csv or predictions.parquet. What is skipped stands in skipped.csv. The same command again continues what was
killed.
"""

import argparse
import os
from typing import Optional, Sequence

from command_line import LAUNCHERS, TABLES, add_config_options, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or published:NAME')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, folder (with those below it), video, or .txt with a path a line',
    )
    parser.add_argument('--out', required=True, help='folder of the results')
    parser.add_argument('--batch-size', type=int, default=argparse.SUPPRESS, help='images at a time (default: 1)')
    parser.add_argument(
        '--workers', type=int, default=argparse.SUPPRESS, help='processes that read images (default: 2)'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--optimize',
        action='store_true',
        help='the model as optimize_for_inference makes it: faster, above all on CPUs',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, as the config describes it')
    parser.add_argument('--tile', type=int, help='predict tiles of so many pixels, for large images')
    parser.add_argument('--overlap', type=float, default=argparse.SUPPRESS, help='of tiles, part of one (default: 0.2)')
    parser.add_argument(
        '--score-thr', type=float, default=argparse.SUPPRESS, help='detection: least score (default: 0)'
    )
    parser.add_argument('--coco', help='detection: annotations whose ids of images and categories the results get')
    parser.add_argument(
        '--top', type=int, default=argparse.SUPPRESS, help='classification: classes an image (5; 0 for all)'
    )
    parser.add_argument(
        '--format', dest='table', choices=TABLES, default=argparse.SUPPRESS, help='classification (csv)'
    )
    parser.add_argument(
        '--features', action='store_true', help="also the backbone's last output, averaged: features.npy"
    )
    parser.add_argument('--draw', action='store_true', help='also drawn images: drawn/NAME.png')
    parser.add_argument(
        '--draw-score-thr', type=float, default=argparse.SUPPRESS, help='detection: least score of what is drawn'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='what started the processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.apis.predict import Options, predict
    from fcvit_mm.engine.config import load_config

    cfg = load_config(args.config, args.cfg_options, launcher=args.launcher)
    options = Options(**{name: value for name, value in vars(args).items() if name in Options._fields})
    done = predict(cfg, args.checkpoint, args.inputs, args.out, options)
    if not done.first:
        return
    if not done.written:
        print(f'{args.out} has the results of all {done.images} images already.')
        return
    if done.resumed:
        print(f'{done.resumed} of {done.images} images had been predicted before.')
    print('\n'.join(done.written))
    if done.skipped:
        print(f'{done.skipped} of {done.images} images skipped: skipped.csv has the reasons.')


if __name__ == '__main__':
    run_command(main, parse_args)
