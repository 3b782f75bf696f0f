"""Count a model's parameters and multiply-adds, part by part, for a classifier, detector or segmentor."""
import argparse
import math
import warnings
from functools import partial
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from fcvit_mm.engine.config import load_config, task_of
from fcvit_mm.engine.errors import UserError, run_tool
from fcvit_mm.models.layers import count_parameters

#: Height and width that each library's models are compared at.
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}
#: MMEngine counts these too; here a number is a number of multiply-adds, as papers give it.
NOT_COUNTED = ('batch_norm', 'group_norm', 'layer_norm', 'instance_norm', 'adaptive_avg_pool2d', 'grid_sampler',
               'upsample_nearest2d', 'upsample_bilinear2d')
CONVENTION = ('One multiply-add counts as one: convolutions, linear layers, matrix products, sums of products (the '
              'similarity of FCViT).\nNot counted: norms, activations, pooling, resampling, elementwise products.')


class Part(NamedTuple):
    """One row of the table: its name, parameter values and multiply-adds."""
    name: str
    params: int
    flops: int


class Complexity(NamedTuple):
    """What :func:`measure` found: the input's height and width, the parts, and the totals."""
    shape: Tuple[int, int]
    parts: List[Part]
    params: int
    flops: int


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument('--shape', '--size', type=int, nargs='+', metavar='PIXELS',
                        help='height and width of the input, or one number for both; by default 224 for classifiers, '
                        '800 1280 for detectors, 512 for segmentors')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config, say model.backbone.arch=b24')
    return parser.parse_args(argv)


def input_shape(given: Sequence[int], scope: str) -> Tuple[int, int]:
    """Height and width from ``--shape``, or what models of this library are compared at."""
    if not given:
        return DEFAULT_SHAPES[scope]
    if len(given) > 2 or min(given) < 1:
        raise UserError(f'--shape {" ".join(map(str, given))}: expected a height and a width in pixels, or one number')
    return given[0], given[-1]


def padded(model: nn.Module, height: int, width: int) -> Tuple[int, int]:
    """Height and width after the padding that a detector's data preprocessor adds."""
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def group_parts(model: nn.Module) -> Dict[str, List[str]]:
    """Rows of the table and the modules that each takes in: the backbone's stem, stages and norms, neck, heads."""
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


def attention_flops(inputs: list, outputs: list) -> int:
    """The two matrix products inside a fused attention: queries by keys, and what comes of them by values."""
    query, key, value = (get_shape(each) for each in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def measure(cfg: Config, shape: Sequence[int] = ()) -> Complexity:
    """Build a config's model with random weights and count it on one random image, in evaluation mode.

    Args:
        cfg (Config): Of a classifier, detector or segmentor.
        shape (Sequence[int]): Height and width in pixels, or one for both; empty for the library's usual one.

    Returns:
        Complexity: Parts and totals. A detector's image is padded as its data preprocessor pads, and its heads see
        the proposals that random weights give, as with mmdet's own tool.

    Raises:
        UserError: A config of another library, or a shape that is none.
    """
    task_of(cfg)
    scope = cfg.default_scope
    height, width = input_shape(shape, scope)
    init_default_scope(scope)
    # The same random weights, and so the same proposals, each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MODELS.build(ConfigDict(cfg.model))).eval()
        image = torch.rand(1, 3, *padded(model, height, width))
    height, width = image.shape[2:]

    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (height, width))
        sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1., 1.)))
        model.forward = partial(model.forward, data_samples=[sample])

    analyzer = FlopAnalyzer(model, image)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # A handle of None leaves MMEngine's own in place, so these get one that counts 0 for each element.
    analyzer.set_op_handle(**{f'aten::{name}': elementwise_flop_counter(0, 0) for name in NOT_COUNTED})
    analyzer.set_op_handle('aten::sum', elementwise_flop_counter(input_scale=1))
    analyzer.set_op_handle('aten::scaled_dot_product_attention', attention_flops)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's, about checks of shapes
        flops = analyzer.by_module()

    parts = [
        Part(name, sum(count_parameters(model.get_submodule(module)) for module in modules),
             int(sum(flops[module] for module in modules))) for name, modules in group_parts(model).items()
    ]
    return Complexity((height, width), parts, count_parameters(model), int(flops['']))


def format_table(found: Complexity) -> str:
    """The table that the command prints: one line for each part, and the total."""
    rest = Part('other', found.params - sum(part.params for part in found.parts),
                found.flops - sum(part.flops for part in found.parts))
    parts = [*found.parts, *([rest] if rest.params or rest.flops else [])]
    width = max(len('output norms'), *(len(part.name) for part in parts))
    lines = [f'{"":{width}}  {"parameters":>12}  {"multiply-adds":>14}']
    lines += [f'{part.name:{width}}  {part.params:>12,}  {part.flops / 1e9:>12.4f} G' for part in parts]
    lines += ['-' * len(lines[0])]
    lines += [f'{"total":{width}}  {found.params:>12,}  {found.flops / 1e9:>12.4f} G']
    return '\n'.join(lines)


def main(argv=None):
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    found = measure(load_config(args.config, args.cfg_options), args.shape or ())
    print(f'{args.config}, input 3x{found.shape[0]}x{found.shape[1]}\n\n{format_table(found)}\n\n{CONVENTION}')
    if any(part.name.endswith('roi_head') for part in found.parts):
        print('The RoI heads were counted on the proposals that random weights gave.')
    if any(part.name == 'auxiliary_head' for part in found.parts):
        print('The auxiliary head works in training only: 0 multiply-adds.')


if __name__ == '__main__':
    run_tool(main)
