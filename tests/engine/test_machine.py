import inspect

import pytest
from harness import ROOT
from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from torch import nn

from fcvit_mm.engine import machine, run
from fcvit_mm.engine.command_options import enable_amp
from fcvit_mm.engine.config import load_config, walk
from fcvit_mm.engine.machine import adapt_to_machine, train_in_float32_on_cpus

UPERNET = ROOT / 'configs/segmentation/upernet_fcvit_tiny_ade20k.py'


def test_settings_are_adapted_to_a_cpu(monkeypatch):
    pytest.importorskip('mmseg')
    cfg = load_config(UPERNET, {'train_dataloader.num_workers': 0, 'train_dataloader.prefetch_factor': 2})
    enable_amp(cfg)
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    adapt_to_machine(cfg)
    train_in_float32_on_cpus(cfg)
    types = [node.get('type') for node in walk(cfg.model)]
    assert 'SyncBN' not in types and types.count('BN') == 2
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper
    assert cfg.train_dataloader.persistent_workers is False and 'prefetch_factor' not in cfg.train_dataloader
    assert cfg.val_dataloader.persistent_workers is True


def test_sync_norms_become_batch_norms_on_a_cpu(monkeypatch):
    norms = [
        dict(type='MMSyncBN', stats_mode='N', eps=1e-3),
        dict(type='SyncBN', process_group=None, momentum=0.2),
        dict(type='GN', num_groups=2),
    ]
    cfg = Config(dict(model=dict(heads=[dict(norm_cfg=norm) for norm in norms])))
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    adapt_to_machine(cfg)
    assert [head.norm_cfg for head in cfg.model.heads] == [
        dict(type='BN', eps=1e-3),
        dict(type='BN', momentum=0.2),
        dict(type='GN', num_groups=2),
    ]


def test_only_training_reports_float32_on_a_cpu(monkeypatch, capsys):
    """The config of a run with mixed precision predicts with ``--amp`` on a CPU, too."""
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    for steps, logged in ((run.TESTING_STEPS, False), (run.TRAINING_STEPS[:2], True)):
        cfg = Config(dict(model=dict(type='FCViT'), optim_wrapper=dict(type='AmpOptimWrapper')))
        for step in steps:
            step(cfg)
        assert ('training runs in float32' in ''.join(capsys.readouterr())) is logged


def test_settings_are_kept_on_a_gpu(monkeypatch):
    pytest.importorskip('mmseg')
    cfg = load_config(UPERNET)
    enable_amp(cfg)
    monkeypatch.setattr(machine, 'get_device', lambda: 'cuda')
    adapt_to_machine(cfg)
    train_in_float32_on_cpus(cfg)
    assert 'SyncBN' in [node.get('type') for node in walk(cfg.model)]
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'


@pytest.mark.parametrize('content', [{}, dict(env_cfg=None)])
def test_config_without_env_cfg_gets_the_default_of_mmengine(content):
    """Its FlexibleRunner cannot be built without."""
    cfg = Config(dict(runner_type='FlexibleRunner', **content))
    adapt_to_machine(cfg)
    assert cfg.env_cfg == inspect.signature(FlexibleRunner).parameters['env_cfg'].default


def test_cpu_replaces_types_given_as_classes(monkeypatch):
    from mmengine.optim import AmpOptimWrapper

    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    cfg = Config(
        dict(model=dict(norm_cfg=dict(type=nn.SyncBatchNorm)), optim_wrapper=dict(type=AmpOptimWrapper, dtype='x'))
    )
    adapt_to_machine(cfg)
    train_in_float32_on_cpus(cfg)
    assert cfg.model.norm_cfg.type == 'BN' and cfg.optim_wrapper == dict(type='OptimWrapper')
