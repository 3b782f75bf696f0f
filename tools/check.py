"""Check everything before a long run: data, checkpoints, classes, disk; then one step, one evaluation batch.

Writes nothing. Prints a short report, or all problems that would end the run and how to fix them.
"""

import argparse
from typing import Optional, Sequence

from command_line import LAUNCHERS, add_config_options, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='work directory of the planned run (default: ./work_dirs/<config name>)')
    parser.add_argument('--resume', action='store_true', help='check a run that resumes from its last checkpoint')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--quick', action='store_true', help='check as tools/train.py does at its start, and build, but train no step'
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='launcher of the planned run, if it has several processes'
    )
    parser.add_argument('--verbose', action='store_true', help="show the libraries' own log")
    add_config_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from fcvit_mm.engine.command_options import enable_amp
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.engine.resume_point import select_resume_point
    from fcvit_mm.preflight.checks import PreflightError, check_training
    from fcvit_mm.preflight.trial import format_trial, run_trial

    if not args.verbose:
        MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if not args.verbose and not args.quick:
        cfg.log_level = 'WARNING'
    if args.amp:
        enable_amp(cfg)
    if args.resume:
        cfg.resume, cfg.load_from = True, None
    select_resume_point(cfg)
    check_training(cfg, building=args.quick)
    print(f'{args.config}: data, checkpoints and classes are in order')
    if args.quick:
        return
    found = run_trial(cfg, cfg.work_dir)
    print(format_trial(found, cfg.train_dataloader.get('num_workers', 0)))
    if found.problems:
        raise PreflightError(found.problems)
    print('No problems found.')


if __name__ == '__main__':
    run_command(main, parse_args)
