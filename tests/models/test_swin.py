"""Swin only: agreement with timm, tables of windows, the deprecated name."""

import fcvit_mm.models.scaled
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from networks import NETWORKS, build, perturb

import fcvit_mm

pytest.importorskip('timm')

SMALL = dict(arch=NETWORKS['swin'].arguments['arch'])


@torch.no_grad()
def test_unmodified_swin_agrees_with_timm():
    """The last map is one window, which is not shifted."""
    import timm

    arch = dict(depths=(2, 2, 2, 2), channels=(8, 16, 32, 64), num_heads=(2, 2, 4, 4))
    model = perturb(fcvit_mm.Swin(arch, (), out_indices=3)).eval()
    theirs = timm.create_model(
        'swin_tiny_patch4_window7_224', embed_dim=8, depths=arch['depths'], num_classes=0, num_heads=arch['num_heads']
    ).eval()
    own = {
        name.replace('stages.', 'layers.').replace('stem.', 'patch_embed.').replace('norm3.', 'norm.'): value
        for name, value in model.state_dict().items()
    }
    theirs.load_state_dict(own)
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(x)[0].mean((2, 3)), theirs(x), rtol=1e-4, atol=1e-5)


def test_timm_checkpoints_load(tmp_path):
    """timm puts the patch merging at the start of a layer, published files at the end of the layer before."""
    import timm

    arch = dict(depths=(2, 2, 2, 2), channels=(8, 16, 32, 64), num_heads=(2, 2, 4, 4))
    options = dict(embed_dim=8, depths=arch['depths'], num_classes=3, num_heads=arch['num_heads'])
    theirs = timm.create_model('swin_tiny_patch4_window7_224', **options).state_dict()
    torch.save(theirs, tmp_path / 'swin.pth')
    checkpoint = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))
    model = fcvit_mm.Swin(arch, ('attn_scale',), out_indices=3, init_cfg=checkpoint)
    model.init_weights()
    for name, value in model.state_dict().items():
        if not name.endswith('lamb'):
            source = name.replace('stages.', 'layers.').replace('stem.', 'patch_embed.').replace('norm3.', 'norm.')
            assert torch.equal(value, theirs[source]), name


def test_bias_tables_of_a_checkpoint_are_resized():
    small, large = perturb(build(NETWORKS['swin'], window_size=5)), build(NETWORKS['swin'], window_size=7)
    large.load_state_dict(small.state_dict())
    table = small.stages[0].blocks[1].attn.relative_position_bias_table
    found = large.stages[0].blocks[1].attn.relative_position_bias_table
    expected = F.interpolate(table.T.reshape(1, 2, 9, 9), (13, 13), mode='bicubic', align_corners=False)
    torch.testing.assert_close(found, expected.flatten(2)[0].T)


def test_deprecated_name_and_argument():
    with pytest.warns(DeprecationWarning, match='ScaledSwin is deprecated .*use Swin'):
        model = MODELS.build(dict(type='ScaledSwin', remedies=('feat_scale',), **SMALL))
    assert type(model) is fcvit_mm.Swin
    assert any('feat_scale' in name for name, _ in model.named_parameters())
    assert fcvit_mm.models.scaled.ScaledSwin is fcvit_mm.ScaledSwin
