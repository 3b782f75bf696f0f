"""CaiT only: class attention, the deprecated name."""

import fcvit_mm.models.scaled
import pytest
import torch
from mmengine.registry import MODELS
from networks import NETWORKS, build, images, perturb

import fcvit_mm

pytest.importorskip('timm')

SMALL = dict(arch=NETWORKS['cait'].arguments['arch'])


@torch.no_grad()
def test_class_attention_does_not_change_the_patch_tokens():
    model = perturb(build(NETWORKS['cait'], out_type='cls_token')).eval()
    tokens, grid = model.forward_tokens(images(64, 64))
    assert model.patches(tokens) is tokens and tokens.shape[1] == grid[0] * grid[1], 'no class token among the patches'
    token = model.class_token(tokens)
    torch.testing.assert_close(model(images(64, 64))[0], model.norm(token))
    torch.testing.assert_close(model.class_token(tokens.flip(1)), token, rtol=1e-4, atol=1e-5)


def test_deprecated_name_and_argument():
    with pytest.warns(DeprecationWarning, match='ScaledCaiT is deprecated .*use CaiT'):
        model = MODELS.build(dict(type='ScaledCaiT', remedies=('feat_scale',), **SMALL))
    assert type(model) is fcvit_mm.CaiT
    assert any('feat_scale' in name for name, _ in model.named_parameters())
    assert fcvit_mm.models.scaled.ScaledCaiT is fcvit_mm.ScaledCaiT
