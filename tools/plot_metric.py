"""Draw how a metric grew in one or more runs of tools/train.py, from the logs that MMEngine wrote."""

import argparse
import json
import os
from pathlib import Path

from fcvit_mm.errors import UserError, run_command

#: Okabe and Ito's colours, which colour-blind people can tell apart.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def read_metric(run: Path, key: str):
    """Steps (epochs, or iterations of runs by iteration) and values of a metric in the logs of a work directory."""
    found, names = {}, set()
    for path in sorted(run.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # a run that was killed may leave half a line
            names.update(values)
            if key in values:
                found[values['step']] = values[key]
    if not found:
        raise UserError(f'{run}/*/vis_data/scalars.json has no {key!r}, but {sorted(names) or "nothing"}')
    return zip(*sorted(found.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='WORK_DIR')
    parser.add_argument('--key', required=True, help='such as accuracy/top1, coco/bbox_mAP or mIoU')
    parser.add_argument('--out', required=True, type=Path, help='PNG file')
    parser.add_argument('--step', default='epoch', help='what a step of these runs is, for the axis')
    args = parser.parse_args()
    if len(args.runs) > len(COLORS):
        raise UserError(f'{len(args.runs)} runs, at most {len(COLORS)} can be told apart')
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout='constrained')
    for run, color in zip(args.runs, COLORS):
        steps, values = read_metric(run, args.key)
        axes.plot(steps, values, color=color, marker='o', markersize=4, label=run.name)
        print(run.name, *(f'{step}: {value:.4g}' for step, value in zip(steps, values)), sep='  ')
    axes.set(xlabel=args.step, ylabel=args.key)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    partial = args.out.with_name(f'.{args.out.name}')
    figure.savefig(partial, dpi=120, format='png')
    os.replace(partial, args.out)


if __name__ == '__main__':
    run_command(main)
