"""Exporting a part of a model to a file, which is compared with PyTorch before it is renamed."""

import copy
import importlib.util
import json
import re
import warnings
from importlib.metadata import version
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..dependencies import how_to_install
from ..errors import LibraryError, UserError, library_errors
from ..files import atomic_path
from ..inference import optimize_for_inference
from ..options import EXPORT_FORMATS as FORMATS
from .any_size import replace_fixed_sizes_
from .comparison import Difference, check_detections, compare
from .errors import ExportError, causes, naming_operators
from .parts import Part
from .runtimes import as_tuple, load_exported

#: ONNX opset that PyTorch's exporter writes without conversion. ONNX Runtime reads it since 1.14 (February 2023).
OPSET = 18
#: First version of torch whose ONNX exporter is based on torch.export by default.
MIN_TORCH = (2, 9)
#: Batch, height and width of the recorded example; large enough that no map inside the networks has a side of 1.
EXAMPLE = (2, 128, 192)
#: Batch, height and width of images that the file is checked on: odd, and smaller than the largest stride.
CHECKED = ((1, 97, 131), (3, 63, 190), (2, 224, 160), (1, 27, 40))
#: Bytes that an ONNX file holds at most: the limit of protocol buffers.
LARGEST_ONNX = 2**31 - 1
#: Names of convolution operators in the graphs of torch.export.
CONVOLUTIONS = ('conv1d', 'conv2d', 'conv_transpose2d', 'convolution')


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
    found = tuple(int(number) for number in re.findall(r'\d+', torch.__version__)[:2])
    if kind != 'torchscript' and found < MIN_TORCH:
        raise UserError(
            f'--format {kind} needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {torch.__version__}: use '
            '--format torchscript'
        )


def runnable_shapes(part: Part, channels: int = 3, divisor: int = 1) -> List[Tuple[int, int, int]]:
    """Return the shapes to compare a file on, before the longer steps: :data:`CHECKED`.

    If the part does not run on these, they are padded to multiples of ``divisor``, as its images are.

    Args:
        part (nn.Module): The part to export, in evaluation mode.
        channels (int): Number of channels of the images.
        divisor (int): ``pad_size_divisor`` of the data preprocessor; 1 if the part pads images itself.

    Raises:
        UserError: It runs on neither.
    """
    for multiple in dict.fromkeys((1, divisor)):
        shapes = [
            (batch, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
            for batch, height, width in CHECKED
        ]
        try:
            for batch, height, width in (EXAMPLE, *shapes):
                images = part.inputs(batch, channels, height, width)
                errors = library_errors(
                    f'running the model on {len(images)} images of {height}x{width} (height, width)',
                    'The file must take images of any size, but this model does not. If it takes multiples of 32, '
                    'as RTMDet does, let its data preprocessor pad images: pad_size_divisor=32, by --cfg-options',
                )
                with torch.no_grad(), errors:
                    part.expected(images)
            break
        except LibraryError:
            if multiple == divisor:
                raise
    return shapes


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
        images (iterable[Tensor]): Further inputs of the part to compare on.

    Returns:
        list[Difference]: One for each of ``shapes`` and ``images``.

    Raises:
        ExportError: It cannot be exported, or the outputs of file and part differ. No file is left.
        WriteError: The disk is full, ...
    """
    check_format(path, kind)
    weights = sum(value.numel() * value.element_size() for value in (*part.parameters(), *part.buffers()))
    if kind == 'onnx' and weights > LARGEST_ONNX:
        raise ExportError(
            f'the weights take {weights / 2**30:.1f} GiB, but an ONNX file holds at most 2 GiB: use --format '
            'torch_export, or export a part (--part backbone)'
        )
    part = part.eval()
    recorded: Any = replace_fixed_sizes_(copy.deepcopy(part)).requires_grad_(False)
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


def _program(part: Part, example: Tensor) -> 'torch.export.ExportedProgram':
    from torch.fx.experimental import _config

    sizes = dict.fromkeys(part.axes, torch.export.Dim.DYNAMIC)
    # As in torch.onnx.export: contiguous, and without the assumption that dimensions above 1 in the example are never
    # 1.
    with torch.no_grad(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            part.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (example,),
            dynamic_shapes=(sizes,),
            strict=False,
        )


def _record_onnx(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    import onnx

    recorded = _program(part, example)
    try:
        program = torch.onnx.export(
            recorded,
            dynamo=True,
            input_names=['images'],
            output_names=names,
            opset_version=OPSET,
            dynamic_shapes=(part.axes,),
            verbose=False,
        )
    except Exception as error:
        # Broad, because the exporter wraps errors. Each version of torch needs a recent enough onnxscript.
        if any(re.search(r"(module|named) '(onnxscript|onnx_ir)\b", str(cause)) for cause in causes(error)):
            raise ExportError(
                f'onnxscript {version("onnxscript")} is too old for torch {torch.__version__} ({causes(error)[0]}): '
                'pip install --upgrade onnxscript onnx_ir'
            ) from error
        raise
    assert program is not None  # of dynamo=True
    model = program.model_proto
    remove_debug_notes(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def remove_debug_notes(message: Any) -> None:
    """Remove the exporter's notes for debugging, which contain paths of this machine, from an ONNX message."""
    for name in ('metadata_props', 'doc_string'):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) or hasattr(value, 'add') else [value]:
                remove_debug_notes(child)


def _record_torch_export(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    program = _program(part, example)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # contains paths of this machine, see remove_debug_notes
    torch.export.save(program, path, extra_files={'metadata.json': json.dumps(metadata)})


def _takes_regions(program: 'torch.export.ExportedProgram', *layers: str) -> bool:
    """Return whether the batch size of an operator of these names, such as ``'conv2d'``, depends on the image."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return any(
        free_unbacked_symbols(node.args[0].meta['val'].shape)
        for node in program.graph.nodes
        if node.op == 'call_function' and str(node.target).split('.')[:2] in [['aten', layer] for layer in layers]
    )


def _record_aot_inductor(part: Part, example: Tensor, names: List[str], path: str, metadata: Dict[str, str]) -> None:
    from torch._inductor import aoti_compile_and_package, exc

    program = _program(part, example)
    options: Dict[str, Any] = {'aot_inductor.metadata': metadata}
    if part.output == 'detections':
        # torch 2.11 fails at checks of numbers of regions whose bounds exceed 64 bits. If it reorders operations to
        # save memory, the length of a slice may precede the size it depends on.
        options.update(scalar_asserts=False, reorder_for_peak_memory=False)
    if _takes_regions(program, *CONVOLUTIONS):
        # torch 2.11 computes two such convolutions in a row wrongly in channels_last.
        options.update(layout_optimization=False)

    def compile_program(freezing: bool) -> None:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=path, inductor_configs={**options, 'freezing': freezing})

    # With freezing, weights are packed; torch 2.11 cannot do that for a number of regions.
    freezing = not _takes_regions(program, *CONVOLUTIONS, 'linear')
    try:
        try:
            compile_program(freezing)
        except RuntimeError as error:
            # Freezing in torch 2.14 may delete a constant that the graph still reads (RetinaNet).
            if not freezing or 'nonexistent attribute' not in str(error):
                raise
            compile_program(freezing=False)
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
        # Tracing warns that checks of shapes may give other results for other images. `compare` tests other images.
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(part, example, check_trace=False)
        torch.jit.save(traced, path, _extra_files={'metadata.json': json.dumps(metadata)})


RECORDERS = {
    'onnx': _record_onnx,
    'torch_export': _record_torch_export,
    'aot_inductor': _record_aot_inductor,
    'torchscript': _record_torchscript,
}
