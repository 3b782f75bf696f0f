"""A simulated GPU: tensors with device ``cuda:0`` that are computed on the CPU, but cannot be mixed with CPU tensors.

As on a GPU, an operation on tensors of both devices is an error, for example with an index or constants made without
``device=``, and so is the conversion to NumPy without a copy to the CPU. CUDA kernels, streams, memory and automatic
mixed precision are not simulated. Operations use their reference implementations.
"""

import functools
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Sequence
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device('cuda', 0)
#: Operations that accept tensors of both devices. For the indexed ones, only the indices may be on the CPU.
MIXED = ('copy_', '_to_copy')
INDEXED = ('index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index')
#: Functions of PyTorch that create tensors, on the CPU if ``device=`` is not given.
FACTORIES = {
    *('arange', 'as_tensor', 'empty', 'eye', 'from_numpy', 'full', 'linspace', 'logspace', 'normal', 'ones', 'rand'),
    *('randint', 'randn', 'randperm', 'scalar_tensor', 'tensor', 'tril_indices', 'triu_indices', 'zeros'),
}
#: Functions that would query the missing GPU.
ASKED = dict(
    get_device_capability=lambda *device: (6, 0),  # too old for Triton
    is_available=lambda: True,
    is_current_stream_capturing=lambda: False,
    _lazy_init=lambda: None,
)


class GpuTensor(Tensor):
    """A tensor on the simulated GPU; ``held`` is the tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> 'GpuTensor':
        """Wrap a tensor on the CPU without a copy."""
        self = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        self.held = held
        return self

    # Only Python code sees this device: for PyTorch's C++ code, which would call the driver, it is the CPU.
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def get_device(self) -> int:
        """Return the index of the device."""
        return 0

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f'GpuTensor({self.held})'

    def __deepcopy__(self, memo: Dict[int, Any]) -> Tensor:
        copied: Tensor = GpuTensor(self.held.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied)
        copied.requires_grad_(self.requires_grad)
        return memo.setdefault(id(self), copied)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation."""
        return _compute(func, args, kwargs or {}, [])


def _leaves(x: Any) -> List[Any]:
    leaves: List[Any] = tree_flatten(x)[0]
    return leaves


def _is_gpu(device: Any) -> bool:
    if isinstance(device, bool):
        return False
    return isinstance(device, int) or (isinstance(device, (str, torch.device)) and torch.device(device).type == 'cuda')


