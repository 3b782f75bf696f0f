"""Counting a model's parameters, multiply-adds, and bytes read and written."""

import inspect
import math
import warnings
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
import torch.nn as nn
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..engine.config import task_or_library, walk
from ..engine.wrapped import unwrap_model
from ..errors import LibraryError, UserError, library_errors
from ..models.layers import count_parameters
from ..ops import use_ops
from .load import build_model, input_channels, tensor_forward
from .step import expected_sizes

#: Operators that MMEngine counts, too. These formulas count multiply-adds, as papers do.
NOT_COUNTED = (
    'batch_norm',
    'group_norm',
    'layer_norm',
    'instance_norm',
    'adaptive_avg_pool2d',
    'grid_sampler',
    'upsample_nearest2d',
    'upsample_bilinear2d',
)
CONVENTION = (
    'One multiply-add counts as one: convolutions, linear layers, matrix products, sums of products (the '
    'similarity of FCViT).\nNot counted: norms, activations, pooling, resampling, elementwise products.'
)
#: Height and width that the models of a task are compared at.
DEFAULT_SHAPES = {'classification': (224, 224), 'detection': (800, 1280), 'segmentation': (512, 512)}


class PartComplexity(NamedTuple):
    """A part of a model: its name, parameter values and multiply-adds."""

    name: str
    params: int
    flops: int


class Complexity(NamedTuple):
    """The result of :func:`measure`: the input's height and width, the parts, the totals, and the input's channels."""

    shape: Tuple[int, int]
    parts: List[PartComplexity]
    params: int
    flops: int
    channels: int = 3


def count_multiply_adds(model: nn.Module, image: Tensor) -> Dict[str, float]:
    """Count the multiply-adds of one forward pass, by :data:`CONVENTION`.

    Args:
        model (nn.Module): The model, in the mode to count, usually ``eval()``.
        image (Tensor): Input of its ``forward``.

    Returns:
        dict[str, float]: Counts by name of the module; ``''`` is the complete model.
    """
    analyzer = FlopAnalyzer(model, image)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # A handle of None would keep MMEngine's own, so operators that are not counted get one that returns 0.
    analyzer.set_op_handle(**{f'aten::{name}': elementwise_flop_counter(0, 0) for name in NOT_COUNTED})
    analyzer.set_op_handle('aten::sum', elementwise_flop_counter(input_scale=1))
    analyzer.set_op_handle('aten::scaled_dot_product_attention', _attention_products)
    # The reference implementations, because the implementations that tracers record for any size do other operations.
    with torch.no_grad(), use_ops('reference'), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # warnings of the tracer about checks of shapes
        return analyzer.by_module()


def _attention_products(inputs: List[Any], outputs: List[Any]) -> int:
    """Count the products of fused attention: queries ``(..., L, E)``, keys ``(..., S, E)``, values ``(..., S, V)``."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


class _Traffic(TorchDispatchMode):
    """Sum of the sizes of the tensors that each operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # Views and the allocation of memory move no bytes.
        if not function.is_view and 'empty' not in function._schema.name:
            tensors = tree_flatten((args, kwargs, result))[0]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
        return result


def count_traffic(model: nn.Module, image: Tensor) -> int:
    """Count the bytes that one forward pass moves if each operation reads its inputs and writes its output once.

    This assumes that nothing is fused or cached. Weights count as read once.

    Args:
        model (nn.Module): The model; on the ``meta`` device nothing is computed.
        image (Tensor): Input of its ``forward``, on the same device.
    """
    with torch.no_grad(), _Traffic() as traffic:
        model(image)
    return traffic.bytes


def input_shape(given: Sequence[int], task: str, asked: Sequence[Tuple[int, int]] = ()) -> Tuple[int, int]:
    """Return height and width from ``--shape``, or the default of the task.

    Args:
        given (Sequence[int]): One or two numbers, or none.
        task (str): Task of the model, or the scope of another library.
        asked (Sequence[tuple[int, int]]): Sizes that the config names (:func:`expected_sizes`), for the message.

    Raises:
        UserError: No size is given and the task has no usual one, or the numbers are no size.
    """
    if not given and task not in DEFAULT_SHAPES:
        example = f', such as --shape {asked[0][0]} {asked[0][1]} (input_size in the config)' if asked else ''
        raise UserError(f'models of {task} have no usual input size: give height and width with --shape{example}')
    if not given:
        return DEFAULT_SHAPES[task]
    if len(given) > 2 or min(given) < 1:
        raise UserError(
            f'--shape is {" ".join(map(str, given))}, expected a height and a width in pixels, or one number'
        )
    return given[0], given[-1]


