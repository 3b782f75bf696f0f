"""Compile the Triton kernels for GPUs that need not be there, and report registers, spills and shared memory.

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
from typing import Any, Dict, List, Sequence, Tuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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
    """Return what a block of so many channels launches, forward and backward, on meta tensors."""
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


def source_of(kernel: Any, args: Sequence[Any], constants: Dict[str, Any]) -> ASTSource:
    """Return the kernel as Triton specialises it for these arguments."""
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


def resources(cubin: bytes) -> Tuple[int, int]:
    """Return registers, and bytes of local memory (spills), of a thread."""
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, '--dump-resource-usage', file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r'\b(REG|STACK|LOCAL):(\d+)', text))
    return int(found['REG']), int(found['STACK']) + int(found['LOCAL'])


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument('--capabilities', type=int, nargs='+', default=[80, 90], help='80 is an A100, 90 an H100')
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
                    source = source_of(kernel, values, constants)
                    key = (capability, kernel.__name__, str(source.signature), str(constants), str(source.attrs))
                    if key in seen:
                        continue
                    seen.add(key)
                    start = time.perf_counter()
                    compiled = triton.compile(
                        source, target=GPUTarget('cuda', capability, 32), options=dict(num_warps=num_warps)
                    )
                    seconds = time.perf_counter() - start
                    registers, spills = resources(compiled.asm['cubin'])
                    line = (
                        f'sm_{capability} {dtype} {kernel.__name__} '
                        f'{" ".join(f"{name}={value}" for name, value in constants.items())}: '
                        f'{registers} registers, {spills} bytes spilled, {compiled.metadata.shared} shared, '
                        f'{seconds:.1f} s'
                    )
                    print(line, flush=True)
                    if spills:
                        spilled.append(line)
    print(f'{len(seen)} kernels compiled, {len(spilled)} of them spill')
    if spilled:
        sys.exit(1)


if __name__ == '__main__':
    run_command(main)
