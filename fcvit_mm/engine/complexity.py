"""What a model must do for its inputs: multiply-adds, and bytes read and written."""
import math
import warnings
from typing import Dict

import torch
import torch.nn as nn
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..ops import use_ops

#: MMEngine counts these too; here a number is a number of multiply-adds, as papers give it.
NOT_COUNTED = ('batch_norm', 'group_norm', 'layer_norm', 'instance_norm', 'adaptive_avg_pool2d', 'grid_sampler',
               'upsample_nearest2d', 'upsample_bilinear2d')
CONVENTION = ('One multiply-add counts as one: convolutions, linear layers, matrix products, sums of products (the '
              'similarity of FCViT).\nNot counted: norms, activations, pooling, resampling, elementwise products.')


def count_multiply_adds(model: nn.Module, image: Tensor) -> Dict[str, float]:
    """Multiply-adds of one forward pass, by :data:`CONVENTION`.

    Args:
        model (nn.Module): In the mode to count, as a rule ``eval()``.
        image (Tensor): What its ``forward`` takes.

    Returns:
        dict[str, float]: By the name of each module; ``''`` is the whole model.
    """
    analyzer = FlopAnalyzer(model, image)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # A handle of None leaves MMEngine's own in place, so these get one that counts 0 for each element.
    analyzer.set_op_handle(**{f'aten::{name}': elementwise_flop_counter(0, 0) for name in NOT_COUNTED})
    analyzer.set_op_handle('aten::sum', elementwise_flop_counter(input_scale=1))
    analyzer.set_op_handle('aten::scaled_dot_product_attention', _attention_products)
    # The definitions: what exporters record instead, for any size, has other operations.
    with torch.no_grad(), use_ops('plain'), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's, about checks of shapes
        return analyzer.by_module()


def _attention_products(inputs, outputs) -> int:
    """Queries by keys, and weights by values: ``(..., L, E), (..., S, E), (..., S, V)``."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


class _Traffic(TorchDispatchMode):
    """Adds up the sizes of what each operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # A view, and memory that is only reserved, moves nothing.
        if not function.is_view and 'empty' not in function._schema.name:
            tensors = tree_flatten((args, kwargs, result))[0]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
        return result


def count_traffic(model: nn.Module, image: Tensor) -> int:
    """Bytes that one forward pass moves if each operation reads its inputs and writes its output once.

    They must move where nothing is fused and nothing stays in a cache. Weights count as read once.

    Args:
        model (nn.Module): May stand on the ``meta`` device, where counting costs nothing.
        image (Tensor): What its ``forward`` takes, on the same device.
    """
    with torch.no_grad(), _Traffic() as traffic:
        model(image)
    return traffic.bytes
