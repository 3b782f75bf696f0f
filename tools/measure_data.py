"""Measure the time of data loading and of the model, and print the number of workers that balances them.

Uses the config's own data set, pipeline, batch size and model; writes nothing.
"""

import argparse
from typing import Optional, Sequence

from command_line import UserError, add_config_options, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a training run')
    parser.add_argument('--samples', type=int, default=256, help='number of samples to time (default: %(default)s)')
    parser.add_argument(
        '--step-seconds',
        type=float,
        metavar='SECONDS',
        help='time of one training step, for example measured on another machine; the model is not run',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--processes',
        type=int,
        default=1,
        help='number of processes (GPUs) of the run on this machine (default: %(default)s)',
    )
    add_config_options(parser, 'train_dataloader.batch_size=64')
    args = parser.parse_args(argv)
    if args.processes < 1:
        raise UserError(f'--processes is {args.processes}, expected at least 1')
    return args


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from fcvit_mm.engine.command_options import enable_amp
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.preflight.data_speed import format_data_speed, measure_data

    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = load_config(args.config, args.cfg_options)
    cfg.log_level = 'ERROR'
    if args.amp:
        enable_amp(cfg)
    found = measure_data(cfg, args.samples, args.step_seconds)
    print(f'{args.config}\n{format_data_speed(found, args.processes)}')


if __name__ == '__main__':
    run_command(main, parse_args)
