"""Times of complete models and of their components."""

import json

import pytest
import torch
from harness import LIBRARIES, ROOT

from fcvit_mm.errors import UserError


@pytest.mark.parametrize(
    'task, config, part',
    [
        ('detection', 'mask_rcnn_fcvit_tiny_shapes', 'mask head'),
        ('detection', 'retinanet_fcvit_b12_coco', 'dense head'),
        ('segmentation', 'upernet_fcvit_tiny_shapes', 'head'),
    ],
)
def test_components_of_detectors_and_segmentors_are_timed(load, capsys, tmp_path, task, config, part):
    pytest.importorskip(LIBRARIES[task])
    out = tmp_path / 'times.json'
    path = ROOT / 'configs' / task / f'{config}.py'
    load('whole_models').main([str(path), '--size', '64x96', '--rounds', '1', '--out', str(out)])
    rows = json.loads(out.read_text())['rows']
    assert list(rows) == [f'{config}, {way}' for way in ('as_built', 'channels_last_fused', 'optimized')]
    for row in rows.values():
        (times,) = row['rounds']
        assert 0 < times['backbone'] + times[part] < times['total'] and times['clock'] > 0
    assert len({row['objects'] for row in rows.values()}) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'| {config}, optimized |')


def test_logits_get_the_given_mean_and_deviation(load):
    module = load('whole_models')
    torch.manual_seed(0)
    model, images = torch.nn.Sequential(), torch.randn(1, 3, 40, 40)
    model.add_module('retina_cls', torch.nn.Conv2d(3, 9, 3))
    module.spread_logits(model, images)
    mean, spread = module.LOGITS['retina_cls']
    assert model(images).std().item() == pytest.approx(spread, rel=1e-3)
    assert model(images).mean().item() == pytest.approx(mean, abs=0.1)


def test_classifiers_are_refused(load, tmp_path):
    pytest.importorskip('mmpretrain')
    path = ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py'
    with pytest.raises(UserError, match='is for classification, expected a detector or segmentor'):
        load('whole_models').main([str(path), '--out', str(tmp_path / 'a.json')])


def test_networks_are_compiled_but_not_postprocessing(load, monkeypatch):
    pytest.importorskip('mmdet')
    from fcvit_mm.engine.config import load_config

    module, compiled = load('whole_models'), []
    monkeypatch.setattr(module, 'let_compile_all', lambda freeze: compiled.append(freeze))
    monkeypatch.setattr(
        torch, 'compile', lambda function: compiled.append(type(function.__self__).__name__) or function
    )
    module.compiled(module.build(load_config(str(ROOT / 'configs' / 'detection' / 'mask_rcnn_fcvit_tiny_shapes.py'))))
    assert compiled == [True, 'FCViT', 'FPN', 'RPNHead', 'Shared2FCBBoxHead', 'FCNMaskHead']
