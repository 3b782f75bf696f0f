"""Exporting a part of a model to a file, which is compared with PyTorch before it is renamed."""

import copy
import importlib.util
import json
import os
import os.path as osp
import re
import time
import traceback
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ..dependencies import how_to_install
from ..errors import UserError
from ..files import atomic_path, is_write_failure
from ..inference import optimize_for_inference
from ..options import EXPORT_FORMATS as FORMATS
from .any_size import free_of_sizes_
from .matching import UNMATCHED, Matches, match
from .parts import Part

#: Runs a graph: from images ``(B, C, H, W)`` to a tuple of outputs.
Runnable = Callable[[Tensor], Tuple[Tensor, ...]]


class ExportError(UserError):
    """A format does not support a model or one of its operators."""


#: What PyTorch's exporter writes without converting, and ONNX Runtime reads since 1.14 (February 2023).
OPSET = 18
#: First torch whose ONNX exporter is by default the one that starts from torch.export.
MIN_TORCH = (2, 9)
#: Largest difference from PyTorch, in parts of the largest output.
TOLERANCE = 1e-4
#: Images of the example that is recorded: batch, height and width. Every side inside the networks is larger than 1.
EXAMPLE = (2, 128, 192)
#: Images that the file is then run on: odd sizes, other batches, fewer pixels than the largest stride.
CHECKED = ((1, 97, 131), (3, 63, 190), (2, 224, 160), (1, 27, 40))
#: Where messages of exporters and runtimes name an operator.
OPERATORS = (
    r"op='([\w.:]+)'",
    r"Python function call '(\w+)'",
    r'running (\w+) node',
    r'\b((?:aten|prims|torchvision|mmcv|fcvit_mm)(?:::|\.)\w+)',
)


class Difference(NamedTuple):
    """Largest difference between a file and PyTorch on some images.

    Attributes:
        shape (tuple[int, int, int]): Batch, height and width of the images.
        largest (float): The difference; of detections, that of their scores.
        of (float): The largest value of that output.
        detections (int, optional): Number of detections of the library, if detections are compared.
        matched (int, optional): Number of these that the file finds.
        found (int, optional): Number of detections of the file.
        real (bool): Whether the images were given instead of random.
    """

    shape: Tuple[int, int, int]
    largest: float
    of: float
    detections: Optional[int] = None
    matched: Optional[int] = None
    found: Optional[int] = None
    real: bool = False


def check_format(path: str, kind: str) -> None:
    """Check that a file of this name and format can be written, before anything is loaded.

    Raises:
        UserError: An unknown kind, another suffix, a missing package, too old a torch.
    """
    if kind not in FORMATS:
        raise UserError(f'format is {kind!r}, expected one of {", ".join(FORMATS)}')
    suffix, _, packages = FORMATS[kind]
    if not path.endswith(suffix):
        raise UserError(f'--out is {path}, expected a file name ending in {suffix} for --format {kind}')
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f'{package} is not installed: {how_to_install("export")} (--format torchscript needs nothing '
                'besides torch)'
            )
    version = tuple(int(number) for number in re.findall(r'\d+', torch.__version__)[:2])
    if kind != 'torchscript' and version < MIN_TORCH:
        raise UserError(
            f'--format {kind} needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {torch.__version__}: use '
            '--format torchscript'
        )


