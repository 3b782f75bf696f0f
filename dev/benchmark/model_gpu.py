"""Compute a lower bound of the time of a pass on a GPU, without a GPU: bytes, instructions and multiply-adds.

The pass runs on tensors without values, and our kernels are compiled for the GPU. Each kernel takes at least as long as
the longest of three times: to move its bytes, to issue its instructions, and to multiply its matrices. The sum over all
kernels is the lower bound. It ignores caches, overlap and launch overhead, which is small with CUDA graphs.

Example:
    python dev/benchmark/model_gpu.py --gpu h100 --networks fcvit_b12 fcvit_b24
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from command import parse_size
from compile_kernels import Resources, compile_for
from launches import Launch, record
from timed_networks import DTYPES

from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import check_writable, write_atomic
from fcvit_mm.models.variants import VARIANTS


class Gpu(NamedTuple):
    """Limits of a GPU, as stated by its manufacturer.

    Attributes:
        capability (int): 90 is compute capability 9.0.
        processors (int): Streaming multiprocessors; each issues 4 instructions of a warp at a time.
        clock (float): Hz.
        bandwidth (float): Bytes read and written in a second.
        multiply_adds (float): Multiply-adds per second of dense matrix products in half precision.
    """

    capability: int
    processors: int
    clock: float
    bandwidth: float
    multiply_adds: float


#: From NVIDIA's data sheets, SXM modules; of the A100 that with 80 GB.
GPUS = {
    'a100': Gpu(80, 108, 1.41e9, 2.04e12, 156e12),
    'h100': Gpu(90, 132, 1.83e9, 3.35e12, 494e12),
    'b200': Gpu(100, 148, 1.98e9, 8.0e12, 1125e12),
}
LANES, ISSUED = 32, 4
#: Minimum share of the pass for an operator of PyTorch to get a row in the table; each of our kernels has a row.
SHOWN = 0.005


class Bound(NamedTuple):
    """Minimum seconds of a launch by each limit, and the instructions of a lane per value of the map."""

    memory: float
    issue: float
    products: float
    instructions: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.issue, self.products)

    @property
    def limit(self) -> str:
        return max(('memory', 'issue', 'products'), key=lambda each: getattr(self, each))


def values_of_program(launch: Launch) -> int:
    """Return how many values of the map a program computes at a time."""
    constants = launch.constants
    if 'COLS' in constants:
        return constants.get('ROWS', 1) * constants['COLS'] * constants['POSITIONS'] * constants['BLOCK_C']
    if 'NUM_HEADS' in constants:
        return constants['NUM_HEADS'] * constants['HEAD_DIM'] * constants['POSITIONS']
    return constants['CHANNELS'] * (constants.get('POSITIONS') or constants['ROWS'])


def rounds_of_loop(launch: Launch) -> float:
    """Return how often a program of a launch runs its loop, on average."""
    constants, (batch, channels, height, width) = launch.constants, launch.shape
    if launch.kernel.__name__ == 'depthwise_kernel':  # over the rows of taps that reach the map
        half = constants['KERNEL'] // 2
        rows = (min(row + half, height - 1) - max(row - half, 0) + 1 for row in range(height))
        return sum(rows) / height
    passes = -(-constants['KERNEL'] // constants['TAP_ROWS']) if 'TAP_ROWS' in constants else 1
    programs = math.prod(launch.grid)
    return max(1.0, passes * batch * channels * height * width / (programs * values_of_program(launch)))


def bound(launch: Launch, gpu: Gpu, resources: Optional[Resources]) -> Bound:
    """Return the least time of a launch."""
    memory, products = launch.bytes / gpu.bandwidth, launch.multiply_adds / gpu.multiply_adds
    if resources is None:
        return Bound(memory, 0.0, products, 0.0)
    of_warp = resources.instructions - resources.in_loop
    of_warp += resources.in_loop * rounds_of_loop(launch) if resources.in_loop else 0
    issued = of_warp * launch.num_warps * math.prod(launch.grid)
    return Bound(
        memory,
        issued / (gpu.processors * ISSUED * gpu.clock),
        products,
        issued * LANES / math.prod(launch.shape),
    )


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('--gpu', default='h100', choices=list(GPUS))
    parser.add_argument(
        '--networks', nargs='+', default=['fcvit_b12'], metavar='NAME', help='networks to analyse (default: fcvit_b12)'
    )
    parser.add_argument('--batch', type=int, default=128, help='batch size (default: 128)')
    parser.add_argument('--size', default='224', help='image size, one number or HxW (default: 224)')
    parser.add_argument('--dtype', default='bfloat16', choices=list(DTYPES))
    parser.add_argument('--train', action='store_true', help='analyse a training step: forward and backward pass')
    parser.add_argument(
        '--bandwidth', type=float, help="measured bytes per second, instead of the manufacturer's figure"
    )
    parser.add_argument(
        '--multiply-adds', type=float, help="measured multiply-adds per second, instead of the manufacturer's figure"
    )
    parser.add_argument('--out', type=Path, help='Markdown file for the table (default: print it)')
    args = parser.parse_args(argv)
    for name in ('batch', 'bandwidth', 'multiply_adds'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f'--{name.replace("_", "-")} is {value}, expected more than 0')
    for name in args.networks:
        if name not in VARIANTS:
            raise UserError(f'--networks is {name}, expected one of {", ".join(VARIANTS)}')
    return args


def rows_of(launches: List[Launch], gpu: Gpu) -> Tuple[List[List[str]], float, Counter]:
    """Return the rows of the table, the total seconds, and the seconds by limit."""
    compiled: Dict[Any, Resources] = {}
    found: Dict[Tuple[Any, ...], List[Any]] = {}
    by_limit: Counter = Counter()
    for launch in launches:
        resources = None if launch.kernel is None else compile_for(launch, gpu.capability, compiled)
        of_launch = bound(launch, gpu, resources)
        by_limit[of_launch.limit] += of_launch.seconds
        of_kernel = [launch.constants.get(key) for key in ('KERNEL', 'EPILOGUE')]
        name = ' '.join(map(str, [launch.name, *(value for value in of_kernel if value not in (None, 'none'))]))
        row = found.setdefault((name, launch.shape), [0, 0.0, of_launch, resources])
        row[0] += 1
        row[1] += of_launch.seconds
    total = sum(row[1] for row in found.values())
    rows = []
    for (name, shape), (count, seconds, one, resources) in sorted(found.items(), key=lambda each: -each[1][1]):
        if resources is None and seconds < SHOWN * total:
            continue
        times = [f'{1e6 * value:.0f}' if value else '-' for value in (one.memory, one.issue, one.products)]
        kernel = ['-'] * 4
        if resources is not None:
            kernel = [
                str(resources.registers),
                str(resources.spills),
                str(resources.shared),
                f'{one.instructions:.0f}',
            ]
        rows.append([name, 'x'.join(map(str, shape)), str(count), *times, f'{100 * seconds / total:.0f}', *kernel])
    return rows, total, by_limit


COLUMNS = (
    'kernel',
    'map',
    'times',
    'memory, us',
    'issue, us',
    'products, us',
    '% of the pass',
    'registers',
    'bytes spilled',
    'shared, bytes',
    'instructions a value',
)


def main() -> None:
    args = parse_args()
    if args.out:
        check_writable(args.out)
    gpu = GPUS[args.gpu]
    gpu = gpu._replace(bandwidth=args.bandwidth or gpu.bandwidth, multiply_adds=args.multiply_adds or gpu.multiply_adds)
    text = []
    for network in args.networks:
        with torch.device('meta'):
            model = VARIANTS[network].build()
        size = (args.batch, 3, *parse_size(args.size))
        images = torch.empty(size, device='meta', dtype=DTYPES[args.dtype])
        launches = record(model, images, gpu.processors, backward=args.train)
        rows, total, by_limit = rows_of(launches, gpu)
        limits = ', '.join(f'{100 * seconds / total:.0f}% {limit}' for limit, seconds in by_limit.most_common())
        text += [
            f'{network}, {args.dtype}, batch {args.batch}, {args.size}, {"training" if args.train else "inference"}, '
            f'{args.gpu}: {len(launches)} launches, {sum(each.bytes for each in launches) / 1e9:.1f} GB, '
            f'{sum(each.multiply_adds for each in launches) / 1e12:.2f} T multiply-adds in products; '
            f'{1e3 * total:.2f} ms at least, {args.batch / total:.0f} images/s at most; limited by: {limits}',
            '',
            f'| {" | ".join(COLUMNS)} |',
            '|' + '---|' * len(COLUMNS),
            *(f'| {" | ".join(row)} |' for row in rows),
            '',
        ]
    if args.out:
        write_atomic(args.out, '\n'.join(text).encode())
    else:
        sys.stdout.write('\n'.join(text))


if __name__ == '__main__':
    run_command(main)
