"""Print the implementations of every operation, and which would run on this machine for a feature map of a shape.

Example:
    python -m fcvit_mm.ops
    python -m fcvit_mm.ops depthwise_conv2d --shape 8 64 56 56 --dtype bfloat16 --grad
    python -m fcvit_mm.ops --measured --device cuda
"""

import argparse
import inspect
import textwrap
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import UserError, run_command
from . import OPERATIONS
from .dispatch import Operation, current_mode
from .measured import describe_kind, device_name, is_untuned, path_of_choices, read_choices

DTYPES = {'float32': torch.float32, 'float64': torch.float64, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
LAYOUTS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}
WIDTH = 120


def parse_arguments(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m fcvit_mm.ops', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ', '.join(op.__name__ for op in OPERATIONS)
    parser.add_argument('operations', nargs='*', metavar='OPERATION', help=f'one or more of {names}; default: all')
    parser.add_argument(
        '--shape', nargs='+', default=['8', '64', '56', '56'], metavar='B C H W', help='shape of the feature map'
    )
    parser.add_argument('--dtype', default='float32', help=f'one of {", ".join(DTYPES)}')
    parser.add_argument('--layout', default='channels_last', help=f'one of {", ".join(LAYOUTS)}')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--grad', action='store_true', help='with gradients for the arguments, as in training')
    parser.add_argument(
        '--measured',
        action='store_true',
        help='list the measured choices on the device and the file that stores them, instead',
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(arguments)


def find_operations(names: Sequence[str]) -> List[Operation]:
    """Return the operations of these names; all of them without any."""
    known = {op.__name__: op for op in OPERATIONS}
    for name in names:
        _check_choice('operation', name, known)
    return [known[name] for name in names] or list(OPERATIONS)


def make_map(shape: Sequence[str], dtype: str, layout: str, device: str) -> Tensor:
    """Make a map ``(B, C, H, W)`` in float32, from the command line's values.

    Raises:
        UserError: A value is invalid, or this machine does not have the device.
    """
    _check_choice('--dtype', dtype, DTYPES)
    _check_choice('--layout', layout, LAYOUTS)
    given = ' '.join(shape)
    if len(shape) != 4 or not all(size.isdecimal() for size in shape) or not all(int(size) for size in shape[1:]):
        raise UserError(
            f'--shape is {given}, expected four numbers B C H W (images, channels, height, width), of which only B '
            'may be 0: for example --shape 8 64 56 56'
        )
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'--device is {device}, which PyTorch cannot use on this machine ({reason}): try --device cpu'
        ) from error
    return torch.rand([int(size) for size in shape], device=device)


def make_call(op: Operation, x: Tensor, dtype: torch.dtype, layout: torch.memory_format, grad: bool) -> Tuple[Any, ...]:
    """Make the arguments of a call of an operation with a map ``(B, C, H, W)``."""
    args = [arg.to(dtype) if isinstance(arg, Tensor) else arg for arg in op.example(x)]
    args[0] = args[0].contiguous(memory_format=layout)
    return tuple(arg.requires_grad_(grad) if isinstance(arg, Tensor) else arg for arg in args)


def describe(op: Operation, args: Tuple[Any, ...]) -> str:
    """Return the table of an operation as text, with the row that runs for these arguments marked."""
    parameters = inspect.signature(op.reference).parameters
    values = [f'{name} {tuple(arg.shape) if isinstance(arg, Tensor) else arg}' for name, arg in zip(parameters, args)]
    chosen = op.choose(*args)
    lines = [f'{op.__name__}: {", ".join(values)}']
    for row in op.table:
        mark = '-> ' if row.name == chosen.name else '   '
        recorded = '' if row.traceable else '; eager mode only'
        lines.append(f'{mark}{row.name:<15}when {row.condition}{recorded}')
        lines.append(f'{"":18}why  {row.why}')
    return '\n'.join(_wrapped(line) for line in lines)


def list_choices(operations: Sequence[Operation], device: torch.device) -> str:
    """Return the measurements on a device, of this process and earlier ones, as text."""
    name = device_name(device)
    wanted = [op.__name__ for op in operations]
    found = [(key, choice) for key, choice in read_choices(name).items() if key[0] in wanted]
    # Keys contain None and shapes, which cannot be compared for sorting.
    choices = sorted(found, key=lambda each: (*each[0][:3], str(each[0])))
    if not choices:
        tuned = 'its tables were tuned on this CPU' if device.type == 'cpu' and not is_untuned(torch.empty(1)) else ''
        return f'Nothing was measured on {name}{": " + tuned if tuned else " yet"}.'
    lines = [f'{name}: {path_of_choices(name)}, which can be deleted to measure again']
    for key, choice in choices:
        times = ', '.join(f'{row} {value:.3g} ms' for row, value in sorted(choice.milliseconds.items()))
        lines.append(f'{describe_kind(key)}: {choice.row} ({times})')
    return '\n'.join(lines)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Print what the command line asks for."""
    args = parse_arguments(arguments)
    operations = find_operations(args.operations)
    if args.measured:
        print(list_choices(operations, make_map(['1'] * 4, 'float32', 'contiguous', args.device).device))
        return
    try:
        x = make_map(args.shape, args.dtype, args.layout, args.device)
        tables = [
            describe(op, make_call(op, x, DTYPES[args.dtype], LAYOUTS[args.layout], args.grad)) for op in operations
        ]
    except RuntimeError as error:
        if 'memory' not in str(error):
            raise
        raise UserError(
            f'--shape is {" ".join(args.shape)}, which does not fit in the memory of {args.device}: try a smaller one'
        ) from error
    gradients = 'with gradients' if args.grad else 'without gradients'
    print(f'torch {torch.__version__}, {args.dtype}, {args.layout}, {args.device}, {gradients}, mode {current_mode()}')
    print(
        'The implementation that runs is marked with ->: the first that applies, or the fastest '
        'where they are measured.\n'
    )
    print('\n\n'.join(tables))


def _check_choice(what: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise UserError(f'{what} is {value}, expected one of {", ".join(choices)}')


def _wrapped(line: str) -> str:
    return '\n'.join(textwrap.wrap(line, WIDTH, subsequent_indent=' ' * 23, break_on_hyphens=False)) or line


if __name__ == '__main__':
    run_command(main)