def write_export(
    part: Part,
    path: str,
    kind: str,
    optimize: bool = False,
    metadata: Optional[Dict[str, str]] = None,
    shapes: Sequence[Tuple[int, int, int]] = CHECKED,
    channels: int = 3,
    images: Iterable[Tensor] = (),
) -> List[Difference]:
    """Export a part of a model; keep the file if its outputs match.

    Args:
        part (nn.Module): Result of :func:`~fcvit_mm.export.selection.take_part`, on the CPU. It is not changed.
        path (str): The file; an existing one is replaced at the end.
        kind (str): A key of :data:`FORMATS`.
        optimize (bool): Export it after :func:`fcvit_mm.optimize_for_inference`.
        metadata (dict[str, str], optional): Metadata of the file.
        shapes (Sequence[tuple]): Batch, height and width of random images to compare on.
        channels (int): Number of channels of the images.
        images (iterable[Tensor]): Others to compare on, as the part takes them.

    Returns:
        list[Difference]: One for each of ``shapes`` and ``images``.

    Raises:
        ExportError: It cannot be exported, or the outputs of file and part differ. No file is left.
        WriteError: The disk is full, ...
    """
    check_format(path, kind)
    part = part.eval()
    recorded: Any = free_of_sizes_(copy.deepcopy(part)).requires_grad_(False)
    recorded.record_for(kind)
    if optimize:
        try:
            recorded = optimize_for_inference(recorded)
        except ValueError as error:
            raise ExportError(f'--optimize: {error}. Omit --optimize') from error
    example = recorded.inputs(EXAMPLE[0], channels, *EXAMPLE[1:])
    with torch.no_grad():
        names = list(part.names(len(as_tuple(recorded(example)))))
    with atomic_path(path, suffix=FORMATS[kind].suffix) as unchecked:
        with naming_operators(f'{kind} cannot record the model'):
            RECORDERS[kind](recorded, example, names, unchecked, metadata or {})
        run = load_exported(unchecked, kind)
        differences = []
        for shape in shapes:
            example = part.inputs(shape[0], channels, *shape[1:])
            differences.append(compare(part, run, kind, example))
        real = [compare(part, run, kind, given, real=True) for given in images]
        if real and part.output == 'detections':
            check_detections(kind, real)
        return differences + real


def as_tuple(outputs: Any) -> Tuple[Tensor, ...]:
    """Return one output, or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@contextmanager
def naming_operators(what: str) -> Iterator[None]:
    """Convert errors of exporters and runtimes to one message: the operator, its call, the solution."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_write_failure(error):
            raise
        # Broad, because there is no class that all of their errors have in common.
        operator, cause = operator_of(error)
        place = place_of(error)
        line = next((line.strip() for line in str(cause).splitlines() if line.strip()), '')
        raise ExportError(
            f'{what}: '
            + (f'the operator {operator} cannot be exported' if operator else 'the error names no operator')
            + (f', called in {place}' if place else '')
            + f' ({type(cause).__name__}: {line[:300]}). Replace this layer by standard operations, export the part '
            'before it (--part backbone), or try another --format'
        ) from error


def causes(error: BaseException) -> List[BaseException]:
    """Return an error and the errors that caused it, the earliest first."""
    found: List[BaseException] = []
    current: Optional[BaseException] = error
    while current is not None and current not in found:
        found.insert(0, current)
        current = current.__cause__ or current.__context__
    return found


def operator_of(error: BaseException) -> Tuple[Optional[str], BaseException]:
    """Return the operator that an error or a cause of it names, if any does, and that error."""
    for pattern in OPERATORS:
        for cause in causes(error):
            found = re.search(pattern, str(cause))
            if found:
                return found[1], cause
    return None, error


def place_of(error: BaseException) -> Optional[str]:
    """Return the innermost line of a model's own code that an error came through: not PyTorch's, not this file's."""
    inside = osp.dirname(torch.__file__)
    for cause in causes(error):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if not frame.filename.startswith(inside) and frame.filename != __file__ and frame.name == 'forward':
                return f'{"/".join(frame.filename.split(os.sep)[-3:])}, line {frame.lineno}'
    return None


def _program(part: Part, example: Tensor) -> 'torch.export.ExportedProgram':
    from torch.fx.experimental import _config

    sizes = dict.fromkeys(part.axes, torch.export.Dim.DYNAMIC)
    # Contiguous, and no assumption that what is not 1 in the example never is: torch.onnx.export sets the same.
    with torch.no_grad(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            part.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (example,),
            dynamic_shapes=(sizes,),
            strict=False,
        )


