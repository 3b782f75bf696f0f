"""Deterministic weights and images, and the outputs that the published implementations computed from them.

``tests/data/fcvit_micro_<option>.npz`` holds, for one small network each: ``arch`` and ``options`` (JSON, published
option names), ``names`` and ``dense_names`` (JSON: published key -> shape of the classification and of the dense
model), and the outputs for two images. ``fcvit_micro_grads.npz`` holds gradients of the default one.
``dwnet_micro_<kind>.npz`` has the same keys (no options), the inhomogeneous one the classifier alone.
``attnscale_micro_<kind>.npz`` and ``featscale_micro_<kind>.npz`` have a classifier's ``names`` and ``logits``.
"""

import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'
OPTIONS = (
    'default',
    'channel_att',
    'fc_factor1',
    'mix5x7',
    'no_compete',
    'no_dw',
    'no_gc',
    'one_mix',
    'spatial_att',
    'unweighted_gc',
)
DWNETS = {'static': False, 'dynamic': 'homogeneous', 'inhomogeneous': 'inhomogeneous'}
NUM_CLASSES = 10

#: Transformer -> shape and seed of its input.
TRANSFORMER_INPUTS = {'vit': ((2, 3, 32, 32), 7), 'cait': ((2, 3, 32, 32), 7), 'swin': ((1, 3, 112, 112), 8)}

#: For each published option, the argument of this package and the conversion of its value.
ARGUMENTS = {
    'spatial_mixer__useSecondTokenMix': ('kernel_sizes', lambda second: (11, 11) if second else (11,)),
    'spatial_mixer__fc_factor': ('token_mix_reduction', int),
    'spatial_mixer__use_globalcontext': ('global_context', bool),
    'spatial_mixer__useSpatialAtt': ('spatial_attention', bool),
    'channel_mixer__useDWconv': ('channel_mixer_dwconv', bool),
    'channel_mixer__useChannelAtt': ('channel_attention', bool),
    'global_context__compete': ('compete', bool),
    'global_context__weighted_gc': ('weighted', bool),
}


def values(key: str, shape) -> torch.Tensor:
    """Return the values of the published key ``key``: random numbers seeded by its name, scaled by its kind."""
    shape, leaf = tuple(shape), key.split('.')[-1]
    if leaf == 'num_batches_tracked':
        return torch.zeros(shape, dtype=torch.int64)
    seed = zlib.crc32(key.encode()) & (2**31 - 1)
    noise = np.random.RandomState(seed).standard_normal(shape or (1,)).reshape(shape)
    if '.attn2conv.conv.conv2.' in key:  # makes 7x7 kernels
        noise = noise * 0.1
    if leaf == 'running_var':
        noise = np.exp(noise * 0.2)
    elif leaf.startswith(('layer_scale', 'gamma_')):
        noise = noise * 0.05 + 0.3
    elif leaf == 'rescale_weight':
        noise = noise * 0.2 + 1
    elif leaf in ('rescale_bias', 'lamb', 'lamb1', 'lamb2', 'cls_token', 'pos_embed', 'relative_position_bias_table'):
        noise = noise * 0.2
    elif leaf in ('running_mean', 'bias'):
        noise = noise * 0.1
    elif len(shape) == 1:  # the weight of a norm
        noise = noise * 0.1 + 1
    else:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(noise, dtype=np.float32))


def image(shape, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def images() -> dict:
    """Return the two inputs of every fixture, one with odd sides."""
    return {'x': image((2, 3, 64, 96), 3), 'xo': image((1, 3, 75, 61), 4)}


def fixture(option: str, network: str = 'fcvit') -> dict:
    return dict(_fixture(option, network))


@lru_cache(maxsize=None)
def _fixture(option: str, network: str) -> dict:
    with np.load(DATA / f'{network}_micro_{option}.npz') as file:
        return {name: file[name] for name in file.files}


def published(option: str = 'default', dense: bool = False, network: str = 'fcvit') -> dict:
    """Return the published state dict of a small network; the tensors are copies."""
    return {key: value.clone() for key, value in _published(option, dense, network).items()}


@lru_cache(maxsize=None)
def _published(option: str, dense: bool, network: str) -> dict:
    names = json.loads(str(fixture(option, network)['dense_names' if dense else 'names']))
    return {key: values(key, shape) for key, shape in names.items()}


def arguments(option: str = 'default') -> dict:
    """Return the arguments of ``fcvit_mm.FCViT`` for a small network."""
    data = fixture(option)
    arch, options = json.loads(str(data['arch'])), json.loads(str(data['options']))
    result = {'arch': {'depths': arch['layers'], 'channels': arch['embed_dims'], 'mlp_ratios': arch['mlp_ratios']}}
    sizes = [options.pop(f'spatial_mixer__mix_size_{i}', None) for i in (1, 2)]
    if any(sizes):
        result['kernel_sizes'] = tuple(size or 11 for size in sizes)
    for name, value in options.items():
        argument, convert = ARGUMENTS[name]
        result[argument] = convert(value)
    return result


def dwnet_arguments(kind: str) -> dict:
    """Return the arguments of ``fcvit_mm.DWNet`` for a small network."""
    arch = json.loads(str(fixture(kind, 'dwnet')['arch']))
    return dict(
        arch=dict(
            depths=arch['depths'], channels=[arch['embed_dim'] * 2**i for i in range(4)], group_channels=(3, 6, 12, 24)
        ),
        dynamic=DWNETS[kind],
    )


def transformer_arguments(kind: str) -> dict:
    """Return the arguments of ``fcvit_mm.ViT``, ``CaiT`` or ``Swin`` for a small classifier, without ``methods``."""
    class_token = dict(patch_size=8, img_size=32, out_type='cls_token')
    return {
        'vit': dict(class_token, arch=dict(depths=(2,), channels=(24,), num_heads=(3,))),
        'cait': dict(class_token, arch=dict(depths=(2, 2), channels=(24, 24), num_heads=(3, 3))),
        # The published network has two stages; the others are not built.
        'swin': dict(out_indices=1, arch=dict(depths=(2, 2, 1, 1), channels=(12, 24, 24, 24), num_heads=(2, 4, 4, 4))),
    }[kind]


def paddle(state_dict: dict) -> dict:
    """Convert a published state dict to the format of Paddle: arrays, other names of statistics, transposed weights."""
    leaves = {'running_mean': '_mean', 'running_var': '_variance'}
    result = {}
    for key, value in state_dict.items():
        stem, leaf = key.rsplit('.', 1)
        if leaf == 'num_batches_tracked':
            continue
        is_linear = leaf == 'weight' and ('.gc' in key or key.startswith('head.'))
        result[f'{stem}.{leaves.get(leaf, leaf)}'] = (value.t() if is_linear else value).contiguous().numpy()
    result['StructuredToParameterName@@'] = {key: f'param_{i}' for i, key in enumerate(list(result))}
    return result
