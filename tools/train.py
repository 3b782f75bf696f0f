"""Train a classifier, detector or segmentor."""

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
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: ./work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='resume from this checkpoint; without a path, from the last one in the work directory, if any',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size divided by the base batch size of the config',
    )
    parser.add_argument('--no-preflight', action='store_true', help='do not check data and evaluators before the start')
    add_config_options(
        parser,
        'model.head.num_classes=5, key="[a,b]" or key=a,b for a list. pretrained=PATH is the checkpoint that the '
        'backbone starts from, pretrained=NAME published weights, pretrained=None starts from scratch',
    )
    add_launcher_options(parser)
    return pass_local_rank(parser.parse_args(argv))


def main(args: argparse.Namespace) -> None:
    check_config(args.config)
    from fcvit_mm.engine.command_options import enable_amp, enable_auto_scale_lr
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.engine.resume_point import request_resume, select_resume_point
    from fcvit_mm.engine.run import is_first_here, train
    from fcvit_mm.preflight.checks import check_training
    from fcvit_mm.preflight.start import explained_start

    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume is not None:
        request_resume(cfg, args.resume)
    select_resume_point(cfg)
    if is_first_here() and not args.no_preflight:
        check_training(cfg)
    with explained_start(cfg):
        train(cfg)


if __name__ == '__main__':
    run_command(main, parse_args)
