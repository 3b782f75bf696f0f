"""CUDA graphs: a forward pass captured once and replayed, without Python's launch overhead."""

import threading
from collections import OrderedDict
from typing import Any, Callable, Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from ..ops.dispatch import current_mode
from ..ops.tracing import is_traced, is_transformed

Forward = Callable[[Tensor], Tuple[Tensor, ...]]


class Recorded(NamedTuple):
    """A graph, its input tensor and its output tensors."""

    graph: Any
    source: Tensor
    outputs: Tuple[Tensor, ...]


class CudaGraphs:
    """CUDA graphs of a function of a batch of images, one for each kind of batch.

    A kind is a shape, dtype, memory layout and device, with the autocast dtype, the mode of the operations and
    inference mode. The first batch of a kind is computed eagerly, the second is captured, further ones replay the
    graph, so image sizes that occur only once are never captured. Weights are read in place, so weights loaded later
    are used; a model that is moved or converted is captured again. (Replacing a weight by another tensor is not
    noticed.)

    Args:
        limit (int): Maximum number of graphs; the least recently used one is dropped. Each graph holds the memory of
            its outputs and of one batch; all share the memory of one forward pass.
    """

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self._recorded: 'OrderedDict[Any, Recorded]' = OrderedDict()
        self._seen: 'OrderedDict[Any, None]' = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> Dict[str, Any]:
        """Return the state for copying and pickling: without graphs, which contain addresses of this process."""
        return dict(limit=self.limit)

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def apply_to(self, x: Any) -> bool:
        """Return whether a batch may be replayed: on a GPU, without gradients, tracing or observers."""
        return (
            type(x) is Tensor
            and x.is_cuda
            and not torch.is_grad_enabled()
            and not is_traced()
            and not is_transformed()
            and torch._C._len_torch_dispatch_stack() == 0
            and not torch.cuda.is_current_stream_capturing()
        )

    def __call__(self, function: Forward, x: Tensor, weight: Tensor) -> Tuple[Tensor, ...]:
        """Return ``function(x)``, with outputs of their own memory.

        Args:
            function (Callable): Function of the images.
            x (Tensor): The images.
            weight (Tensor): One of the weights, by which a moved model is detected.
        """
        autocast = torch.get_autocast_dtype('cuda') if torch.is_autocast_enabled('cuda') else None
        # Tensors made in inference mode cannot be written outside of it.
        mode = (autocast, current_mode(), torch.is_inference_mode_enabled())
        key = (x.shape, x.stride(), x.dtype, x.device, mode, weight.data_ptr())
        with self._lock:
            recorded = self._recorded.get(key)
            if recorded is None:
                if key not in self._seen:
                    self._seen[key] = None
                    while len(self._seen) > 16 * self.limit:
                        self._seen.popitem(last=False)
                    return function(x)
                recorded = self._recorded[key] = self._record(function, x)
                while len(self._recorded) > self.limit:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(key)
            recorded.source.copy_(x)
            recorded.graph.replay()
            return tuple(output.clone() for output in recorded.outputs)

    def _record(self, function: Forward, x: Tensor) -> Recorded:
        with torch.cuda.device(x.device):
            source, stream = x.clone(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # the set-up work of a first call cannot be captured
                function(source)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = function(source)
        return Recorded(graph, source, outputs)
