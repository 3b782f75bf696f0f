"""A training step on random images finds the used outputs of the backbone and parameters without a gradient."""

import copy

import pytest
import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.logging import MessageHub
from plain_net import PlainNet

from fcvit_mm.apis import step
from fcvit_mm.apis.step import StepError, try_step, watched_outputs, without_downloads

SMALL = dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))


def segmentor(**head):
    """Return the config of a small segmentor, whose FCN head reads the output ``in_index``."""
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(512, 512)),
                backbone=dict(type='FCViT', arch=SMALL),
                decode_head=dict(
                    dict(type='FCNHead', in_channels=24, in_index=2, channels=8, num_classes=3, num_convs=1), **head
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
        )
    )


def test_unused_outputs_and_parameters_without_gradient():
    pytest.importorskip('mmseg')
    cfg = segmentor()
    before = copy.deepcopy(cfg.to_dict())
    state = torch.get_rng_state()
    found = try_step(cfg)
    assert cfg.to_dict() == before and torch.equal(torch.get_rng_state(), state)
    assert found.channels == [8, 16, 24, 32] and found.used_channels == [None, None, 24, None]
    assert found.out_indices == (0, 1, 2, 3) and found.used_indices == (2,)
    # norms of the other outputs, and the stage after the last one that is read
    assert {name.split('.')[1] for name in found.without_gradient} == {'norm0', 'norm1', 'norm3', 'stages'}
    assert all(name.startswith('backbone.stages.3.') for name in found.without_gradient if 'stages' in name)
    assert found.losses['loss'] > 0


def test_all_parameters_have_gradients_if_all_outputs_are_used():
    pytest.importorskip('mmseg')
    cfg = segmentor()
    cfg.model.backbone.out_indices, cfg.model.decode_head.in_index = (2,), 0
    found = try_step(cfg)
    assert found.used_indices == (2,) and found.without_gradient == []


def test_component_that_fails_is_named():
    pytest.importorskip('mmseg')
    with pytest.raises(StepError, match=r'^model.decode_head \(FCNHead\): RuntimeError: .*expected input') as caught:
        try_step(segmentor(in_channels=25))
    assert caught.value.part == 'model.decode_head'
    with pytest.raises(
        StepError, match=r'^model.decode_head \(FCNHead\) cannot be built: AssertionError: assert '
    ) as caught:
        try_step(segmentor(in_index=[1, 2]))
    assert caught.value.part is None


def test_current_message_hub_is_restored():
    before = MessageHub.get_current_instance()
    with step.scope_of_library(Config(dict(default_scope='mmdet'))):
        assert MessageHub.get_current_instance().get_info('epoch') == 0
    assert MessageHub.get_current_instance() is before and before.get_info('epoch') is None


def test_trial_config_has_no_downloads_and_small_images():
    pretrained = dict(type='Pretrained', checkpoint='https://somewhere/net.pth')
    cfg = Config(
        dict(
            model=dict(
                pretrained='open-mmlab://resnet50',
                backbone=dict(init_cfg=pretrained),
                neck=dict(init_cfg=[dict(type='Xavier', layer='Conv2d'), pretrained]),
                data_preprocessor=dict(
                    size=(512, 1024),
                    batch_augments=[
                        dict(type='BatchResize', scale=(512, 512)),
                        dict(type='BatchSyncRandomResize', random_size_range=(480, 800)),
                    ],
                ),
                train_cfg=dict(rcnn=[dict(sampler=dict(type='RandomSampler', num=512))], rpn=dict(num=512)),
                test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=20)),
            )
        )
    )
    model = without_downloads(cfg, 64).model
    assert model.pretrained is None and model.backbone.init_cfg is None
    assert [init.type for init in model.neck.init_cfg] == ['Xavier']
    assert model.data_preprocessor == dict(
        size=(64, 64), batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(64, 64))]
    )
    assert model.train_cfg.rcnn[0].sampler.num == model.test_cfg.rpn.nms_pre == step.PROPOSALS
    assert model.train_cfg.rpn.num == 512 and model.test_cfg.rpn.max_per_img == 20
    assert without_downloads(cfg).model.train_cfg == cfg.model.train_cfg
    assert without_downloads(cfg).model.data_preprocessor == cfg.model.data_preprocessor
    assert cfg.model.backbone.init_cfg == pretrained


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_used_outputs_of_frozen_or_missing_backbones_are_unknown():
    frozen = Model(PlainNet(frozen_stages=2))
    frozen.backbone.requires_grad_(False)
    for model in (frozen, Model(None)):
        with watched_outputs(model) as outputs:
            if model.backbone is not None:
                model.backbone(torch.rand(1, 3, 32, 32))
        assert outputs == []
        assert step.observed(model, outputs, [], {}).used_indices is None


def test_outputs_used_in_any_of_several_passes():
    model = Model(PlainNet())
    with watched_outputs(model) as outputs:
        for index in (0, 1):
            model.backbone(torch.rand(2, 3, 32, 32))[index].sum().backward()
            assert [output.used for output in outputs] == [True, index == 1]
    assert [output.channels for output in outputs] == [8, 16]
    model.backbone(torch.rand(2, 3, 32, 32))
    assert len(outputs) == 2