def _refuse_mixed(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
    name = func.overloadpacket.__name__
    if name in MIXED:
        return
    tensors = [x for x in _leaves((args[::2] if name in INDEXED else args, kwargs)) if isinstance(x, Tensor)]
    others = [x for x in tensors if not isinstance(x, GpuTensor) and x.dim() and not hasattr(x, 'of_pytorch')]
    if others and len(others) < len(tensors) and any(isinstance(x, GpuTensor) for x in tensors):
        shapes = [tuple(x.shape) for x in others]
        raise RuntimeError(f'Expected all tensors to be on the same device, cuda:0, but found {shapes} on cpu: {func}')


def _compute(func: Any, args: Any, kwargs: Dict[str, Any], called: List[str]) -> Any:
    """Compute an operation; ``called`` are the names of the calling Python functions."""
    _refuse_mixed(func, args, kwargs)
    tensors = [x for x in _leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = {id(x.held): x for x in tensors if isinstance(x, GpuTensor)}
    is_copy = func.overloadpacket.__name__ == 'copy_'
    stays = isinstance(args[0], GpuTensor) if is_copy else bool(on_gpu)
    outputs = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if stays:
        return tree_map(
            lambda x: (on_gpu[id(x)] if id(x) in on_gpu else GpuTensor(x)) if isinstance(x, Tensor) else x, outputs
        )
    # Tensors that C++ code creates for a tensor on the GPU would be on the GPU; here they are on the CPU.
    if all(hasattr(x, 'of_pytorch') for x in tensors) and not (called and called[-1] in FACTORIES):
        for output in _leaves(outputs):
            if isinstance(output, Tensor):
                output.of_pytorch = True  # type: ignore[attr-defined]
    return outputs


def _held(x: Any) -> Any:
    return x.held if isinstance(x, GpuTensor) else x


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return GpuTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.held


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        return x.detach().held.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return GpuTensor(grad)


def _to(x: Tensor, gpu: bool) -> Tensor:
    """Copy a tensor to the GPU or to the CPU, unless it is already there."""
    if isinstance(x, GpuTensor) == gpu:
        return x
    copied: Tensor = (_ToGpu if gpu else _ToCpu).apply(x)
    return copied


class _Dispatch(TorchDispatchMode):
    def __init__(self, called: List[str]) -> None:
        super().__init__()
        self.called = called

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self.called)


class _Functions(TorchFunctionMode):
    """Python functions with a device argument, and functions that read the values of a tensor."""

    def __init__(self, called: List[str]) -> None:
        super().__init__()
        self.called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, '__name__', '')
        self.called.append(name)
        try:
            special = getattr(self, f'_{name.strip("_")}', None) if args and isinstance(args[0], Tensor) else None
            if special:
                return special(func, *args, **(kwargs or {}))
            return self._call(func, name, list(args), dict(kwargs or {}))
        finally:
            self.called.pop()

    def _call(self, func: Callable[..., Any], name: str, args: List[Any], kwargs: Dict[str, Any]) -> Any:
        device = kwargs.get('device')
        if name in ('tensor', 'new_tensor'):  # may be given lists that contain tensors
            args[-1:] = tree_map(_held, args[-1:])
        if name.startswith('new_'):  # on the device of the tensor, unless another is named
            device = args[0].device if device is None else device
            func = getattr(torch.empty(0, dtype=args.pop(0).dtype), name)
        if device is None or not _is_gpu(device):
            return func(*args, **kwargs)
        needs_grad = kwargs.pop('requires_grad', False)
        made = _to(func(*args, **{**kwargs, 'device': 'cpu'}), True)
        return made.requires_grad_() if needs_grad else made

    @staticmethod
    def _to(func: Any, x: Tensor, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> Tensor:
        for arg in args:
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, torch.dtype):
                dtype = arg
            elif isinstance(arg, (str, torch.device)) or (isinstance(arg, int) and not isinstance(arg, bool)):
                device = arg
        moved = x if device is None else _to(x, _is_gpu(device))
        layout = kwargs.get('memory_format', torch.preserve_format)
        return func(moved, dtype or moved.dtype, memory_format=layout)  # type: ignore[no-any-return]

    @staticmethod
    def _type_as(func: Any, x: Tensor, other: Tensor) -> Tensor:
        moved: Tensor = func(_to(x, isinstance(other, GpuTensor)), other)
        return moved

    @staticmethod
    def _cuda(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _to(x, True)

    @staticmethod
    def _cpu(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _to(x, False)

    @staticmethod
    def _numpy(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, GpuTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return func(x, *args, **kwargs)

    _array = _numpy

    @staticmethod
    def _tolist(func: Any, x: Tensor) -> Any:
        return func(_held(x))


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Simulate a GPU, and yield its device."""
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    called: List[str] = []
    with ExitStack() as stack:
        # Module.to must create new parameters, because a tensor cannot change its class.
        future.set_overwrite_module_params_on_conversion(True)
        stack.callback(functools.partial(future.set_overwrite_module_params_on_conversion, before))
        for name, answer in ASKED.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        functions = stack.enter_context(_Functions(called))
        stack.enter_context(_Dispatch(called))
        backward = BackwardCFunction.apply

        def backward_with_functions(
            *args: Any,
        ) -> Any:  # the mode is inactive inside its own functions, such as autograd.grad
            with functions:
                return backward(*args)

        stack.enter_context(mock.patch.object(BackwardCFunction, 'apply', backward_with_functions))
        yield GPU