def padded(model: nn.Module, height: int, width: int) -> Tuple[int, int]:
    """Return height and width after the padding that a detector's data preprocessor adds."""
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def group_parts(model: nn.Module) -> Dict[str, List[str]]:
    """Group a model's modules by the rows of the table: the backbone's stem, stages and norms, neck, heads."""
    groups: Dict[str, List[str]] = {}
    for name, child in model.named_children():
        if name == 'data_preprocessor':
            continue
        if name != 'backbone':
            groups[name] = [name]
            continue
        for part, module in child.named_children():
            if part == 'stages' and isinstance(module, nn.ModuleList):
                groups.update({f'stage {i + 1}': [f'backbone.stages.{i}'] for i in range(len(module))})
            elif part.startswith('norm'):
                groups.setdefault('output norms', []).append(f'backbone.{part}')
            else:
                groups[part if part == 'stem' else f'backbone.{part}'] = [f'backbone.{part}']
    return groups


def predicted_tensors(detector: Any, shape: Tuple[int, int], image: Tensor) -> List[Tensor]:
    """Return the predictions of a detector of mmdet for an image ``(1, C, *shape)`` as tensors.

    No detection is dropped for a low score, so masks are computed for the maximum number of detections: the raw forward
    pass of Cascade computes masks for every proposal, and scores of random weights are meaningless.
    """
    from mmdet.structures import DetDataSample

    has_masks = any('mask' in name for name, _ in detector.named_modules())
    for node in walk(detector.test_cfg) if has_masks else ():
        if 'score_thr' in node:
            node['score_thr'] = 0.0
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(sizes, img_id=0, img_path='', scale_factor=(1.0, 1.0)))
    (result,) = detector.predict(image, [sample], rescale=False)
    found = [result.get('pred_instances', {}), result.get('pred_panoptic_seg', {})]
    return [value for each in found for value in each.values() if isinstance(value, Tensor)]


def takes_samples(head: Any) -> bool:
    """Check whether a segmentor's head needs data samples in its forward pass, as Mask2Former's does."""
    return head is not None and 'batch_data_samples' in inspect.signature(head.forward).parameters


def _runs(count: Callable[[Tensor], Any], image: Tensor) -> bool:
    """Check whether a model can be counted on an image."""
    try:
        count(image)
    except Exception:
        # Broad, because the config may name any code.
        return False
    return True


def measure(cfg: Config, shape: Sequence[int] = ()) -> Complexity:
    """Build a config's model with random weights and count it on one random image, in evaluation mode.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor, or of a model of another library, which is counted
            in its mode ``'tensor'``: backbone, neck and, depending on the library, head.
        shape (Sequence[int]): Height and width in pixels, or one for both; empty for the task's usual one.

    Returns:
        Complexity: Parts and totals. A detector's image is padded as by its data preprocessor. Its heads are counted in
        prediction: box heads on the proposals that random weights give, mask heads on the maximum number of detections
        in ``test_cfg``.

    Raises:
        UserError: The model cannot be built or run, or the shape is invalid.
    """
    cfg = unwrap_model(cfg)
    task = task_or_library(cfg)
    height, width = input_shape(shape, task, expected_sizes(cfg))
    # The same random weights each time, and therefore the same proposals.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with library_errors(f'building the model of {cfg.filename or "the config"}', 'Correct the config'):
            model = build_model(cfg)
        image = torch.rand(1, input_channels(model, cfg), *padded(model, height, width))
    height, width = image.shape[2:]
    original = model.forward

    def count(image: Tensor) -> Dict[str, float]:
        model.forward = original
        if task == 'detection':
            size = (image.shape[2], image.shape[3])
            model.forward = partial(predicted_tensors, model, size)
        elif takes_samples(getattr(model, 'decode_head', None)):
            size = (image.shape[2], image.shape[3])
            metas = [dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])]
            model.forward = partial(cast(Any, model).encode_decode, batch_img_metas=metas)
        elif task not in DEFAULT_SHAPES:
            model.forward = tensor_forward(model, image)
        return count_multiply_adds(model, image)

    running = library_errors(
        f'running the model of {cfg.filename or "the config"} on an image of {height}x{width} (height, width)',
        'Give the size that it takes with --shape',
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            with running:
                flops = count(image)
        except LibraryError as error:
            for rows, columns in expected_sizes(cfg):
                if _runs(count, image.new_zeros(*image.shape[:2], rows, columns)):
                    raise UserError(
                        f'the model of {cfg.filename or "the config"} does not run on an image of {height}x{width} '
                        f'(height, width), but on one of {rows}x{columns}, the input_size in its config: give --shape '
                        f'{rows} {columns}'
                    ) from error
            raise
    parts = [
        PartComplexity(
            name,
            sum(count_parameters(model.get_submodule(module)) for module in modules),
            int(sum(flops[module] for module in modules)),
        )
        for name, modules in group_parts(model).items()
    ]
    return Complexity((height, width), parts, count_parameters(model), int(flops['']), image.shape[1])
