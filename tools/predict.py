"""Predict images, folders, lists and videos, and write the results to files.

Detection: results.json (COCO results, for pycocotools' loadRes) and annotations.json (a COCO data set, for annotation
tools). Segmentation: labels/NAME.png (class indices, with palette), labels.csv, classes.csv. Classification:
predictions.csv or predictions.parquet. Skipped images are listed in skipped.csv. The same command continues an
interrupted run.
"""

import argparse
from typing import Optional, Sequence

from command_line import TABLES, add_config_options, add_launcher_options, command_parser, pass_local_rank, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, published:NAME, or a URL')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, folder (searched recursively), video, or a .txt or .lst file with one path per line',
    )
    parser.add_argument('--out', required=True, help='folder for the results')
    parser.add_argument('--batch-size', type=int, default=argparse.SUPPRESS, help='batch size (default: 1)')
    parser.add_argument(
        '--workers', type=int, default=argparse.SUPPRESS, help='number of processes that read images (default: 2)'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--optimize',
        action='store_true',
        help='predict with the model after optimize_for_inference: faster, above all on CPUs',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation as defined in the config')
    parser.add_argument('--tile', type=int, help='tile size in pixels, for large images (default: no tiles)')
    parser.add_argument(
        '--overlap',
        type=float,
        default=argparse.SUPPRESS,
        help='overlap of neighbouring tiles, as a fraction of their size (default: 0.2)',
    )
    parser.add_argument(
        '--score-thr', type=float, default=argparse.SUPPRESS, help='minimum detection score to write (default: 0)'
    )
    parser.add_argument('--coco', help='detection: take image and category ids from this COCO file')
    parser.add_argument(
        '--top',
        type=int,
        default=argparse.SUPPRESS,
        help='classification: number of classes written per image (default: 5; 0: all)',
    )
    parser.add_argument(
        '--format',
        dest='table',
        choices=TABLES,
        default=argparse.SUPPRESS,
        help='file format of classification results (default: csv)',
    )
    parser.add_argument(
        '--features', action='store_true', help='also write the averaged last output of the backbone to features.npy'
    )
    parser.add_argument('--draw', action='store_true', help='also draw the predictions: drawn/NAME.png')
    parser.add_argument(
        '--draw-score-thr', type=float, default=argparse.SUPPRESS, help='minimum detection score to draw (default: 0.3)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    add_config_options(parser)
    add_launcher_options(parser)
    return pass_local_rank(parser.parse_args(argv))


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.apis.predict import Options, predict
    from fcvit_mm.engine.config import load_config

    cfg = load_config(args.config, args.cfg_options, launcher=args.launcher)
    options = Options(**{name: value for name, value in vars(args).items() if name in Options._fields})
    done = predict(cfg, args.checkpoint, args.inputs, args.out, options)
    if not done.first:
        return
    if not done.written:
        print(f'{args.out} already contains the results of this run.')
    else:
        if done.resumed:
            print(f'{done.resumed} of {done.images} images were already predicted by an earlier run.')
        print('\n'.join(done.written))
    if done.skipped:
        more = '' if done.written else ' To predict them after a repair, give another --out.'
        print(f'{done.skipped} of {done.images} images skipped; skipped.csv lists the reasons.{more}')


if __name__ == '__main__':
    run_command(main, parse_args)
