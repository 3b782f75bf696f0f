"""Kernels that a pass would launch on a GPU, recorded without one.

The pass runs on tensors without values (the device ``meta``) that claim to be on a GPU, so that the implementations for
GPUs are chosen. Launches of Triton kernels and calls of PyTorch's operators are recorded and not run.
"""

import math
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import fcvit_mm
from fcvit_mm.models.backbone import Backbone
from fcvit_mm.ops.triton import devices, support

LAST = torch.channels_last
_ON_GPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Launch(NamedTuple):
    """A kernel of ours, or an operator of PyTorch.

    Attributes:
        name (str): Name of the operator, or of our kernel with its module: ``group_norm.statistics``.
        shape (tuple[int]): Shape of the first argument of a kernel, or of the first result of an operator.
        bytes (int): Bytes of the tensors that it reads and writes, each counted once.
        multiply_adds (int): Multiply-adds of convolutions and matrix products; 0 for our kernels.
        copies (bool): Whether it returns its input in another layout or dtype.
        kernel (triton.JITFunction, optional): Kernel of ours; ``None`` for an operator of PyTorch.
        grid (tuple[int]): Number of programs per dimension.
        args (tuple): Arguments of the kernel.
        constants (dict): Constants of the kernel.
        num_warps (int): Warps per program.
    """

    name: str
    shape: Tuple[int, ...]
    bytes: int
    multiply_adds: int = 0
    copies: bool = False
    kernel: Any = None
    grid: Tuple[int, ...] = ()
    args: Tuple[Any, ...] = ()
    constants: Dict[str, Any] = {}
    num_warps: int = 0


class Recorder(TorchDispatchMode):
    """Context that records launches and operators in ``launches``."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # since torch 2.2

        self.launches: List[Launch] = []
        self.formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == 'fcvit_mm':
            with self:  # the operator's function as it runs on a GPU
                return func.redispatch(_ON_GPU, *args, **kwargs)
        out = func(*args, **kwargs)
        out = _in_cudnns_layout(func, out, args)
        if func.namespace == 'aten' and not _only_describes(func):
            self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        results = _tensors(out)
        if not results:
            return
        count = self.formulas.get(func.overloadpacket)
        work = count(*args, **kwargs, out_val=out) // 2 if count is not None else 0
        self.launches.append(
            Launch(
                func.overloadpacket.__name__,
                tuple(results[0].shape),
                _bytes([*_tensors((args, kwargs)), *results]),
                work,
                func.overloadpacket in _COPIES,
            )
        )

    def launch(
        self, kernel: Any, grid: Sequence[int], args: Sequence[Any], num_warps: int = 4, **constants: Any
    ) -> None:
        """Record a kernel, in place of :func:`support.launch`."""
        tensors = _tensors(args)
        module = kernel.fn.__module__.rpartition('.')[2]
        self.launches.append(
            Launch(
                f'{module.replace("_kernels", "")}.{kernel.__name__.replace("_kernel", "")}',
                tuple(tensors[0].shape),
                _bytes(tensors),
                kernel=kernel,
                grid=tuple(grid),
                args=tuple(args),
                constants=constants,
                num_warps=num_warps,
            )
        )


_COPIES = {torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy}


def _only_describes(func: Any) -> bool:
    """Return whether an operator returns a view or uninitialized memory, and launches nothing."""
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return is_view or 'empty' in func.__name__ or func.overloadpacket is torch.ops.aten._unsafe_view


def _in_cudnns_layout(func: Any, out: Any, args: Any) -> Any:
    """Return a convolution's outputs as cuDNN lays them out: channels_last if map or weight is."""

    def laid_out(x: Any, *others: Tensor) -> Any:
        is_last = any(each.is_contiguous(memory_format=LAST) and not each.is_contiguous() for each in others)
        return torch.empty_like(x, memory_format=LAST) if isinstance(x, Tensor) and is_last else x

    if func is torch.ops.aten.convolution.default:
        return laid_out(out, *args[:2])
    if func is torch.ops.aten.convolution_backward.default:
        return (laid_out(out[0], *args[1:3]), *out[1:])
    return out


def _tensors(values: Any) -> List[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of tensors in memory: a tensor that occurs twice, and an expanded one, count once."""
    different = {id(each): each for each in tensors}.values()
    return sum(
        each.element_size() * math.prod(size for size, stride in zip(each.shape, each.stride()) if stride or size == 1)
        for each in different
    )


@contextmanager
def on_gpu(recorder: Recorder, processors: int) -> Iterator[None]:
    """Pretend within the context that tensors of the device ``meta`` are on a GPU, and launch nothing.

    Args:
        recorder (Recorder): Recorder that gets each launch.
        processors (int): Streaming multiprocessors of the GPU.
    """
    with ExitStack() as stack:
        for place, name, value in (
            (Tensor, 'is_cuda', property(lambda x: x.is_meta)),
            (Backbone, 'prefers_channels_last', lambda self, device: True),
            (support, 'num_processors', lambda device: processors),
            (support, 'on_device', lambda x: nullcontext()),
            (support, 'launch', recorder.launch),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(mock.patch.dict(devices._usable, {'meta': True}))
        stack.enter_context(fcvit_mm.ops.use_ops('rules'))
        yield


def record(model: Backbone, images: Tensor, processors: int, backward: bool = False) -> List[Launch]:
    """Return the launches of a backbone's pass.

    Args:
        model (Backbone): A backbone on the device ``meta``.
        images (Tensor): ``(B, 3, H, W)``, on the same device, in the dtype to compute in.
        processors (int): Streaming multiprocessors of the GPU.
        backward (bool): Record a forward and backward pass in training; otherwise a pass optimized for inference.
    """
    recorder = Recorder()
    with on_gpu(recorder, processors):
        model = model.to(images.dtype).train(backward)
        if not backward:
            model = fcvit_mm.optimize_for_inference(model)
        with recorder, torch.set_grad_enabled(backward):
            outputs = model(images)
            if backward:
                torch.autograd.backward(outputs, [torch.empty_like(each) for each in outputs])
    return recorder.launches
