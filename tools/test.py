"""Test a classifier, detector or segmentor."""

import argparse
from typing import Optional, Sequence

from command_line import (
    add_config_options,
    add_launcher_options,
    check_config,
    command_parser,
    pass_local_rank,
    run_command,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, published:NAME, or a URL')
    parser.add_argument('--work-dir', help='folder for the metrics (default: ./work_dirs/<config name>)')
    parser.add_argument(
        '--out', help='write the predictions to this .pkl file, or folder of PNG files for segmentation'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='folder for images with predictions drawn on them (with several processes, only those of the first)',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows each image (default: %(default)s)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation as defined in the config')
    parser.add_argument('--no-preflight', action='store_true', help='do not check data and evaluators before the start')
    add_config_options(parser, 'test_dataloader.batch_size=4, key="[a,b]" or key=a,b for a list')
    add_launcher_options(parser)
    return pass_local_rank(parser.parse_args(argv))


def main(args: argparse.Namespace) -> None:
    check_config(args.config)
    from fcvit_mm.engine.command_options import dump_predictions, enable_tta, enable_visualization
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.engine.run import is_first_here, test
    from fcvit_mm.preflight.checks import check_testing

    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if args.show or args.show_dir:
        enable_visualization(cfg, args.show_dir, args.show, args.wait_time)
    if args.out:
        dump_predictions(cfg, args.out)
    if is_first_here() and not args.no_preflight:
        check_testing(cfg, args.checkpoint)
    if args.tta:
        enable_tta(cfg)
    test(cfg, args.checkpoint)


if __name__ == '__main__':
    run_command(main, parse_args)
