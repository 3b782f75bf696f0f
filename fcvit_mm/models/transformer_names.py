"""Names in published files of ViT, CaiT and Swin with AttnScale or FeatScale.

Source: the code of OpenReview O476oWmiNNp, which has the names of DeiT's, CaiT's and Swin's code. timm's models have
the same names, except for Swin's patch merging.
"""

from typing import AbstractSet, Iterable, Iterator, Mapping, Tuple

from torch import Tensor

from .published_names import PublishedNames, Row, output_norms


def _block_rows(theirs: str, ours: str, *parts: str) -> Iterator[Row]:
    """Yield the names of a block: common ones of all three networks, ``parts``, and those of the methods."""
    for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
        yield Row(f'{theirs}.{part}.*', f'{ours}.{part}.*')
    for part in parts:
        yield Row(f'{theirs}.{part}', f'{ours}.{part}')
    for lamb in ('lamb1', 'lamb2'):
        yield Row(f'{theirs}.{lamb}', f'{ours}.feat_scale.{lamb}')


def _token_rows() -> Iterator[Row]:
    """Yield what ViT and CaiT share. The pyramid has no published names: it keeps ours."""
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('pos_embed', 'stem.pos_embed')
    yield Row('norm.*', 'norm.*')
    yield Row('pyramid.*.*.*', 'pyramid.*.*.*')
    for i in range(4):
        yield Row(f'norm{i}.*', f'norm{i}.*')


def _vit_rows() -> Iterator[Row]:
    yield from _token_rows()
    yield Row('cls_token', 'stem.cls_token')
    yield from _block_rows('blocks.*', 'stages.0.blocks.*', 'attn.lamb')


def _cait_rows() -> Iterator[Row]:
    """Yield CaiT's names. In our names, AttnScale is part of the head mixing."""
    yield from _token_rows()
    yield Row('cls_token', 'stages.1.cls_token')
    yield Row('blocks.*.attn.lamb', 'stages.0.blocks.*.attn.proj_w.lamb')
    yield from _block_rows('blocks.*', 'stages.0.blocks.*', 'gamma_1', 'gamma_2', 'attn.proj_l.*', 'attn.proj_w.*')
    for part in (
        'norm1.*',
        'attn.q.*',
        'attn.k.*',
        'attn.v.*',
        'attn.proj.*',
        'gamma_1',
        'norm2.*',
        'mlp.fc1.*',
        'mlp.fc2.*',
        'gamma_2',
    ):
        yield Row(f'blocks_token_only.*.{part}', f'stages.1.blocks.*.{part}')


def _swin_rows(merging: int = 0) -> Iterator[Row]:
    """Yield Swin's names.

    Patch merging ends a layer in published files. It begins a stage of ours, and a layer in files of timm 1.0.

    Args:
        merging (int): Number of the layer that has the first patch merging: 0 in published files, 1 in timm's.
    """
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('patch_embed.norm.*', 'stem.norm.*')
    for i in range(3):
        yield Row(f'layers.{i + merging}.downsample.norm.*', f'stages.{i + 1}.downsample.norm.*')
        yield Row(f'layers.{i + merging}.downsample.reduction.*', f'stages.{i + 1}.downsample.reduction.*')
    yield from _block_rows('layers.*.blocks.*', 'stages.*.blocks.*', 'attn.lamb', 'attn.relative_position_bias_table')
    for i in range(4):
        yield Row(f'norm{i}.*', f'norm{i}.*', 'dense')
    yield Row('norm.*', 'norm3.*', 'classification')


def _swin_rows_of(keys: Iterable[str]) -> Tuple[Row, ...]:
    return tuple(_swin_rows(merging=int(any(key.startswith('layers.3.downsample.') for key in keys))))


def _swin_conditions(state_dict: Mapping[str, Tensor]) -> AbstractSet[str]:
    return {output_norms(state_dict)}


_FEAT_SCALE = ('stages.*.blocks.*.feat_scale.lamb1', 'stages.*.blocks.*.feat_scale.lamb2')

VIT = PublishedNames(tuple(_vit_rows()), added=('stages.*.blocks.*.attn.lamb', *_FEAT_SCALE))
CAIT = PublishedNames(tuple(_cait_rows()), added=('stages.*.blocks.*.attn.proj_w.lamb', *_FEAT_SCALE))
SWIN = PublishedNames(
    tuple(_swin_rows()),
    _swin_conditions,
    added=('stages.*.blocks.*.attn.lamb', *_FEAT_SCALE),
    ignored=('layers.*.blocks.*.attn_mask', 'layers.*.blocks.*.attn.relative_position_index'),
    rows_of=_swin_rows_of,
)
