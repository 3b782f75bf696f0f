"""Time the operations one by one on a GPU, compared with PyTorch's and with the limit of the memory bandwidth.

The maps are those of FCViT-B12's stages. Each is timed as a CUDA graph of several calls, so that Python's time does not
count. Ends with status 1 if an operation disagrees with its reference.

Example:
    python dev/benchmark/time_kernels.py --batch 128 --dtype bfloat16
"""

import argparse
import json
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from ceilings import measure_ceilings
from command import add_arguments, check_arguments, describe_run
from measure import spread
from timed_networks import DTYPES
from torch import Tensor

from fcvit_mm import ops
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_atomic
from fcvit_mm.models.variants import VARIANTS
from fcvit_mm.ops.dispatch import Operation

#: Calls of one graph.
CALLS = 8
#: Largest difference from the reference in double precision, as a share of the largest value.
TOLERANCE = {'float32': 1e-3, 'float16': 5e-3, 'bfloat16': 3e-2}


class Case(NamedTuple):
    """An operation on the map of a stage.

    Attributes:
        op (Operation): The operation.
        args (tuple): Arguments of the operation, the map first, channels_last.
        maps (int): Bytes of the maps that must be read and written, each once.
        multiply_adds (int): Multiply-adds of the operation.
    """

    op: Operation
    args: Tuple[Any, ...]
    bytes: int
    multiply_adds: int


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        '--network', default='fcvit_b12', help='network whose feature maps are used (default: fcvit_b12)'
    )
    parser.add_argument('--batch', type=int, default=128, help='batch size (default: 128)')
    parser.add_argument('--size', type=int, default=224, help='side of the images in pixels (default: 224)')
    parser.add_argument('--backward', action='store_true', help='time the backward pass instead')
    add_arguments(parser)
    return parser.parse_args(argv)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield the operations of each stage."""
    backbone = VARIANTS[args.network].build(out_indices=(0, 1, 2, 3))
    new = partial(torch.randn, device=args.device, dtype=DTYPES[args.dtype])

    def map_of(channels: int, side: int) -> Tensor:
        return new(args.batch, channels, side, side).contiguous(memory_format=torch.channels_last)

    for channels, stride, stage in zip(backbone.stage_channels, backbone.stage_strides, backbone.stages):
        side, hidden = args.size // stride, stage.blocks[0].channel_mixer.fc1.out_channels
        x, expanded, vector = map_of(channels, side), map_of(hidden, side), new(channels)
        heads, few = new(8), channels // 8
        size, size_of_expanded = x.nbytes, expanded.nbytes
        context = (x, ops.channel_means(x), new(args.batch, channels), 8, heads, heads, 1e-5)
        yield Case(ops.group_norm, (x, vector, vector, 1e-5), 3 * size, 0)
        yield Case(ops.add_global_context, context, 3 * size, 0)
        yield Case(ops.depthwise_conv2d, (x, new(channels, 1, 11, 11) / 11, vector), 2 * size, x.numel() * 121)
        yield Case(
            ops.conv2d,
            (x, new(few, channels, 1, 1) / channels**0.5, new(few)),
            size + size // 8,
            x.numel() * few,
        )
        yield Case(
            ops.conv2d,
            (x, new(hidden, channels, 1, 1) / channels**0.5, new(hidden)),
            size + size_of_expanded,
            x.numel() * hidden,
        )
        yield Case(
            ops.dwconv_gelu,
            (expanded, new(hidden, 1, 3, 3) / 3, new(hidden)),
            2 * size_of_expanded,
            expanded.numel() * 9,
        )
        yield Case(ops.add_scaled, (x, map_of(channels, side), vector), 3 * size, 0)


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / CALLS)
    return spread(times[2:]).median


def error(case: Case) -> float:
    """Return the largest difference from the reference on one image, as a share of the largest value."""

    x = case.args[0]

    def of_first(value: Any) -> Any:
        of_each = value is x or (isinstance(value, Tensor) and value.shape in (x.shape, x.shape[:2]))
        return value[:1] if of_each else value

    args = [of_first(arg) for arg in case.args]
    exact = case.op.reference(*(arg.double() if isinstance(arg, Tensor) else arg for arg in args))
    return ((case.op(*args).double() - exact).abs().max() / exact.abs().max().clamp(min=1)).item()


def with_gradients(function: Callable[..., Tensor], args: Sequence[Any]) -> Callable[[], Any]:
    """Return a call that computes the gradients of all tensors from a graph that is recorded once."""
    leaves = [arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
    out = function(*leaves)
    grad = torch.randn_like(out)
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def measure(case: Case, args: argparse.Namespace) -> Dict[str, Any]:
    """Return a row: times of ours and of PyTorch in both layouts."""
    x, *others = case.args
    contiguous = [arg.contiguous() if isinstance(arg, Tensor) and arg.ndim == 4 else arg for arg in others]
    ways = {
        'ours': (case.op, case.args),
        'channels_last': (case.op.reference, case.args),
        'NCHW': (case.op.reference, (x.contiguous(), *contiguous)),
    }
    row: Dict[str, Any] = dict(
        op=case.op.__name__,
        kernel='x'.join(map(str, others[0].shape[2:])) if case.op.__name__ != 'add_scaled' else '',
        shape=list(x.shape),
        implementation=case.op.choose(*case.args).name,
        bytes=case.bytes,
        multiply_adds=case.multiply_adds,
        error=error(case),
    )
    for name, (function, values) in ways.items():
        call = with_gradients(function, values) if args.backward else partial(function, *values)
        with torch.enable_grad() if args.backward else torch.no_grad():
            row[name] = seconds(call, args.rounds)
    return row


def table(rows: List[Dict[str, Any]], bandwidth: float) -> str:
    """Return the rows as Markdown."""
    lines = [
        '| operation | map | ours, us | of the memory floor | PyTorch channels_last, us | PyTorch NCHW, us | '
        'faster than the better | error |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        best = min(row['channels_last'], row['NCHW'])
        name = ' '.join(filter(None, (row['op'], row['kernel'])))
        lines.append(
            f'| {name} ({row["implementation"]}) | {"x".join(map(str, row["shape"]))} | {row["ours"] * 1e6:.1f} | '
            f'{row["bytes"] / bandwidth / row["ours"]:.0%} | {row["channels_last"] * 1e6:.1f} | '
            f'{row["NCHW"] * 1e6:.1f} | {best / row["ours"]:.2f} | {row["error"]:.1e} |'
        )
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    device = check_arguments(args)
    # Trying all of cuDNN's kernels for each convolution takes minutes; it makes the depth-wise ones no faster.
    torch.backends.cudnn.benchmark = False
    if device.type != 'cuda':
        raise UserError(f'--device is {args.device}, expected a GPU; on a CPU, see speed.py --profile')
    if args.network not in VARIANTS or not args.network.startswith('fcvit'):
        known = ', '.join(name for name in VARIANTS if name.startswith('fcvit'))
        raise UserError(f'--network is {args.network}, expected one of {known}')
    found = describe_run(device)
    bandwidth = measure_ceilings(device, {args.dtype: DTYPES[args.dtype]}).bandwidth
    rows = []
    for case in cases(args):
        rows.append(measure(case, args))
        torch.cuda.empty_cache()
    found.update(rows=rows, bandwidth=bandwidth, batch=args.batch, dtype=args.dtype, backward=args.backward)
    text = table(rows, bandwidth)
    write_atomic(args.out / 'kernels.json', json.dumps(found, indent=1, default=str).encode())
    write_atomic(args.out / 'kernels.md', f'{text}\n'.encode())
    print(f'{text}\ncopy: {bandwidth / 1e9:.0f} GB/s read and written')
    wrong = [row for row in rows if not row['error'] <= TOLERANCE[args.dtype]]
    if wrong:
        raise UserError(
            '; '.join(f'{row["op"]} of {row["shape"]} is {row["error"]:.1e} off its reference' for row in wrong)
        )


if __name__ == '__main__':
    run_command(main)
