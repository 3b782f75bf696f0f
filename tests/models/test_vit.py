"""ViT only: published sizes, agreement with timm, the deprecated name."""

import fcvit_mm.models.scaled
import pytest
import torch
import torch.nn as nn
from mmengine.registry import MODELS
from networks import NETWORKS
from reference import transformer_arguments

import fcvit_mm
from fcvit_mm.models.layers import count_parameters

pytest.importorskip('timm')

SMALL = dict(arch=NETWORKS['vit'].arguments['arch'])


@pytest.mark.parametrize('method, expected', [('attn_scale', 22_050_736), ('feat_scale', 22_059_880)])
def test_number_of_parameters_agrees_with_published(method, expected):
    with torch.device('meta'):
        backbone = fcvit_mm.ViT('small_12', (method,), out_type='cls_token')
        assert count_parameters(backbone) + count_parameters(nn.Linear(384, 1000)) == expected


@torch.no_grad()
def test_unmodified_network_agrees_with_timm():
    """timm's network with the same weights, under their published names, has the same output."""
    import timm

    model = fcvit_mm.ViT(**transformer_arguments('vit'), methods=()).eval()
    theirs = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict(fcvit_mm.ViT.published_names.to_published(model.state_dict()))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_deprecated_name_and_argument():
    with pytest.warns(DeprecationWarning, match='ScaledViT is deprecated .*use ViT'):
        model = MODELS.build(dict(type='ScaledViT', remedies=('feat_scale',), **SMALL))
    assert type(model) is fcvit_mm.ViT
    assert any('feat_scale' in name for name, _ in model.named_parameters())
    assert fcvit_mm.models.scaled.ScaledViT is fcvit_mm.ScaledViT
