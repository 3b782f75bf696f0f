"""``output_stride``: dilated last stages with the same weights."""

import pytest
import torch
import torch.nn as nn
from networks import NETWORKS, build, images, randomize_norms

from fcvit_mm.models.fcvit import GlobalContext
from fcvit_mm.models.layers import GroupNorm1

NAMES = [name for name, network in NETWORKS.items() if hasattr(network.type, 'strides')]


def make_local(name, **options):
    """Build a network without its operations on complete maps, whose results change with the number of positions."""
    model = randomize_norms(build(NETWORKS[name], **options))
    for module_name, module in list(model.named_modules()):
        if isinstance(module, (GroupNorm1, GlobalContext)) or type(module).__name__ == 'FeatScale':
            parent, _, leaf = module_name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model


@pytest.mark.parametrize('output_stride', [16, 8, 4])
@pytest.mark.parametrize('size', [(64, 64), (70, 45)])
@pytest.mark.parametrize('name', [name for name in NAMES if name != 'dynamic_dwnet'])
@torch.no_grad()
def test_dilated_outputs_agree_at_undilated_positions(name, output_stride, size):
    model, dilated = make_local(name).double(), make_local(name, output_stride=output_stride).double()
    dilated.load_state_dict(model.state_dict())
    x = images(*size).double()
    assert dilated.out_strides == tuple(min(stride, output_stride) for stride in model.out_strides)
    for stride, y, expected in zip(model.out_strides, dilated(x), model(x)):
        assert y.shape[2:] == tuple(-(-side // min(stride, output_stride)) for side in size)
        step = max(stride // output_stride, 1)
        torch.testing.assert_close(y[:, :, ::step, ::step], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_trains_and_loads(name):
    model = build(NETWORKS[name], output_stride=8).train()
    model.load_state_dict(build(NETWORKS[name]).state_dict())
    outputs = model(images(50, 71))
    assert [y.shape[2:] for y in outputs] == [(13, 18), (7, 9), (7, 9), (7, 9)]
    sum(y.square().mean() for y in outputs).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_invalid_output_stride_is_refused():
    with pytest.raises(ValueError, match=r'output_stride is 7, expected one of \(4, 8, 16, 32\)'):
        build(NETWORKS['fcvit'], output_stride=7)
