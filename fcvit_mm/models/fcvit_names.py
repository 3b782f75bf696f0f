"""Parameter names in the published files of FCViT (arXiv 2212.12552), from the authors' code."""

from typing import AbstractSet, Iterator, Mapping

from torch import Tensor

from .published_names import PublishedNames, Row, output_norms


def _rows() -> Iterator[Row]:
    """Yield published names and ours. In ``network``, stages have even numbers and patch embeddings odd ones."""
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('patch_embed.norm.*', 'stem.norm.*')
    for i in range(4):
        if i > 0:
            yield Row(f'network.{2 * i - 1}.proj.*', f'stages.{i}.downsample.proj.*')
            yield Row(f'network.{2 * i - 1}.norm.*', f'stages.{i}.downsample.norm.*')
        theirs, ours = f'network.{2 * i}.*', f'stages.{i}.blocks.*'
        for n in (1, 2):
            yield Row(f'{theirs}.norm{n}.*', f'{ours}.norm{n}.*')
            yield Row(f'{theirs}.layer_scale_{n}', f'{ours}.layer_scale{n}')
            mix = f'{ours}.token_mixer.mixes.{n - 1}'
            for fc, index in (('fc1', 0), ('fc2', 2)):
                yield Row(f'{theirs}.token_mixer.gc{n}.{fc}.*', f'{mix}.global_context.{fc}.*', 'compete')
                yield Row(f'{theirs}.token_mixer.gc{n}.fc.{index}.*', f'{mix}.global_context.{fc}.*', 'no compete')
                yield Row(f'{theirs}.token_mixer.fc{n}.{index}.*', f'{mix}.{fc}.*', 'two fc')
            for part in ('weight', 'bias'):
                yield Row(f'{theirs}.token_mixer.gc{n}.rescale_{part}', f'{mix}.global_context.rescale_{part}')
            yield Row(f'{theirs}.token_mixer.dw{n}.*', f'{mix}.dwconv.*')
            yield Row(f'{theirs}.token_mixer.fc{n}.*', f'{mix}.fc1.*', 'one fc')
        for index, name in ((0, 'dwconv'), (1, 'fc1'), (3, 'fc2')):
            yield Row(
                f'{theirs}.token_mixer.spatial_att.spatial_att.{index}.*',
                f'{ours}.token_mixer.spatial_attention.{name}.*',
            )
        for name in ('fc1', 'dwconv', 'fc2'):
            yield Row(f'{theirs}.channel_mixer.{name}.*', f'{ours}.channel_mixer.{name}.*')
        for n in (1, 2):
            yield Row(
                f'{theirs}.channel_mixer.channel_att.channelConv{n}.*',
                f'{ours}.channel_mixer.channel_attention.conv{n}.*',
            )
        yield Row(f'norm{2 * i}.*', f'norm{i}.*', 'dense')
    yield Row('norm.*', 'norm3.*', 'classification')


def _conditions(state_dict: Mapping[str, Tensor]) -> AbstractSet[str]:
    first = 'stages.0.blocks.0.token_mixer.mixes.0.'
    conditions = {output_norms(state_dict), 'two fc' if f'{first}fc2.weight' in state_dict else 'one fc'}
    fc1, fc2 = (state_dict.get(f'{first}global_context.fc{n}.weight') for n in (1, 2))
    if fc1 is not None and fc2 is not None:
        conditions.add('compete' if fc1.shape[0] == 2 * fc2.shape[1] else 'no compete')
    return conditions


PUBLISHED_NAMES = PublishedNames(tuple(_rows()), _conditions)
