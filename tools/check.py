"""Look at everything before a long run: data, checkpoints, classes, disk; then one step, one evaluation batch.

Writes nothing. Ends with a short report, or with all that would go wrong and the way out of each.
"""

import argparse
import traceback

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from fcvit_mm.engine.config import adapt_to_machine, enable_amp, load_config
from fcvit_mm.engine.hooks.resume import find_resume_point
from fcvit_mm.errors import run_command
from fcvit_mm.preflight.checks import PreflightError, check_training
from fcvit_mm.preflight.trial import format_trial, run_trial, trial_problem


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where the run is to write (default: ./work_dirs/<config name>)')
    parser.add_argument('--resume', action='store_true', help='for a run that goes on from its last checkpoint')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--quick', action='store_true', help='only what tools/train.py looks at by itself')
    parser.add_argument('--verbose', action='store_true', help="the libraries' own log, and where an error came from")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    return parser.parse_args()


def main():
    args = parse_args()
    if not args.verbose:
        MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    if not args.verbose:
        cfg.log_level = 'WARNING'
    if args.amp:
        enable_amp(cfg)
    adapt_to_machine(cfg)
    check_training(cfg, find_resume_point(cfg.work_dir) if args.resume else None)
    print(f'{args.config}: data, checkpoints and classes are in order')
    if args.quick:
        return
    try:
        found = run_trial(cfg, cfg.work_dir)
    except Exception as error:
        # Broad, because a model, a data set or a metric may fail in any way.
        if args.verbose:
            traceback.print_exc()
        raise PreflightError([trial_problem(error)]) from error
    print(format_trial(found, cfg.train_dataloader.get('num_workers', 0)))
    if found.problems:
        raise PreflightError(found.problems)
    print('Nothing stands in the way.')


if __name__ == '__main__':
    run_command(main)
