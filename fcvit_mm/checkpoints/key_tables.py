"""Names of parameters in published files and in ours, as data.

A table is a tuple of :class:`Row`: a published pattern, our pattern and, where two published forms share our name,
what tells them apart. ``*`` stands for exactly one part between dots; the parts that the stars of one side met are
put in for the stars of the other, in order. A new network is a new table in :data:`TABLES`.
"""

import re
from collections import OrderedDict
from functools import lru_cache
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from torch import Tensor

from ..models import CaiT, DWNet, FCViT, Swin, ViT


class Row(NamedTuple):
    """One line of a table: the published name, our name, and which form of the network has it so (any if empty)."""

    published: str
    ours: str
    form: str = ''


class Table(NamedTuple):
    """The names of one network.

    Attributes:
        network (type): Our class.
        rows (tuple[Row]): Published and our names.
        linear (tuple[str]): Our names of linear weights. Paddle stores those transposed, (in, out).
        markers (tuple[str]): Our names that no other network has; a file of this one has at least one.
        forms (callable): Our state dict to the set of the rows' ``form`` that hold for it.
        width (str): Name inside a block of a vector with one value per channel.
        stem (tuple[str]): Names inside ``stem`` that no file of this network lacks.
        downsample (tuple[str]): The same of ``stages.i.downsample``, from the second stage on.
        kind (callable): Our state dict to what a file and a backbone must agree in beside depths and channels, in a
            word; empty where there is but one kind.
        norm (str): The norm before a classifier's head.
        mixed (bool): Whether the blocks of one stage have other parts than those of the next.
        added (tuple[str]): Our names of parameters that weights of a plain network lack, and that change nothing as
            they start.
        derived (tuple[str]): Published names of buffers that follow from sizes: they are not read.
    """

    network: type
    rows: Tuple[Row, ...]
    linear: Tuple[str, ...]
    markers: Tuple[str, ...]
    forms: Callable[[Dict[str, Tensor]], set]
    width: str
    stem: Tuple[str, ...]
    downsample: Tuple[str, ...]
    kind: Callable[[Dict[str, Tensor]], str] = lambda state_dict: ''
    norm: str = 'norm3'
    mixed: bool = False
    added: Tuple[str, ...] = ()
    derived: Tuple[str, ...] = ()


def _fcvit_rows():
    """Source: the published FCViT code. ``network`` holds stages at even places and patch embeddings at odd ones."""
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


def _fcvit_forms(state_dict: Dict[str, Tensor]) -> set:
    first = 'stages.0.blocks.0.token_mixer.mixes.0.'
    forms = {
        'dense' if any(re.match(r'norm[012]\.', key) for key in state_dict) else 'classification',
        'two fc' if f'{first}fc2.weight' in state_dict else 'one fc',
    }
    fc1, fc2 = (state_dict.get(f'{first}global_context.fc{n}.weight') for n in (1, 2))
    if fc1 is not None and fc2 is not None:
        forms.add('compete' if fc1.shape[0] == 2 * fc2.shape[1] else 'no compete')
    return forms


def _dwnet_rows():
    """Source: the published DWNet code. Patch merging ends a layer there, and begins a stage here."""
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


def _dwnet_kind(state_dict: Dict[str, Tensor]) -> str:
    first = 'stages.0.blocks.0.mixer.dwconv.'
    if f'{first}weight' in state_dict:
        return 'static'
    # Only where there is one kernel for all positions has the convolution a bias of its own.
    return 'homogeneous' if f'{first}bias' in state_dict else 'inhomogeneous'


def _dwnet_forms(state_dict: Dict[str, Tensor]) -> set:
    dense = any(re.match(r'norm([012]\.|3\.running)', key) for key in state_dict)
    return {'dense' if dense else 'classification', _dwnet_kind(state_dict)}


def _transformer_rows(theirs: str, ours: str, *parts: str):
    """A block of DeiT's, CaiT's or Swin's, which have the names of their host, and the methods."""
    for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
        yield Row(f'{theirs}.{part}.*', f'{ours}.{part}.*')
    for part in parts:
        yield Row(f'{theirs}.{part}', f'{ours}.{part}')
    for lamb in ('lamb1', 'lamb2'):
        yield Row(f'{theirs}.{lamb}', f'{ours}.feat_scale.{lamb}')


