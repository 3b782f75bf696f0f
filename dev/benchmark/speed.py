"""Time networks side by side in one run: ours, their reference implementations, and peers.

All are timed in turn, round after round. Names: fcvit_b12 (as a user gets it), fcvit_b12_as_built, fcvit_b12_reference
(reference implementations in NCHW, as the published code runs), fcvit_b12_reference_channels_last,
fcvit_b12_reference_best, fcvit_b12_graphs (CUDA graphs), timm's convnext_tiny and others. Each name may be followed by
`_compiled` or `_replayed` (torch.compile, the latter in mode reduce-overhead), and by a dtype, as in
fcvit_b12@bfloat16.
"""

import argparse
import gc
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from ceilings import measure_ceilings
from command import add_arguments, check_arguments, describe_run, parse_size
from measure import in_child, interleave, peak_growth
from report import summarize, write_report
from timed_networks import (
    DTYPES,
    PEERS,
    Prepared,
    Task,
    TimedNetwork,
    counted,
    faster_layout,
    memory_of,
    parse_network,
    prepare,
)

from fcvit_mm.apis.count import count_multiply_adds, count_traffic
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_atomic
from fcvit_mm.ops import use_ops

#: Multiply-adds of a training step relative to a forward pass: gradients of inputs and of weights take as many each.
STEP_FACTOR = 3


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('--networks', nargs='+', required=True, metavar='NAME', help='networks to time: see above')
    parser.add_argument(
        '--baseline',
        nargs='+',
        metavar='NAME',
        help='networks, also in --networks, that the others are compared with (default: the first)',
    )
    parser.add_argument('--mode', default='inference', choices=['inference', 'train'])
    parser.add_argument('--batch', type=int, default=8, help='batch size (default: 8)')
    parser.add_argument('--size', default='224', metavar='HxW', help='image size in pixels (default: 224)')
    parser.add_argument(
        '--features',
        action='store_true',
        help='compute the feature maps of all stages, as for dense prediction, instead of 1000 class scores',
    )
    parser.add_argument('--repeat', type=int, help='number of calls per measurement (default: 1 on a CPU, 10 on a GPU)')
    parser.add_argument('--no-ceilings', action='store_true', help="do not measure the machine's ceilings")
    parser.add_argument(
        '--profile',
        action='store_true',
        help='also write profile.txt with the slowest operations of each network',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def prepare_all(networks: List[TimedNetwork], task: Task) -> Tuple[Dict[str, Prepared], List[Dict[str, Any]]]:
    """Move all networks to the device and run each once; return them, and the first cells of the report's rows."""
    prepared, rows = {}, []
    for timed in networks:
        try:
            layout, tried = (timed.way.layout, None) if timed.way.layout else faster_layout(timed, task)
            prepared[timed.label] = prepare(timed, task, layout)
            prepared[timed.label].call()
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f'{timed.label}: {task.device} has too little memory for --batch {task.batch} besides the previous '
                'networks: lower it, or time fewer networks'
            ) from error
        except (RuntimeError, NotImplementedError) as error:
            if 'not implemented for' not in str(error):
                raise
            raise UserError(
                f'{timed.label}: PyTorch {torch.__version__} cannot run it in {timed.dtype} on {task.device} '
                f'({error}): use another dtype or device'
            ) from error
        kind = 'peer' if timed.network in PEERS else 'reference' if timed.way.ops == 'reference' else 'ours'
        rows.append(
            dict(
                label=timed.label,
                kind=kind,
                network=timed.network,
                way=timed.way.about,
                compiled=bool(timed.compiled),
                dtype=timed.dtype,
                layout=layout,
                layouts_tried=tried,
                params=prepared[timed.label].params,
            )
        )
        print(f'{timed.label}: {timed.dtype}, {layout}', flush=True)
    return prepared, rows


