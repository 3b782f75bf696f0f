"""Time exported models in their runtimes and in PyTorch, one image at a time.

Each config's model gets random weights that find something, and is written to --files in every format that --ways asks
for, which takes minutes; existing files are reused. Then all are timed in turn, round after round, on one
random image. What is timed is the graph: an image that is resized and normalized to scores, logits or detections; a
detector's masks are within their boxes and not pasted, in PyTorch too. The 8-bit files are calibrated on random images,
which is enough for their speed and for nothing else.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from command import describe_run, parse_size
from measure import interleave, ratio, spread
from whole_models import build, path_of

import fcvit_mm
from fcvit_mm.engine.config import load_config, task_of
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.export.formats import check_format, write_export
from fcvit_mm.export.parts import Part, random_images
from fcvit_mm.export.quantization import quantize
from fcvit_mm.export.runtimes import Runnable, as_tuple, check_openvino, load_exported, load_openvino
from fcvit_mm.export.selection import take_part
from fcvit_mm.files import check_writable, check_writable_folder, write_atomic


class Way(NamedTuple):
    """A way to run a model: the kind of file, if it is one, whether in 8 bits, whether in OpenVINO."""

    kind: str = ''
    int8: bool = False
    openvino: bool = False
    optimized: bool = False


WAYS = {
    'pytorch': Way(),
    'pytorch_optimized': Way(optimized=True),
    'onnxruntime': Way('onnx'),
    'onnxruntime_int8': Way('onnx', int8=True),
    'openvino': Way('onnx', openvino=True),
    'openvino_int8': Way('onnx', int8=True, openvino=True),
    'aot_inductor': Way('aot_inductor'),
    'torch_export': Way('torch_export'),
    'torchscript': Way('torchscript'),
}
#: Ways timed by default: without the files that PyTorch interprets.
USUAL = list(WAYS)[:-2]
SUFFIXES = {'onnx': '.onnx', 'aot_inductor': '_aot.pt2', 'torch_export': '.pt2', 'torchscript': '.pt'}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='CONFIG[@HxW]',
        help='config files of classifiers, segmentors or detectors, optionally with the image size (default: 224x224)',
    )
    parser.add_argument('--ways', nargs='+', default=USUAL, choices=list(WAYS))
    parser.add_argument('--files', type=Path, required=True, help='folder for the exported files')
    parser.add_argument(
        '--rounds', type=int, default=10, help='number of timing rounds; all runtimes are timed in turn (default: 10)'
    )
    parser.add_argument('--warmup', type=int, default=2, help='number of untimed rounds before them (default: 2)')
    parser.add_argument('--threads', type=int, default=1, help='number of threads of each runtime (default: 1)')
    parser.add_argument('--out', type=Path, help='JSON file for the results')
    return parser.parse_args(argv)


def write_files(part: Part, name: str, ways: Sequence[str], folder: Path) -> Dict[str, Path]:
    """Write the files of a model that are not there yet, and return the path of each way's."""
    paths = {}
    for way in ways:
        kind, int8 = WAYS[way].kind, WAYS[way].int8
        if not kind:
            continue
        path = folder / f'{name}{SUFFIXES[kind]}'
        if not path.exists():
            print(f'writing {path}', flush=True)
            write_export(part, str(path), kind)
        if int8:
            path, whole = path.with_name(f'{name}_int8.onnx'), path
            if not path.exists():
                quantize(str(whole), str(path), (random_images((1, 3, 224 + 32 * i, 224)) for i in range(4)))
        paths[way] = path
    return paths


def in_pytorch(part: Part) -> Runnable:
    """Return a function that runs a part without recording gradients."""

    @torch.no_grad()
    def run(images: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        return as_tuple(part(images))

    return run


def prepare(config: str, ways: Sequence[str], folder: Path) -> Tuple[str, Dict[str, Runnable], Part]:
    """Build a config's model and load it in every way."""
    cfg = load_config(path_of(config))
    part = take_part(build(cfg), task_of(cfg)).eval().requires_grad_(False)
    name = Path(config).stem
    paths = write_files(part, name, ways, folder)
    calls: Dict[str, Runnable] = {}
    for way in ways:
        kind, _, openvino, optimized = WAYS[way]
        if openvino:
            calls[way] = load_openvino(str(paths[way]))
        elif kind:
            calls[way] = load_exported(str(paths[way]), kind)
        else:
            calls[way] = in_pytorch(fcvit_mm.optimize_for_inference(part) if optimized else part)
    return name, calls, part


def table(name: str, size: Tuple[int, int], times: Dict[str, List[float]], found: Optional[int]) -> str:
    """Return a model's table, in Markdown."""
    first = next(iter(times))
    title = f'{name}, 1 x {size[0]}x{size[1]}' + ('' if found is None else f', {found} detections')
    lines = [f'| {title} | ms (quartiles) | times as fast as {first}, within the rounds |', '|---' * 3 + '|']
    for way, values in times.items():
        middle, low, high = (1e3 * value for value in spread(values))
        lines.append(
            f'| {way} | {middle:.1f} ({low:.1f} to {high:.1f}) | {ratio(values, times[first]).rounds.median:.2f} |'
        )
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    for name, least in (('rounds', 1), ('warmup', 0), ('threads', 1)):
        if getattr(args, name) < least:
            raise UserError(f'--{name} is {getattr(args, name)}, expected at least {least}')
    check_writable_folder(args.files)
    if args.out:
        check_writable(args.out)
    for way in args.ways:
        if WAYS[way].kind:
            check_format(f'a{SUFFIXES[WAYS[way].kind]}', WAYS[way].kind)
        if WAYS[way].openvino:
            check_openvino('onnx')
    torch.set_num_threads(args.threads)
    sizes = {config: parse_size(size or '224') for config, _, size in (text.partition('@') for text in args.models)}
    args.files.mkdir(parents=True, exist_ok=True)
    prepared = [(prepare(config, args.ways, args.files), size) for config, size in sizes.items()]
    results: Dict[str, Any] = {}
    for (name, runs, part), size in prepared:
        images = part.inputs(1, 3, *size)
        found = len(next(iter(runs.values()))(images)[0]) if part.output == 'detections' else None
        calls: Dict[str, Callable[[], Any]] = {way: partial(run, images) for way, run in runs.items()}
        times = interleave(calls, args.rounds, args.warmup, torch.device('cpu'))
        results[name] = dict(size=size, detections=found, seconds=times)
        print(f'\n{table(name, size, times, found)}', flush=True)
    if args.out:
        run = describe_run(torch.device('cpu'))
        write_atomic(args.out, json.dumps(dict(run, results=results), indent=1).encode())


if __name__ == '__main__':
    run_command(main)