def _plain_rows():
    """What ViT and CaiT share. The pyramid has no published names: it keeps ours."""
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('pos_embed', 'stem.pos_embed')
    yield Row('norm.*', 'norm.*')
    yield Row('pyramid.*.*.*', 'pyramid.*.*.*')
    for i in range(4):
        yield Row(f'norm{i}.*', f'norm{i}.*')


def _vit_rows():
    """Source: the published code of the methods, which has DeiT's names."""
    yield from _plain_rows()
    yield Row('cls_token', 'stem.cls_token')
    yield from _transformer_rows('blocks.*', 'stages.0.blocks.*', 'attn.lamb')


def _cait_rows():
    """Source: as of ViT, with CaiT's names. AttnScale is part of the head mixing here."""
    yield from _plain_rows()
    yield Row('cls_token', 'stages.1.cls_token')
    yield Row('blocks.*.attn.lamb', 'stages.0.blocks.*.attn.proj_w.lamb')
    yield from _transformer_rows(
        'blocks.*', 'stages.0.blocks.*', 'gamma_1', 'gamma_2', 'attn.proj_l.*', 'attn.proj_w.*'
    )
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


def _swin_rows():
    """Source: as of ViT, with Swin's names. Patch merging ends a layer there, and begins a stage here."""
    yield Row('patch_embed.proj.*', 'stem.proj.*')
    yield Row('patch_embed.norm.*', 'stem.norm.*')
    for i in range(3):
        yield Row(f'layers.{i}.downsample.norm.*', f'stages.{i + 1}.downsample.norm.*')
        yield Row(f'layers.{i}.downsample.reduction.*', f'stages.{i + 1}.downsample.reduction.*')
    yield from _transformer_rows(
        'layers.*.blocks.*', 'stages.*.blocks.*', 'attn.lamb', 'attn.relative_position_bias_table'
    )
    for i in range(4):
        yield Row(f'norm{i}.*', f'norm{i}.*', 'dense')
    yield Row('norm.*', 'norm3.*', 'classification')


def _swin_forms(state_dict: Dict[str, Tensor]) -> set:
    return {'dense' if any(re.match(r'norm[012]\.', key) for key in state_dict) else 'classification'}


def _names(layer: str, *parts: str) -> Tuple[str, ...]:
    return tuple(f'{layer}.{part}' for part in parts)


