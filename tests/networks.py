"""Small instances of all networks, one row each, and helpers for the tests that run on all of them.

For a row in :data:`NETWORKS`, the common tests of models, checkpoints, export and timm run. The network may belong to
this package or to any other that can be imported here.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Type, Union

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import fcvit_mm
from fcvit_mm.models import Backbone


class Network(NamedTuple):
    """A small instance of a backbone.

    Attributes:
        type (type): The backbone's class.
        arguments (dict): Arguments of a small instance that returns all its maps.
        classifier (dict): Further arguments of the backbone of a classifier, with one output.
        variant (str, optional): A variant of this class in ``fcvit_mm.models.variants``.
    """

    type: Type[Backbone]
    arguments: Dict[str, Any]
    classifier: Dict[str, Any] = dict(out_indices=-1)
    variant: Optional[str] = None


_DWNET = dict(arch=dict(depths=(1, 1, 2, 1), channels=(8, 16, 24, 32), group_channels=(2, 4, 6, 8)))
_LAYER_NORM = dict(out_indices=-1, norm_cfg=dict(type='LN'))
_CLASS_TOKEN = dict(out_type='cls_token')
METHODS = ('attn_scale', 'feat_scale')

NETWORKS = {
    'fcvit': Network(
        fcvit_mm.FCViT,
        dict(
            arch=dict(depths=(1, 1, 2, 1), channels=(16, 24, 32, 40), mlp_ratios=(8, 8, 4, 4)),
            layer_scale_init_value=1.0,
        ),
        variant='fcvit_tiny',
    ),
    'dwnet': Network(fcvit_mm.DWNet, _DWNET, _LAYER_NORM, variant='dwnet_tiny'),
    'dynamic_dwnet': Network(
        fcvit_mm.DWNet, dict(_DWNET, dynamic='homogeneous'), _LAYER_NORM, variant='dynamic_dwnet_tiny'
    ),
    'inhomogeneous_dwnet': Network(
        fcvit_mm.DWNet, dict(_DWNET, dynamic='inhomogeneous'), _LAYER_NORM, variant='inhomogeneous_dwnet_tiny'
    ),
    'vit': Network(
        fcvit_mm.ViT,
        dict(arch=dict(depths=(3,), channels=(24,), num_heads=(3,)), methods=METHODS),
        _CLASS_TOKEN,
        variant='attnscale_vit_small_12',
    ),
    'cait': Network(
        fcvit_mm.CaiT,
        dict(
            arch=dict(depths=(3, 1), channels=(24, 24), num_heads=(3, 3)), methods=METHODS, layer_scale_init_value=1.0
        ),
        _CLASS_TOKEN,
        variant='featscale_cait_xxs24',
    ),
    'swin': Network(
        fcvit_mm.Swin,
        dict(arch=dict(depths=(2, 1, 1, 1), channels=(12, 24, 24, 48), num_heads=(2, 4, 4, 4)), methods=METHODS),
        variant='attnscale_swin_small',
    ),
}

#: Options of FCViT, for a small instance with each.
FCVIT_OPTIONS: Dict[str, Dict[str, Any]] = {
    'default': {},
    'one_mix': dict(kernel_sizes=(11,)),
    'mix5x7': dict(kernel_sizes=[5, 7]),
    'single_fc': dict(token_mix_reduction=1),
    'narrow_fc': dict(token_mix_reduction=4, token_mix_min_channels=4),
    'no_global_context': dict(global_context=False),
    'no_compete': dict(compete=False),
    'unweighted': dict(weighted=False),
    'context_reduction': dict(context_reduction=4),
    'no_dwconv': dict(channel_mixer_dwconv=False),
    'spatial_attention': dict(spatial_attention=True),
    'channel_attention': dict(channel_attention=True),
    'no_layer_scale': dict(layer_scale_init_value=None),
    'gray': dict(in_channels=1),
    'dropout': dict(drop_rate=0.1, drop_path_rate=0.1),
    'one_head': dict(arch=dict(NETWORKS['fcvit'].arguments['arch'], num_heads=1)),
}


def build(network: Network, **options: Any) -> Backbone:
    """Build a network with reproducible weights; ``options`` extend or replace its arguments."""
    torch.manual_seed(0)
    return network.type(**{**network.arguments, **options})


def build_fcvit(**options: Any) -> fcvit_mm.FCViT:
    """Build the small FCViT with layer scales for which the gradients of all parts are far from 0."""
    return build(NETWORKS['fcvit'], **{'layer_scale_init_value': 0.1, **options})


def publish(model: Backbone) -> Dict[str, Tensor]:
    """Return the weights of a backbone with the published names, or with its own if there are no published ones."""
    names = type(model).published_names
    return names.to_published(model.state_dict()) if names else dict(model.state_dict())


def images(*size: int, batch: int = 2, channels: int = 3) -> Tensor:
    """Return reproducible random images ``(batch, channels, *size)``."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomize_norms(model: nn.Module) -> nn.Module:
    """Randomize norms, scales and running statistics, and set evaluation mode."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@torch.no_grad()
def perturb(model: nn.Module) -> nn.Module:
    """Add noise to all parameters, because some initial values are 0 or 1."""
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def attn_scale_matrix(q: Tensor, k: Tensor, lamb: Tensor, add: Union[float, Tensor] = 0.0) -> Tensor:
    """Return the attention matrix of AttnScale as defined in the paper: the deviation from the mean is scaled."""
    attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + add).softmax(-1)
    share = 1 / k.shape[-2]
    return share + (attention - share) * (1 + lamb[:, None, None])


def assert_all_grads(model: nn.Module) -> None:
    """Assert that every parameter that is not frozen has a finite gradient."""
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-5) -> None:
    """Assert that the outputs of two networks agree."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