def count_work(rows: List[Dict[str, Any]], task: Task) -> None:
    """Add the multiply-adds and traffic of each network's reference implementation per image of a batch."""
    found = {}
    for row in rows:
        network = row['network']
        if network not in found:
            with use_ops('reference'):
                found[network] = (
                    count_multiply_adds(*counted(network, task, 'cpu', 1))[''],
                    count_traffic(*counted(network, task, 'meta', task.batch)) // task.batch,
                )
        forward, traffic = found[network]
        row['multiply_adds'] = forward * (STEP_FACTOR if task.mode == 'train' else 1)
        if task.mode == 'inference':
            row['traffic'] = traffic * DTYPES[row['dtype']].itemsize // torch.float32.itemsize


def profile(prepared: Dict[str, Prepared], device: torch.device) -> str:
    """Return tables of the operations that take most time, for each network: by kind, and by kind and shape."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == 'cuda')
    tables = []
    for label, (call, _) in prepared.items():
        with record(activities=activities, record_shapes=True) as recorded:
            call()
            if device.type == 'cuda':
                torch.cuda.synchronize()
        for by_shape in (False, True):
            averages = recorded.key_averages(group_by_input_shape=by_shape)
            key = f'self_{device.type}_time_total'
            if not hasattr(averages[0], key):
                key = 'self_device_time_total'
            tables += [
                f'{label}, by operation{" and shape" if by_shape else ""}',
                averages.table(
                    sort_by=key, row_limit=30 if by_shape else 20, max_name_column_width=50, max_shapes_column_width=90
                ),
            ]
    return '\n'.join(tables)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    device = check_arguments(args)
    repeat = (10 if device.type == 'cuda' else 1) if args.repeat is None else args.repeat
    if repeat < 1:
        raise UserError(f'--repeat is {repeat}, expected at least 1')
    task = Task(args.mode, args.device, args.batch, parse_size(args.size), args.features, args.threads)
    networks = [parse_network(label, args.dtype) for label in args.networks]
    labels = [timed.label for timed in networks]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f'--networks contains {", ".join(twice)} more than once: remove the duplicates')
    baselines = args.baseline or labels[:1]
    for label in baselines:
        if label not in labels:
            raise UserError(f'--baseline is {label}, expected one of --networks ({", ".join(labels)})')

    found = describe_run(device)
    prepared, rows = prepare_all(networks, task)
    ceilings = (
        None if args.no_ceilings else measure_ceilings(device, {row['dtype']: DTYPES[row['dtype']] for row in rows})
    )
    count_work(rows, task)
    gc.collect()

    print(f'{args.warmup} and {args.rounds} rounds', flush=True)
    times = interleave({label: each.call for label, each in prepared.items()}, args.rounds, args.warmup, device, repeat)
    for row, timed in zip(rows, networks):
        row['times'] = times[row['label']]
        if ceilings:
            row['matrix_ceiling'] = ceilings.multiply_adds[row['dtype']]
            row['bandwidth_ceiling'] = ceilings.bandwidth
        if not args.no_memory:
            row['peak_growth'] = (
                peak_growth(prepared[row['label']].call, device)
                if device.type == 'cuda'
                else in_child(memory_of, timed, task, row['layout'])
            )
    summarize(rows, args.batch, baselines)

    what = 'training step' if args.mode == 'train' else 'inference'
    shape = 'x'.join(map(str, task.size))
    found.update(
        title=f'{what.capitalize()}, batch {args.batch}, {shape}{", all stages" if args.features else ""}',
        task=task._asdict(),
        rounds=args.rounds,
        warmup=args.warmup,
        repeat=repeat,
        baselines=baselines,
        ceilings=ceilings and ceilings._asdict(),
        rows=rows,
    )
    if args.mode == 'train':
        found['multiply_adds_factor'] = STEP_FACTOR
        found['notes'] = ['A step: forward pass, loss, backward pass, AdamW. Lower precision by autocast.']
    print('\n' + write_report(found, args.out))
    if args.profile:
        write_atomic(args.out / 'profile.txt', profile(prepared, device).encode())
    print(f'written to {args.out}')


if __name__ == '__main__':
    run_command(main)
