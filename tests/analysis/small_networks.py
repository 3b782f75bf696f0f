"""Small networks of every kind that the analyses take, with weights that leave no part of them at its neutral start."""

import pytest
import torch
import torch.nn as nn

from fcvit_mm import CaiT, FCViT, Swin, ViT

PLAIN = dict(depths=(3,), channels=(32,), num_heads=(4,))
METHODS = ('attn_scale', 'feat_scale')


def fcvit(**options):
    arch = dict(depths=(1, 1, 2, 1), channels=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2), num_heads=4)
    return FCViT(arch, kernel_sizes=(3, 3), layer_scale_init_value=1.0, **options)


def vit(**options):
    return ViT(PLAIN, methods=METHODS, img_size=32, patch_size=8, **options)


def cait():
    return CaiT(
        dict(depths=(2, 1), channels=(32, 32), num_heads=(4, 4)),
        methods=METHODS,
        img_size=32,
        patch_size=8,
        out_type='cls_token',
        layer_scale_init_value=1.0,
    )


def swin():
    return Swin(
        dict(depths=(2, 2, 2, 2), channels=(16, 16, 32, 32), num_heads=(2, 2, 4, 4)), methods=METHODS, window_size=4
    )


def timm_vit():
    timm = pytest.importorskip('timm')
    return timm.create_model(
        'vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        depth=3,
        embed_dim=32,
        num_heads=4,
        num_classes=3,
        reg_tokens=2,
        qk_norm=True,
    )


def timm_cait():
    timm = pytest.importorskip('timm')
    return timm.create_model(
        'cait_xxs24_224', img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=3, init_values=1.0
    )


def mmpretrain_vit():
    models = pytest.importorskip('mmpretrain.models')
    return models.VisionTransformer(
        dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64), img_size=32, patch_size=8
    )


def mmpretrain_deit():
    models = pytest.importorskip('mmpretrain.models')
    return models.DistilledVisionTransformer(
        dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64), img_size=32, patch_size=8
    )


TRANSFORMERS = {make.__name__: make for make in (vit, cait, swin, timm_vit, timm_cait, mmpretrain_vit, mmpretrain_deit)}


def build(make, **options):
    """A network in evaluation mode in which every parameter counts: methods and tables are not 0, norms not 1."""
    torch.manual_seed(0)
    model = make(**options)
    model.eval()  # gives no model back in mmpretrain
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (5.0 if name.endswith('lamb') else 0.1))
    return model


class Plain(nn.Module):
    """A network that no analysis of attention or similarity applies to."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Flatten())

    def forward(self, x):
        return self.blocks(x)
