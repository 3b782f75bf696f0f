import pytest
import torch.nn as nn
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from fcvit_mm import FCViT
from fcvit_mm.errors import UserError

ARCH = {'depths': (1, 1, 2, 1), 'channels': (8, 16, 24, 32), 'mlp_ratios': (1, 1, 1, 1)}
# stem, 1 + 1 + 2 + 1 blocks, then norms and whatever follows the backbone
LAYERS = 7


class Model(nn.Module):
    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = backbone or FCViT(ARCH)
        self.head = nn.Linear(4, 2)


def build(model, **paramwise):
    return build_optim_wrapper(
        model,
        {
            'optimizer': {'type': 'SGD', 'lr': 1.0, 'weight_decay': 0.1},
            'constructor': 'BackboneLayerDecayConstructor',
            'paramwise_cfg': paramwise,
        },
    )


def groups_by_name(model, wrapper):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in wrapper.optimizer.param_groups for parameter in group['params']}


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_learning_rate_falls_from_head_to_stem(scope):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    model = Model()
    with DefaultScope.overwrite_default_scope(scope):
        groups = groups_by_name(model, build(model, layer_decay_rate=0.5))
    assert groups.keys() == dict(model.named_parameters()).keys()
    expected = {
        'backbone.stem.proj.weight': 0,
        'backbone.stages.0.blocks.0.layer_scale1': 1,
        'backbone.stages.2.downsample.proj.weight': 3,
        'backbone.stages.2.blocks.1.norm1.weight': 4,
        'backbone.stages.3.blocks.0.norm1.bias': 5,
        'backbone.norm3.weight': 6,
        'head.weight': 6,
    }
    for name, layer in expected.items():
        assert groups[name]['lr'] == pytest.approx(0.5 ** (LAYERS - 1 - layer)), name


def test_other_paramwise_options_still_work():
    model = Model()
    groups = groups_by_name(
        model, build(model, layer_decay_rate=0.5, norm_decay_mult=0.0, custom_keys={'stem': {'lr_mult': 10.0}})
    )
    assert groups['backbone.norm0.weight']['weight_decay'] == 0
    assert groups['head.weight']['weight_decay'] == pytest.approx(0.1)
    assert groups['backbone.stem.proj.weight']['lr'] == pytest.approx(10 * 0.5**6)


def test_wrapped_model_and_frozen_stages():
    model = Model(FCViT(ARCH, frozen_stages=1))
    wrapper = nn.Module()
    wrapper.module = model
    groups = groups_by_name(model, build(wrapper, layer_decay_rate=0.5))
    assert 'backbone.stem.proj.weight' not in groups
    assert groups['backbone.stages.3.blocks.0.norm1.bias']['lr'] == pytest.approx(0.5)


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9', True])
def test_refuses_invalid_rate(rate):
    with pytest.raises(UserError, match=rf'layer_decay_rate={rate!r}, expected a number above 0 and at most 1'):
        build(Model(), layer_decay_rate=rate)


def test_refuses_backbone_without_depth():
    with pytest.raises(UserError, match='get_layer_depth.*Identity'):
        build(Model(nn.Identity()), layer_decay_rate=0.9)


def test_refuses_optimizer_without_learning_rate():
    with pytest.raises(UserError, match='optim_wrapper.optimizer has no lr, expected the learning rate .*: set it'):
        build_optim_wrapper(
            Model(),
            {
                'optimizer': {'type': 'SGD'},
                'constructor': 'BackboneLayerDecayConstructor',
                'paramwise_cfg': {'layer_decay_rate': 0.9},
            },
        )