# -- networks for the analyses, also of other libraries --------------------------------------------------------------

_TOKENS = dict(depths=(3,), channels=(32,), num_heads=(4,))


def fcvit(**options: Any) -> fcvit_mm.FCViT:
    arch = dict(depths=(1, 1, 2, 1), channels=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2), num_heads=4)
    return fcvit_mm.FCViT(arch, kernel_sizes=(3, 3), layer_scale_init_value=1.0, **options)


def vit(**options: Any) -> fcvit_mm.ViT:
    return fcvit_mm.ViT(_TOKENS, methods=METHODS, img_size=32, patch_size=8, **options)


def cait() -> fcvit_mm.CaiT:
    return fcvit_mm.CaiT(
        dict(depths=(2, 1), channels=(32, 32), num_heads=(4, 4)),
        methods=METHODS,
        img_size=32,
        patch_size=8,
        out_type='cls_token',
        layer_scale_init_value=1.0,
    )


def swin() -> fcvit_mm.Swin:
    return fcvit_mm.Swin(
        dict(depths=(2, 2, 2, 2), channels=(16, 16, 32, 32), num_heads=(2, 2, 4, 4)), methods=METHODS, window_size=4
    )


def timm_vit() -> nn.Module:
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


def timm_cait() -> nn.Module:
    timm = pytest.importorskip('timm')
    return timm.create_model(
        'cait_xxs24_224', img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=3, init_values=1.0
    )


def mmpretrain_vit() -> nn.Module:
    models = pytest.importorskip('mmpretrain.models')
    return models.VisionTransformer(
        dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64), img_size=32, patch_size=8
    )


def mmpretrain_deit() -> nn.Module:
    models = pytest.importorskip('mmpretrain.models')
    return models.DistilledVisionTransformer(
        dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64), img_size=32, patch_size=8
    )


TRANSFORMERS = {make.__name__: make for make in (vit, cait, swin, timm_vit, timm_cait, mmpretrain_vit, mmpretrain_deit)}


def build_random(make: Any, **options: Any) -> nn.Module:
    """Build a network in evaluation mode in which every parameter has an effect: no scale is 0, no norm is 1."""
    torch.manual_seed(0)
    model = make(**options)
    model.eval()  # returns None in mmpretrain
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (5.0 if name.endswith('lamb') else 0.1))
    return model


class Convs(nn.Module):
    """Convolutions, without attention or similarity."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


TOY_CLASSES = ('daisy', 'dandelion', 'rose')


class Toy(nn.Module):
    """A classifier of three classes: a convolution, the mean over the positions, a linear layer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1)])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.blocks[0](x).mean((2, 3)))
