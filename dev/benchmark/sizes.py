"""Time networks over input sizes and batch sizes, ours beside peers; names are those of speed.py.

Each point (a size at batch 1, or a batch size at the smallest size) is timed separately, all networks in turn; large
points in fewer rounds, and in the layout that was faster at the last point below --trial-pixels.
"""

import argparse
import gc
import io
import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

from command import add_arguments, check_arguments, describe_run
from measure import interleave, spread
from timed_networks import Task, faster_layout, parse_network, prepare

from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_all_atomic

#: Okabe and Ito's colors, and marks, of as many networks.
STYLES = [('#0072B2', 'o'), ('#56B4E9', 's'), ('#E69F00', '^'), ('#009E73', 'v'), ('#CC79A7', 'D'), ('#999999', 'x')]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        '--networks',
        nargs='+',
        required=True,
        metavar='NAME',
        help='networks to time; the first is the baseline of the others',
    )
    parser.add_argument('--sizes', nargs='+', type=int, default=[224, 320, 448, 640, 896, 1280, 2048], metavar='PIXELS')
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 2, 4, 8, 16, 32], metavar='IMAGES')
    parser.add_argument(
        '--trial-pixels',
        type=int,
        default=4 * 224 * 224,
        help='largest number of pixels per batch for which both layouts are timed (default: %(default)s)',
    )
    add_arguments(parser, memory=False)
    return parser.parse_args(argv)


def measure_point(args: argparse.Namespace, size: int, batch: int, layouts: Dict[str, str]) -> Dict[str, Any]:
    """Time all networks at one size and batch; ``layouts`` is updated where it is tried."""
    task = Task('inference', args.device, batch, (size, size), True, args.threads)
    networks = [parse_network(label, args.dtype) for label in args.networks]
    pixels = batch * size * size
    for timed in networks:
        if timed.way.layout:
            layouts[timed.label] = timed.way.layout
        elif pixels <= args.trial_pixels or timed.label not in layouts:
            layouts[timed.label] = faster_layout(timed, task)[0]
    calls = {timed.label: prepare(timed, task, layouts[timed.label]).call for timed in networks}
    rounds = min(args.rounds, max(3, args.rounds * args.trial_pixels // pixels))
    times = interleave(calls, rounds, min(args.warmup, rounds), args.found_device)
    del calls
    gc.collect()
    return dict(size=size, batch=batch, rounds=rounds, layouts=dict(layouts), times=times)


def milliseconds(point: Dict[str, Any], label: str) -> float:
    """Return the median milliseconds per image."""
    return spread(point['times'][label]).median / point['batch'] * 1e3


def format_table(networks: List[str], points: List[Dict[str, Any]]) -> str:
    """Return a Markdown table: milliseconds per image, and the ratio to the first network."""
    lines = [
        '| size | batch | ' + ' | '.join(networks) + ' |',
        '|' + '---|' * (len(networks) + 2),
    ]
    for point in points:
        first = milliseconds(point, networks[0])
        cells = [f'{first:.1f}'] + [
            f'{(value := milliseconds(point, label)):.1f}; {value / first:.2f}' for label in networks[1:]
        ]
        lines.append(f'| {point["size"]} | {point["batch"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def draw(networks: List[str], points: List[Dict[str, Any]], title: str) -> bytes:
    """Draw what an image costs over its side at batch 1, and over the batch at the smallest size, as PNG."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    smallest = min(point['size'] for point in points)
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout='constrained')
    for axes, key, of_panel in (
        (panels[0], 'size', [point for point in points if point['batch'] == 1]),
        (panels[1], 'batch', [point for point in points if point['size'] == smallest]),
    ):
        for (color, mark), label in zip(STYLES * len(networks), networks):
            axes.plot(
                [point[key] for point in of_panel],
                [milliseconds(point, label) for point in of_panel],
                color=color,
                marker=mark,
                label=label,
            )
        axes.set_xscale('log', base=2)
        places = [point[key] for point in of_panel]
        axes.set_xticks(places, places)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_yscale('log')
    panels[0].set(xlabel='side of the image, pixels (batch 1)', ylabel='ms per image')
    panels[1].set(xlabel=f'images of {smallest} x {smallest} at a time', ylabel='ms per image', ylim=(0, None))
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format='png')
    pyplot.close(figure)
    return image.getvalue()


def points_of(sizes: Sequence[int], batches: Sequence[int]) -> List[Tuple[int, int]]:
    """Return sizes at batch 1, and batches at the smallest size, each point once."""
    found = [(size, 1) for size in sorted(set(sizes))]
    return found + [(min(sizes), batch) for batch in sorted(set(batches)) if batch != 1]


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    for name in ('sizes', 'batches'):
        if min(getattr(args, name)) < 1:
            raise UserError(f'--{name} is {min(getattr(args, name))}, expected at least 1')
    args.batch = 1
    args.found_device = check_arguments(args)
    found = describe_run(args.found_device)
    points: List[Dict[str, Any]] = []
    layouts: Dict[str, str] = {}
    for size, batch in points_of(args.sizes, args.batches):
        points.append(measure_point(args, size, batch, layouts))
        costs = ', '.join(f'{label} {milliseconds(points[-1], label):.1f}' for label in args.networks)
        print(f'{size}, batch {batch}: {costs} ms/image', flush=True)
    machine = found['machine']
    title = f'{machine["gpu"] or machine["cpu"]}, {machine["threads"]} threads, {args.dtype}: all stages, medians'
    table = format_table(args.networks, points)
    found.update(networks=args.networks, points=points)
    write_all_atomic(
        {
            str(args.out / 'results.json'): (json.dumps(found, indent=1) + '\n').encode(),
            str(args.out / 'table.md'): table.encode(),
            str(args.out / 'plot.png'): draw(args.networks, points, title),
        }
    )
    print('\n' + table + f'\nwritten to {args.out}')


if __name__ == '__main__':
    run_command(main)
