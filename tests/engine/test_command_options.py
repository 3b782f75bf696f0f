import re

import pytest
from harness import LIBRARIES, ROOT
from mmengine.config import Config

from fcvit_mm.engine.command_options import (
    dump_predictions,
    enable_amp,
    enable_auto_scale_lr,
    enable_tta,
    enable_visualization,
)
from fcvit_mm.engine.config import ConfigError, load_config

UPERNET = ROOT / 'configs/segmentation/upernet_fcvit_tiny_ade20k.py'


def test_options_that_the_config_does_not_support(write):
    cfg = load_config(write("default_scope = 'mmseg'\noptim_wrapper = dict(type='MyWrapper')"))
    with pytest.raises(ConfigError, match='the config has MyWrapper'):
        enable_amp(cfg)
    with pytest.raises(ConfigError, match='base_batch_size'):
        enable_auto_scale_lr(cfg)
    with pytest.raises(ConfigError, match='visualization=dict'):
        enable_visualization(cfg, 'shown')
    with pytest.raises(ConfigError, match='needs tta_model and tta_pipeline'):
        enable_tta(cfg)
    with pytest.raises(ConfigError, match='--out is maps.pkl, expected a folder for segmentation'):
        dump_predictions(cfg, 'maps.pkl')
    with pytest.raises(ConfigError, match='--out is maps, expected a file name ending in .pkl'):
        dump_predictions(Config({'default_scope': 'mmdet'}), 'maps')


@pytest.mark.parametrize('empty', [{}, dict(optim_wrapper=None, visualizer=None, test_evaluator=None)])
def test_options_for_parts_that_the_config_lacks(empty):
    hooks = dict(visualization=dict(type='SegVisualizationHook'))
    cfg = Config(dict(default_scope='mmseg', default_hooks=hooks, **empty))
    with pytest.raises(ConfigError, match='--amp needs optim_wrapper in the config, which has none'):
        enable_amp(cfg)
    with pytest.raises(ConfigError, match='--show and --show-dir need visualizer=dict'):
        enable_visualization(cfg, 'shown')
    with pytest.raises(ConfigError, match=r"--out needs test_evaluator=dict\(type='IoUMetric'\)"):
        dump_predictions(cfg, 'maps')
    with pytest.raises(ConfigError, match='--out needs test_evaluator'):
        dump_predictions(Config(dict(cfg, test_evaluator=[])), 'maps')


def test_mmpretrain_cannot_draw_with_tta():
    cfg = Config(
        {
            'default_scope': 'mmpretrain',
            'tta_model': {},
            'tta_pipeline': [],
            'default_hooks': {'visualization': {'type': 'VisualizationHook'}},
            'visualizer': {'type': 'UniversalVisualizer'},
        }
    )
    enable_visualization(cfg, 'shown')
    with pytest.raises(ConfigError, match='Omit one of them'):
        enable_tta(cfg)


def test_visualization_hooks_of_other_libraries():
    """The arguments of the hook decide; if it has none for the folder, the visualizer gets the folder."""
    pytest.importorskip('mmdet')

    def drawn(kind):
        hooks = dict(visualization=dict(type=kind))
        model = dict(type='OtherThing')
        cfg = Config(dict(default_scope='otherlab', model=model, default_hooks=hooks, visualizer=dict()))
        enable_visualization(cfg, '/shown', True, 1)
        return cfg.default_hooks.visualization, cfg.visualizer

    kind = 'OtherDrawingHook'
    assert drawn(kind) == (dict(type=kind, enable=True, interval=1, out_dir='/shown'), {})
    kind = 'OtherSavingHook'
    assert drawn(kind) == (dict(type=kind, draw=True, show=True), dict(save_dir='/shown'))
    for kind in ('EMAHook', 'NoHook'):
        with pytest.raises(
            ConfigError, match=rf'visualization \({kind}\) has no argument enable or draw: use .* otherlab'
        ):
            drawn(kind)


def test_auto_scale_lr():
    pytest.importorskip(LIBRARIES['segmentation'])
    cfg = load_config(UPERNET)
    enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr == {'enable': True, 'base_batch_size': 16}
    for given in (True, dict(base_batch_size=0), dict(base_batch_size='16')):
        text = re.escape(f'in the config, which has {given!r}: add it, or omit the option')
        with pytest.raises(ConfigError, match=rf'^--auto-scale-lr needs auto_scale_lr=dict\(base_batch_size=.*{text}$'):
            enable_auto_scale_lr(Config(dict(auto_scale_lr=given)))


@pytest.mark.parametrize(
    'scope, evaluator, expected',
    [
        ('mmdet', dict(type='A'), [dict(type='A'), dict(type='DumpDetResults', out_file_path='a.pkl')]),
        ('mmpretrain', [dict(type='A')], [dict(type='A'), dict(type='DumpResults', out_file_path='a.pkl')]),
        (None, dict(type='A'), [dict(type='A'), dict(type='DumpResults', out_file_path='a.pkl')]),
    ],
)
def test_dump_metric_is_added_to_the_evaluator(scope, evaluator, expected):
    cfg = Config(dict(default_scope=scope, test_evaluator=evaluator))
    dump_predictions(cfg, 'a.pkl')
    assert cfg.test_evaluator == expected
    nested = Config(dict(default_scope=scope, test_evaluator=dict(type='MyEvaluator', metrics=evaluator)))
    dump_predictions(nested, 'a.pkl')
    assert nested.test_evaluator == dict(type='MyEvaluator', metrics=expected)


@pytest.mark.parametrize('evaluator', [{}, dict(test_evaluator=None), dict(test_evaluator=[])])
def test_dump_metric_without_other_metrics(evaluator):
    cfg = Config(dict(default_scope='mmdet', **evaluator))
    dump_predictions(cfg, 'a.pkl')
    assert cfg.test_evaluator == [dict(type='DumpDetResults', out_file_path='a.pkl')]