_AFFINE = ('weight', 'bias')
_BATCH_NORM = (*_AFFINE, 'running_mean', 'running_var')
_TRANSFORMER_LINEAR = tuple(
    f'stages.*.blocks.*.{name}.weight'
    for name in ('attn.qkv', 'attn.q', 'attn.k', 'attn.v', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
)
_FEAT_SCALE = ('stages.*.blocks.*.feat_scale.lamb1', 'stages.*.blocks.*.feat_scale.lamb2')

#: The head of a classifier: beside the backbone in published files, ``head.fc`` in mmpretrain's.
HEAD = (Row('head.weight', 'head.fc.weight'), Row('head.bias', 'head.fc.bias'))

TABLES = (
    Table(
        network=FCViT,
        rows=tuple(_fcvit_rows()),
        linear=(
            'stages.*.blocks.*.token_mixer.mixes.*.global_context.fc1.weight',
            'stages.*.blocks.*.token_mixer.mixes.*.global_context.fc2.weight',
        ),
        markers=('stages.*.blocks.*.channel_mixer.fc1.weight', 'stages.*.blocks.*.token_mixer.mixes.*.dwconv.weight'),
        forms=_fcvit_forms,
        width='norm1.weight',
        stem=(*_names('proj', *_AFFINE), *_names('norm', *_BATCH_NORM)),
        downsample=(*_names('proj', *_AFFINE), *_names('norm', *_BATCH_NORM)),
    ),
    Table(
        network=DWNet,
        rows=tuple(_dwnet_rows()),
        linear=(
            'stages.*.blocks.*.mlp.fc1.weight',
            'stages.*.blocks.*.mlp.fc2.weight',
            'stages.*.downsample.reduction.weight',
        ),
        markers=('stages.*.blocks.*.mixer.norm3.weight', 'stages.*.blocks.*.mixer.dwconv.bias'),
        forms=_dwnet_forms,
        width='norm.weight',
        stem=(*_names('proj', *_AFFINE), *_names('norm', *_AFFINE)),
        downsample=('reduction.weight', *_names('norm', *_AFFINE)),
        kind=_dwnet_kind,
    ),
    Table(
        network=Swin,
        rows=tuple(_swin_rows()),
        linear=(*_TRANSFORMER_LINEAR, 'stages.*.downsample.reduction.weight'),
        markers=('stages.*.blocks.*.attn.relative_position_bias_table',),
        forms=_swin_forms,
        width='norm1.weight',
        stem=(*_names('proj', *_AFFINE), *_names('norm', *_AFFINE)),
        downsample=('reduction.weight', *_names('norm', *_AFFINE)),
        added=('stages.*.blocks.*.attn.lamb', *_FEAT_SCALE),
        derived=('layers.*.blocks.*.attn_mask', 'layers.*.blocks.*.attn.relative_position_index'),
    ),
    Table(
        network=CaiT,
        rows=tuple(_cait_rows()),
        linear=_TRANSFORMER_LINEAR,
        markers=('stages.0.blocks.*.attn.proj_l.weight', 'stages.1.blocks.*.attn.q.weight'),
        forms=lambda state_dict: set(),
        width='norm1.weight',
        stem=(*_names('proj', *_AFFINE), 'pos_embed'),
        downsample=(),
        norm='norm',
        mixed=True,
        added=('stages.*.blocks.*.attn.proj_w.lamb', *_FEAT_SCALE),
    ),
    # The last, for its names are among those of the two before.
    Table(
        network=ViT,
        rows=tuple(_vit_rows()),
        linear=_TRANSFORMER_LINEAR,
        markers=('stages.0.blocks.*.attn.qkv.weight',),
        forms=lambda state_dict: set(),
        width='norm1.weight',
        stem=(*_names('proj', *_AFFINE), 'pos_embed', 'cls_token'),
        downsample=(),
        norm='norm',
        added=('stages.*.blocks.*.attn.lamb', *_FEAT_SCALE),
    ),
)

#: Containers of a state dict in a checkpoint: plain and averaged (EMA) weights, in order of preference.
#: ``ema_state_dict`` is missing here because MMEngine's EMAHook writes the two the other way round, see
#: :func:`fcvit_mm.checkpoints.recognize.find_state_dict`.
PLAIN_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')

#: What wrappers put before every name: DistributedDataParallel and averaged models, torch.compile.
WRAPPERS = ('module.', '_orig_mod.')

#: Paddle's names of BatchNorm statistics (last part) and the key of its own that is no tensor.
PADDLE_LEAVES = {'_mean': 'running_mean', '_variance': 'running_var'}
PADDLE_NAMES_KEY = 'StructuredToParameterName@@'

#: First parts of the names of heads and necks, by which a task is known. They keep their names.
TASKS = OrderedDict(
    [
        ('detector', ('rpn_head', 'roi_head', 'bbox_head', 'mask_head')),
        ('segmentor', ('decode_head', 'auxiliary_head')),
        ('classifier', ('head',)),
    ]
)
NECKS = ('neck',)


@lru_cache(maxsize=None)
def _regex(pattern: str) -> 're.Pattern':
    return re.compile(re.escape(pattern).replace(r'\*', r'([^.]+)'))


def _translate(key: str, pattern: str, other: str) -> Optional[str]:
    """``key`` after ``other`` if it is like ``pattern``, else None."""
    match = _regex(pattern).fullmatch(key)
    if match is None:
        return None
    parts = iter(match.groups())
    return re.sub(r'\*', lambda _: next(parts), other)


def is_like(key: str, patterns: Tuple[str, ...]) -> bool:
    """Whether ``key`` is like one of the patterns (``*`` is one part between dots)."""
    return any(_regex(pattern).fullmatch(key) for pattern in patterns)


def to_ours(key: str, rows: Tuple[Row, ...]) -> Optional[str]:
    """Our name for a published one, None if the table has none."""
    for row in rows:
        name = _translate(key, row.published, row.ours)
        if name is not None:
            return name
    return None


def to_published(state_dict: Dict[str, Tensor], table: Table) -> Dict[str, Tensor]:
    """A backbone's state dict with published names, the table read from right to left.

    Raises:
        KeyError: A name that the table does not have.
    """
    forms = table.forms(state_dict)
    rows = [row for row in table.rows if not row.form or row.form in forms]
    result = OrderedDict()
    for key, value in state_dict.items():
        names = (_translate(key, row.ours, row.published) for row in rows)
        name = next((name for name in names if name is not None), None)
        if name is None:
            raise KeyError(f'{key} has no published name in the table of {table.network.__name__}')
        result[name] = value
    return result
