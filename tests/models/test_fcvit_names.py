"""FCViT's published names converted to ours, and back."""

import pytest
import torch
from reference import OPTIONS, arguments, published

import fcvit_mm

NAMES = fcvit_mm.FCViT.published_names


@pytest.mark.parametrize('dense', [False, True])
@pytest.mark.parametrize('option', OPTIONS)
def test_round_trip(option, dense):
    """Each published name is converted to a name of the network, and back."""
    theirs = {key: value for key, value in published(option, dense).items() if not key.startswith('head.')}
    ours = {NAMES.to_ours(key): value for key, value in theirs.items()}
    out_indices = (0, 1, 2, 3) if dense else (3,)
    assert set(ours) == set(fcvit_mm.FCViT(out_indices=out_indices, **arguments(option)).state_dict())
    back = NAMES.to_published(ours)
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    'key, ours',
    [
        ('patch_embed.proj.weight', 'stem.proj.weight'),
        ('network.3.norm.running_var', 'stages.2.downsample.norm.running_var'),
        ('network.4.11.layer_scale_2', 'stages.2.blocks.11.layer_scale2'),
        ('network.0.1.token_mixer.gc2.fc1.bias', 'stages.0.blocks.1.token_mixer.mixes.1.global_context.fc1.bias'),
        ('network.0.1.token_mixer.gc1.fc.2.bias', 'stages.0.blocks.1.token_mixer.mixes.0.global_context.fc2.bias'),
        ('network.6.0.token_mixer.fc2.0.weight', 'stages.3.blocks.0.token_mixer.mixes.1.fc1.weight'),
        ('network.6.0.token_mixer.fc2.weight', 'stages.3.blocks.0.token_mixer.mixes.1.fc1.weight'),
        (
            'network.2.0.token_mixer.spatial_att.spatial_att.3.bias',
            'stages.1.blocks.0.token_mixer.spatial_attention.fc2.bias',
        ),
        (
            'network.2.0.channel_mixer.channel_att.channelConv1.weight',
            'stages.1.blocks.0.channel_mixer.channel_attention.conv1.weight',
        ),
        ('norm.weight', 'norm3.weight'),
        ('norm4.bias', 'norm2.bias'),
    ],
)
def test_names(key, ours):
    assert NAMES.to_ours(key) == ours


@pytest.mark.parametrize(
    'key',
    [
        'network.7.0.norm1.weight',
        'network.0.0.norm3.weight',
        'norm1.weight',
        'stem.proj.weight',
        'network.0.0.mlp.fc1.weight',
        'xpatch_embed.proj.weight',
        'head.weight',
        '',
    ],
)
def test_unknown_names(key):
    assert NAMES.to_ours(key) is None
