"""Parameter names in the published files of DWNet (arXiv 2106.04263), from the authors' code."""

from typing import AbstractSet, Iterator, Mapping

from torch import Tensor

from .published_names import PublishedNames, Row, output_norms


def _rows() -> Iterator[Row]:
    """Yield published names and ours. Patch merging is the end of a published layer, and the beginning of our stage."""
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('patch_embed.norm.*', 'stem.norm.*')
    yield Row('absolute_pos_embed', 'stem.pos_embed')
    for i in range(3):
        yield Row(f'layers.{i}.downsample.norm.*', f'stages.{i + 1}.downsample.norm.*')
        yield Row(f'layers.{i}.downsample.reduction.*', f'stages.{i + 1}.downsample.reduction.*')
    theirs, ours = 'layers.*.blocks.*', 'stages.*.blocks.*'
    for name, number in (
        ('conv0', 'fc1'),
        ('bn0', 'norm1'),
        ('conv', 'dwconv'),
        ('bn', 'norm2'),
        ('conv2', 'fc2'),
        ('bn2', 'norm3'),
    ):
        yield Row(f'{theirs}.attn2conv.{name}.*', f'{ours}.mixer.{number}.*')
    for kind, names in (
        ('homogeneous', ('conv1', 'bn', 'conv2')),
        ('inhomogeneous', ('conv1.0', 'conv1.1', 'conv2.0')),
    ):
        for name, part in zip(names, ('fc1', 'norm', 'fc2')):
            yield Row(f'{theirs}.attn2conv.conv.{name}.*', f'{ours}.mixer.dwconv.{part}.*', kind)
    yield Row(f'{theirs}.bn.*', f'{ours}.norm.*')
    for fc in ('fc1', 'fc2'):
        yield Row(f'{theirs}.mlp.{fc}.*', f'{ours}.mlp.{fc}.*')
    for i in range(4):
        yield Row(f'norm{i}.*', f'norm{i}.*', 'dense')
    yield Row('norm.*', 'norm3.*', 'classification')


def _kind(state_dict: Mapping[str, Tensor]) -> str:
    first = 'stages.0.blocks.0.mixer.dwconv.'
    if f'{first}weight' in state_dict:
        return 'static'
    # The convolution has a bias only if all positions share one kernel.
    return 'homogeneous' if f'{first}bias' in state_dict else 'inhomogeneous'


def _conditions(state_dict: Mapping[str, Tensor]) -> AbstractSet[str]:
    return {output_norms(state_dict), _kind(state_dict)}


PUBLISHED_NAMES = PublishedNames(tuple(_rows()), _conditions, _kind)
