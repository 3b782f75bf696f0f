"""Compile the Triton kernels, without a GPU, and report registers, spills and shared memory.

The kernels are those that FCViT's maps would launch, with the sizes that the code chooses for them. Ends with status 1
if one does not compile, or spills registers to memory.

Example:
    python dev/benchmark/compile_kernels.py --capabilities 80 90 --dtypes bfloat16 float32
"""

import importlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
import triton
from launches import Launch as Launched

from fcvit_mm.errors import command_parser, run_command
from fcvit_mm.ops.triton import support

# The package's names are the functions in them.
add_scaled, depthwise_conv, global_context, group_norm = (
    importlib.import_module(f'fcvit_mm.ops.triton.{name}')
    for name in ('add_scaled', 'depthwise_conv', 'global_context', 'group_norm')
)

POINTERS = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}
#: Kernel, arguments, constants, warps.
Launch = Tuple[Any, Tuple[Any, ...], Dict[str, Any], int]
HEADS, MLP_RATIOS = 8, {64: 8, 128: 8, 320: 4, 512: 4}


def record(channels: int, kernel_sizes: Sequence[int], dtype: torch.dtype) -> List[Launch]:
    """Return the launches of a block with this number of channels, forward and backward, on meta tensors."""
    launches: List[Launch] = []

    def note(kernel: Any, grid: Any, args: Tuple[Any, ...], num_warps: int = 4, **constants: Any) -> None:
        launches.append((kernel, args, constants, num_warps))

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    def map_of(channels: int) -> torch.Tensor:
        return tensor(128, channels, 56, 56, dtype=dtype).contiguous(memory_format=torch.channels_last)

    launch, support.launch = support.launch, note
    try:
        for size in kernel_sizes:
            width = channels * MLP_RATIOS.get(channels, 4) if size == 3 else channels
            x, weight, bias = map_of(width), tensor(width, 1, size, size), tensor(width)
            depthwise_conv.run_depthwise(x, weight, bias, epilogue='gelu' if size == 3 else 'none')
            if size == 3:
                depthwise_conv.run_depthwise(x, weight, bias, epilogue='gelu_grad', grad=x)
            depthwise_conv.run_depthwise(x, weight, None, flip=True)
            depthwise_conv.run_grad_weight(x, x, size)
        x, vector, head = map_of(channels), tensor(channels), tensor(HEADS)
        vectors = tensor(128, channels)
        _, similarity, stats = global_context.run_forward(x, vectors, vectors, HEADS, head, head, 1e-5)
        global_context.run_backward(x, x, vectors, vectors, head, head, similarity, stats, HEADS, 1e-5)
        _, stats = group_norm.run_forward(x, vector, vector, 1e-5, None)
        group_norm.run_backward(x, x, vector, stats, True)
        add_scaled.run_forward(x, x, vector, None)
        add_scaled.run_backward(x, x, vector, None, dtype)
    finally:
        support.launch = launch
    return launches


def source_of(kernel: Any, args: Sequence[Any], constants: Dict[str, Any]) -> Any:
    """Return the kernel as Triton specializes it for these arguments, an ``ASTSource``."""
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for i, (param, value) in enumerate(zip(kernel.params, args)):
        if isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
        else:
            signature[param.name] = 'fp32' if isinstance(value, float) else 'i32'
        if isinstance(value, torch.Tensor) or (not param.do_not_specialize and value % 16 == 0):
            attributes[(i,)] = [['tt.divisibility', 16]]
    signature.update(dict.fromkeys(constants, 'constexpr'))
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, signature, constexprs=values, attrs=attributes)


class Resources(NamedTuple):
    """Registers, spills and shared memory of a compiled kernel.

    Attributes:
        registers (int): Registers per thread.
        spills (int): Bytes of local memory per thread.
        shared (int): Bytes of shared memory per program.
        instructions (int): Instructions of the machine code.
        in_loop (int): Instructions in its loop; our kernels have at most one loop.
    """

    registers: int
    spills: int
    shared: int
    instructions: int
    in_loop: int


