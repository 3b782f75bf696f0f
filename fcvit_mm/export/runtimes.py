"""Loading exported files in the runtimes that execute them."""

import importlib.util
from typing import Any, Callable, Tuple

import torch
from torch import Tensor

from ..errors import UserError

#: Function that runs a graph: from images ``(B, C, H, W)`` to a tuple of outputs.
Runnable = Callable[[Tensor], Tuple[Tensor, ...]]


def as_tuple(outputs: Any) -> Tuple[Tensor, ...]:
    """Return one output, or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def load_exported(path: str, kind: str) -> Runnable:
    """Return a function that runs a file on the CPU, with PyTorch's number of threads."""
    if kind == 'onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda images: tuple(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))
    module: Any
    if kind == 'torch_export':
        # Without the guards that the exporter derived from the example's layout: a single image fails some of them.
        module = torch.export.load(path).module(check_guards=False)
    elif kind == 'aot_inductor':
        from torch._inductor import aoti_load_package

        module = aoti_load_package(path)
    else:
        module = torch.jit.load(path)

    @torch.no_grad()
    def run(images: Tensor) -> Tuple[Tensor, ...]:
        # Contiguous, because AOTInductor's code assumes the strides of the example and does not check them.
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
    """Return a function that runs an ONNX file in OpenVINO on the CPU, with PyTorch's number of threads.

    It computes in float32, and in 8 bits where the file is quantized.
    """
    import openvino

    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads())
    # read_model first: compile_model(path) would keep the file mapped into memory.
    model = openvino.Core().compile_model(openvino.Core().read_model(path), 'CPU', settings)
    # A copy, because the next call writes to the same memory.
    return lambda images: tuple(torch.from_numpy(value.copy()) for value in model([images.numpy()]).to_tuple())
