"""Plot a metric of one or more runs of tools/train.py, from MMEngine's logs."""

import argparse
import json
from pathlib import Path
from typing import Dict, Optional, Sequence, Set

from command_line import UserError, command_parser, run_command

#: Okabe and Ito's colors, which color-blind people can tell apart.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def read_metric(run: Path, key: str) -> Dict[int, float]:
    """Return a metric by step (epoch, or iteration in iteration-based runs) from the logs of a work directory.

    Raises:
        UserError: No log contains the metric; the message names the metrics in the logs.
    """
    found: Dict[int, float] = {}
    names: Set[str] = set()
    for path in sorted(run.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # a run that was killed may leave half a line
            names.update(set(values) - {'step'})
            if key in values:
                found[values['step']] = values[key]
    if not found:
        raise UserError(
            f'{run}/*/vis_data/scalars.json has no {key!r}: '
            + (f'give one of {", ".join(sorted(names))}' if names else 'give the work directory of a run with logs')
        )
    return dict(sorted(found.items()))


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='WORK_DIR', help='work directory of a run')
    parser.add_argument('--key', required=True, help='metric to plot, such as accuracy/top1, coco/bbox_mAP or mIoU')
    parser.add_argument('--out', required=True, type=Path, help='PNG file to write')
    parser.add_argument(
        '--step', default='epoch', help='label of the x axis: the unit of a step (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    if len(args.runs) > len(COLORS):
        raise UserError(
            f'{len(args.runs)} runs, expected at most {len(COLORS)}, the number of distinguishable colors: plot '
            'fewer runs'
        )
    if args.out.suffix.lower() not in ('', '.png'):
        raise UserError(f'--out is {args.out}, expected a file name ending in .png')
    return args


def main(args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from fcvit_mm.files import atomic_path

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout='constrained')
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) < len(names):
        names = list(map(str, args.runs))
    for run, name, color in zip(args.runs, names, COLORS):
        metric = read_metric(run, args.key)
        axes.plot(metric.keys(), metric.values(), color=color, marker='o', markersize=4, label=name)
        print(name, *(f'{step}: {value:.4g}' for step, value in metric.items()), sep='  ')
    axes.set(xlabel=args.step, ylabel=args.key)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_path(args.out) as temporary:
        figure.savefig(temporary, dpi=120, format='png')


if __name__ == '__main__':
    run_command(main, parse_args)