def compile_kernel(
    kernel: Any, args: Sequence[Any], constants: Dict[str, Any], num_warps: int, capability: int
) -> Resources:
    """Compile a kernel for a GPU of a compute capability."""
    from triton.backends.compiler import GPUTarget  # not in the Triton of torch 2.1

    target, options = GPUTarget('cuda', capability, 32), dict(num_warps=num_warps)
    compiled = triton.compile(source_of(kernel, args, constants), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        used, code = (_dump(file.name, option) for option in ('--dump-resource-usage', '--dump-sass'))
    found = dict(re.findall(r'\b(REG|STACK|LOCAL):(\d+)', used))
    instructions = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(code)]
    loops = [
        (address - target) // BYTES_OF_INSTRUCTION + 1
        for address, text in instructions
        for target in (int(place, 16) for place in _BRANCH.findall(text))
        if target < address
    ]
    return Resources(
        int(found['REG']),
        int(found['STACK']) + int(found['LOCAL']),
        compiled.metadata.shared,
        sum(not text.startswith('NOP') for _, text in instructions),
        max(loops, default=0),
    )


#: Address and text of an instruction, and the target of a branch.
_INSTRUCTION = re.compile(r'/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);')
_BRANCH = re.compile(r'^BRA\b.*?0x([0-9a-f]+)')
BYTES_OF_INSTRUCTION = 16


def _dump(path: str, option: str) -> str:
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def key_of(source: Any, num_warps: int) -> Tuple[Any, ...]:
    """Return a key that identifies a compiled kernel."""
    return source.fn.__name__, str(source.signature), str(source.constants), str(source.attrs), num_warps


def compile_for(launch: Launched, capability: int, known: Dict[Any, Resources]) -> Resources:
    """Compile the kernel of a launch, unless ``known`` contains it."""
    kernel, args, constants, num_warps = launch.kernel, launch.args, launch.constants, launch.num_warps
    key = (capability, *key_of(source_of(kernel, args, constants), num_warps))
    if key not in known:
        known[key] = compile_kernel(kernel, args, constants, num_warps, capability)
    return known[key]


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument(
        '--capabilities',
        type=int,
        nargs='+',
        default=[80, 90],
        help='compute capabilities: 80 is an A100, 90 an H100 (default: both)',
    )
    parser.add_argument(
        '--dtypes', nargs='+', default=['bfloat16', 'float16', 'float32'], choices=['bfloat16', 'float16', 'float32']
    )
    parser.add_argument('--channels', type=int, nargs='+', default=[64, 128, 320, 512])
    parser.add_argument('--kernel-sizes', type=int, nargs='+', default=[3, 11])
    args = parser.parse_args()

    support.num_processors = lambda device: 132
    seen, spilled = set(), []
    for capability in args.capabilities:
        for dtype in args.dtypes:
            for channels in args.channels:
                for kernel, values, constants, num_warps in record(channels, args.kernel_sizes, getattr(torch, dtype)):
                    key = (capability, *key_of(source_of(kernel, values, constants), num_warps))
                    if key in seen:
                        continue
                    seen.add(key)
                    start = time.perf_counter()
                    found = compile_kernel(kernel, values, constants, num_warps, capability)
                    line = (
                        f'sm_{capability} {dtype} {kernel.__name__} '
                        f'{" ".join(f"{name}={value}" for name, value in constants.items())}: '
                        f'{found.registers} registers, {found.spills} bytes spilled, {found.shared} shared, '
                        f'{found.instructions} instructions, {time.perf_counter() - start:.1f} s'
                    )
                    print(line, flush=True)
                    if found.spills:
                        spilled.append(line)
    print(f'{len(seen)} kernels compiled, {len(spilled)} of them spill')
    if spilled:
        sys.exit(1)


if __name__ == '__main__':
    run_command(main)
