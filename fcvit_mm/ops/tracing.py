"""Detection of tracers: torch.jit.trace, exporters, torch.compile and torch.func."""

from functools import wraps
from typing import Any, Callable, TypeVar, cast

import torch
from torch import library
from torch.autograd import forward_ad
from torch.fx import Proxy

F = TypeVar('F', bound=Callable[..., Any])

# torch.compiler has it since 2.3.
_is_compiling: Callable[[], bool] = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling
# Not in torch.jit.trace, nor in the exporters that do not use Dynamo.
_is_dynamo: Callable[[], bool] = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)
# Both since torch 2.4.
_DYNAMO_READS_DICT = hasattr(library, 'custom_op')


def assume_constant(function: F) -> F:
    """Let a compiler call the decorated function while it records, and take the result as a constant.

    As ``torch.compiler.assume_constant_result`` does, which would import Dynamo here.
    """

    @wraps(function)
    def fcvit_mm_constant(*args: Any) -> Any:
        return function(*args)

    # Dynamo stores the result as a global of the compiled code, under the name of this function. Before torch 2.6 it
    # overwrites a global that has this name; no other function is called so.
    fcvit_mm_constant.__dict__['_dynamo_marked_constant'] = True
    return cast(F, fcvit_mm_constant)


@assume_constant
def is_exporting() -> bool:
    """Return whether torch.export is recording.

    Since torch 2.7 there is ``torch.compiler.is_exporting``, but within ``torch.compile`` Dynamo replaces its call by
    ``True``. Therefore this reads the flag behind it, during recording. Before torch 2.7 the result is ``False``.
    """
    return getattr(torch.compiler, '_is_exporting_flag', False)


def is_traced() -> bool:
    """Return whether a compiler or an exporter is recording: it can record standard and registered operations only."""
    return torch.jit.is_tracing() or _is_compiling()


def hides_attributes() -> bool:
    """Return whether a compiler is recording that cannot read a module's ``__dict__``: Dynamo before torch 2.4."""
    return not _DYNAMO_READS_DICT and _is_compiling()


def is_transformed() -> bool:
    """Return whether a torch.func transform (``vmap``, ``grad``, ``jvp``) or forward-mode AD is active.

    They support standard operations only, and no queries of memory layouts. (Compilers handle them by themselves.)
    """
    return not is_traced() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def records_any_size() -> bool:
    """Return whether the recorded graph must work for any image size.

    Steps that depend on the size must then be arithmetic on the sizes: of a branch in Python, only the path of the
    example would be recorded. (``torch.compile`` detects other sizes and compiles again.)
    """
    return torch.jit.is_tracing() or is_exporting()


def records_variable(size: Any) -> bool:
    """Return whether a size, such as the number of images, is a variable of the recorded graph.

    Args:
        size (int | torch.SymInt | Tensor): Size, as in the shape of a tensor.
    """
    return records_any_size() and not isinstance(size, int)


def records_file() -> bool:
    """Return whether the recorded graph is for a file, which must not need this package's compiled operators."""
    # Under a strict torch.export Dynamo records for a file, too.
    return is_traced() and (torch.jit.is_tracing() or not _is_dynamo() or is_exporting())


def call(module: torch.nn.Module, x: Any) -> Any:
    """Call ``module(x)``, as one node of a ``torch.fx`` graph, because its steps depend on the input's size."""
    if isinstance(x, Proxy):
        tracer: Any = x.tracer

        def record(x: Any) -> Any:
            return tracer.create_proxy('call_module', tracer.path_of_module(module), (x,), {})

        return tracer.call_module(module, record, (x,), {})  # subclasses of Tracer name the node by the module's path
    return module(x)