def _record_onnx(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    import onnx

    program = torch.onnx.export(
        _program(part, example),
        dynamo=True,
        input_names=['images'],
        output_names=names,
        opset_version=OPSET,
        dynamic_shapes=(part.axes,),
        verbose=False,
    )
    assert program is not None  # of dynamo=True
    model = program.model_proto
    forget_origins(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def forget_origins(message: Any) -> None:
    """Remove the exporter's notes for debugging, which have the paths of this machine's files, from an ONNX message."""
    for name in ('metadata_props', 'doc_string'):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) or hasattr(value, 'add') else [value]:
                forget_origins(child)


def _record_torch_export(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    program = _program(part, example)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # as forget_origins
    torch.export.save(program, path, extra_files={'metadata.json': json.dumps(metadata)})


def _record_aot_inductor(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    from torch._inductor import aoti_compile_and_package, exc

    program = _program(part, example)
    options: Dict[str, Any] = {'aot_inductor.metadata': metadata}
    if part.output == 'detections':
        # Of a number of regions that only the image tells, torch 2.11 computes two convolutions in a row wrongly in
        # channels_last, cannot choose packed weights (freezing), and stops at checks whose bounds exceed 64 bits. Where
        # it reorders operations to need less memory, the length of a slice may come before the size it depends on.
        options.update(layout_optimization=False, scalar_asserts=False, reorder_for_peak_memory=False)
    else:
        options.update(freezing=True)
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=path, inductor_configs=options)
    except exc.InvalidCxxCompiler as error:
        raise ExportError(
            '--format aot_inductor compiles the model and found no C++ compiler: install g++ or clang++, or set the '
            'environment variable CXX; --format torch_export needs no compiler'
        ) from error
    except (exc.CppCompileError, getattr(exc, 'InductorError', exc.CppCompileError)) as error:  # wrapped: torch 2.7
        raise ExportError(
            f'--format aot_inductor: Inductor of torch {torch.__version__} cannot compile this model '
            f'({str(error).splitlines()[0]}): use --format torch_export or onnx'
        ) from error


def _record_torchscript(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        # About each check of a shape, that it may be another for other images: `compare` checks that.
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(part, example, check_trace=False)
        torch.jit.save(traced, path, _extra_files={'metadata.json': json.dumps(metadata)})


RECORDERS = {
    'onnx': _record_onnx,
    'torch_export': _record_torch_export,
    'aot_inductor': _record_aot_inductor,
    'torchscript': _record_torchscript,
}


def load_exported(path: str, kind: str) -> Runnable:
    """Load a file to run on the CPU with PyTorch's number of threads; maps images to a tuple of outputs."""
    if kind == 'onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda images: tuple(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))
    module: Any
    if kind == 'torch_export':
        # Its guards are what the exporter took from the example's layout, some of them no single image passes.
        module = torch.export.load(path).module(check_guards=False)
    elif kind == 'aot_inductor':
        from torch._inductor import aoti_load_package

        module = aoti_load_package(path)
    else:
        module = torch.jit.load(path)

    @torch.no_grad()
    def run(images: Tensor) -> Tuple[Tensor, ...]:
        # AOTInductor compiles strides in and does not check them: for a crop or channels_last the outputs are wrong.
        return as_tuple(module(images.contiguous() if kind == 'aot_inductor' else images))

    return run


def check_openvino(kind: str) -> None:
    """Check, before anything is loaded, that OpenVINO is installed and runs files of a kind.

    Raises:
        UserError: Another kind than ONNX, or OpenVINO is not installed.
    """
    if kind != 'onnx':
        raise UserError(f'--openvino runs ONNX files, not those of --format {kind}: use --format onnx')
    if importlib.util.find_spec('openvino') is None:
        raise UserError('--openvino needs openvino, which is not installed: pip install openvino')


def load_openvino(path: str) -> Runnable:
    """Load an ONNX file in OpenVINO to run on the CPU in float32 (8-bit parts stay so), with PyTorch's threads."""
    import openvino

    told = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads())
    # Not the file itself, which stays mapped into memory while the model lives.
    model = openvino.Core().compile_model(openvino.Core().read_model(path), 'CPU', told)
    # A copy: the next call writes to the same memory.
    return lambda images: tuple(torch.from_numpy(value.copy()) for value in model([images.numpy()]).to_tuple())


def compare(part: Part, run: Runnable, kind: str, images: Tensor, real: bool = False) -> Difference:
    """Run a file and the part that it is of on images.

    Args:
        part (nn.Module): The exported part.
        run (callable): Result of :func:`load_exported`.
        kind (str): A key of :data:`FORMATS`, for messages.
        images (Tensor): Images as the part expects them.
        real (bool): Whether they are images of the user. Of the detections of an image, one may then have no match:
            its score may equal the threshold but for rounding. :func:`check_detections` counts them over all images.

    Raises:
        ExportError: The file does not run on them, or an output differs by more than :data:`TOLERANCE` of its largest;
            or detections are others than the library's.
    """
    height, width = (images.shape[axis] for axis, name in part.axes.items() if name in ('height', 'width'))
    shape = batch, _, _ = (len(images), height, width)
    with torch.no_grad():
        expected = part.expected(images)
    with naming_operators(f'the {kind} file does not run on {batch} images of {height}x{width}'):
        found = run(images)
    worst = Difference(shape, 0.0, 1.0, real=real)
    if part.output == 'detections':
        matches = match(expected, part.complete(found, images))
        if not matches.agree(spare=int(real)):
            raise ExportError(
                f'the {kind} file finds {matches.found} objects on a {height}x{width} image, of which '
                f'{matches.matched} match the {matches.expected} detections of mmdet. Please report this with the '
                'config'
            )
        of = expected[1].max().item() if matches.expected else 1.0
        return Difference(shape, matches.score, of, matches.expected, matches.matched, matches.found, real)
    for name, want, have in zip(part.names(len(expected)), expected, found):
        if want.shape != have.shape:
            raise ExportError(
                f'for {batch} images of {height}x{width}, {name} of the {kind} file has the shape '
                f'{tuple(have.shape)}, expected {tuple(want.shape)} as in PyTorch: a size was recorded as a constant. '
                'Please report this with the config'
            )
        largest, difference = want.abs().max().item(), (have - want).abs().max().item()
        # NaN is no agreement.
        if not difference <= TOLERANCE * largest:
            raise ExportError(
                f'the {kind} file differs from PyTorch by {difference:.3g} in {name} (largest value {largest:.3g}) on '
                f'{batch} images of {height}x{width}, more than the tolerance of {TOLERANCE:g} of it. Please report '
                'this with the config; another --format may work'
            )
        if difference / max(largest, 1e-30) >= worst.largest / worst.of:
            worst = worst._replace(largest=difference, of=largest)
    return worst


def check_detections(kind: str, differences: Sequence[Difference]) -> None:
    """Check that enough of the detections on all images have a match.

    Raises:
        ExportError: They have not.
    """
    expected, found, matched = (
        sum(getattr(each, name) for each in differences) for name in ('detections', 'found', 'matched')
    )
    matches = Matches(expected, found, matched, 0.0)
    if not matches.agree():
        raise ExportError(
            f'the {kind} file finds {matches.found} objects on {len(differences)} images, of which {matches.matched} '
            f'match the {matches.expected} detections of mmdet, fewer than {1 - UNMATCHED:.0%}. Compare on more images '
            'with --compare, and if that does not help, report this with the config'
        )


def time_in_turn(calls: Dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> Dict[str, float]:
    """Measure the median milliseconds of calls, timed A B C A B C ..., so that other load falls on all of them."""
    times: Dict[str, List[float]] = {name: [] for name in calls}
    for done in range(-warmup, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if done >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}
