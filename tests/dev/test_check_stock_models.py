"""Tests of unchanged stock models: selection, kinds of failures, log."""

import importlib
import json

import pytest
import torch
from harness import ROOT
from mmengine.config import Config

from fcvit_mm.apis.stock import find_stock
from fcvit_mm.errors import UserError
from fcvit_mm.mmcv_ext import MMCVOperatorError


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('check_stock_models')


@pytest.mark.parametrize('library, folder', [('mmdet', 'yolof'), ('mmseg', 'twins')])
def test_one_config_per_folder_is_selected(tool, library, folder):
    pytest.importorskip(library)
    names = list(tool.first_of_folders(library, folder))
    folders = [name.partition('::')[2].partition('/')[0] for name in names]
    assert folders == sorted(set(folders)) and folders[0] == folder and len(folders) < 8
    for name in names:
        find_stock(name)
    assert len(list(tool.first_of_folders(library))) > 40


def test_kinds_of_failures(tool):
    def chained(first):
        try:
            raise ValueError('outside') from first
        except ValueError as error:
            return error

    assert tool.kind_of(chained(MMCVOperatorError('box_iou_rotated'))) == 'operator'
    assert tool.kind_of(chained(ModuleNotFoundError('lap'))) == 'package or download'
    assert tool.kind_of(RuntimeError('pip install fairscale')) == 'package or download'
    assert tool.kind_of(MemoryError()) == 'memory'
    assert tool.kind_of(ValueError('shape')) == 'other'


class Model(torch.nn.Module):
    """A model that may raise an error or return an invalid loss."""

    def __init__(self, error=None, loss=1.0):
        super().__init__()
        self.error, self.loss = error, loss
        self.scale = torch.nn.Parameter(torch.ones(1))

    def data_preprocessor(self, data, training):
        return data

    def test_step(self, batch):
        if self.error:
            raise self.error
        return batch['data_samples']

    def forward(self, inputs, data_samples, mode):
        return dict(loss=self.scale * self.loss)

    def parse_losses(self, losses):
        return losses['loss'].sum(), losses


@pytest.mark.parametrize(
    'model, predicts, trains, kind',
    [
        (Model(), 'yes', 'yes', ''),
        (Model(MMCVOperatorError('convex_iou')), 'MMCVOperatorError: the operator convex_iou', 'yes', 'operator'),
        (Model(loss=float('nan')), 'yes', 'UserError: not finite: loss', 'other'),
    ],
)
def test_results_of_prediction_and_training(tool, monkeypatch, model, predicts, trains, kind):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(tool, 'build_random', lambda cfg, size: model)
    result = tool.try_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert (result.predicts.startswith(predicts), result.trains, result.kind) == (True, trains, kind)
    assert tool.try_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', training=False).trains == ''


@pytest.mark.parametrize('on_gpu', [False, True])
def test_values_of_predictions_losses_and_gradients(tool, monkeypatch, on_gpu):
    """The model returns the ground truth as its predictions."""
    pytest.importorskip('mmdet')
    devices = []

    class Watched(Model):
        def forward(self, inputs, data_samples, mode):
            devices.append(self.scale.device.type)
            return super().forward(inputs, data_samples, mode)

    monkeypatch.setattr(tool, 'build_random', lambda cfg, size: Watched(loss=3.0))
    result = tool.try_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', on_gpu=on_gpu)
    predictions, *others = result.values
    assert predictions > 0 and others == [3.0, 9.0] and devices == ['cuda' if on_gpu else 'cpu']


def test_values_of_two_logs_are_compared(tool, monkeypatch, tmp_path, capsys):
    found = {'mmdet::a/b.py': (128, (1.0, 2.0)), 'mmdet::a/c.py': (128, (0.0,)), 'mmdet::a/d.py': (128, ())}

    def answer(self, config):
        side, values = found[config]
        return tool.Result(config, 'yes', 'yes', side=side, values=values)

    monkeypatch.setattr(tool.Worker, 'try_config', answer)
    log = tmp_path / 'log.jsonl'
    tool.main([*found, '--log', str(log)])
    found['mmdet::a/b.py'] = (128, (1.0, 2.0001))
    tool.main([*found, '--compare', str(log)])
    assert 'compared: 2 configs, largest relative difference 5.0e-05\n' in capsys.readouterr().out
    found['mmdet::a/c.py'] = (128, (0.1,))
    text = r'2 configs, 1 differ by more than 0\.001 \(relative\): mmdet::a/c\.py \(1\.0e\+05\)'
    with pytest.raises(UserError, match=text):
        tool.main([*found, '--compare', str(log)])
    found['mmdet::a/c.py'] = (640, (0.1,))
    assert tool.compare([answer(None, config) for config in found], tool.read_log(log)).startswith(
        'compared: 1 configs'
    )
    assert tool.compare([], []) == 'compared: 0 configs, largest relative difference 0.0e+00'


def test_config_without_a_model_is_reported(tool):
    pytest.importorskip('mmdet')
    assert 'no model: a part of other configs' in tool.try_config('mmdet::common/ms_3x_coco.py').predicts


def test_tracking_models_get_a_video(tool):
    pytest.importorskip('mmdet')
    cfg = Config(dict(default_scope='mmdet', model=dict(data_preprocessor=dict(type='TrackDataPreprocessor'))))
    batch = tool.batch_for(cfg, 32)
    (frames,), (video,) = batch['inputs'], batch['data_samples']
    assert frames.shape == (2, 3, 32, 32) and [frame.frame_id for frame in video] == [0, 1]


def test_semi_supervised_models_are_trained_on_three_branches(tool):
    pytest.importorskip('mmdet')
    cfg = Config(dict(default_scope='mmdet', model=dict(data_preprocessor=dict(type='MultiBranchDataPreprocessor'))))
    batch = tool.batch_for(cfg, 32, training=True)
    for key, kind in (('inputs', torch.Tensor), ('data_samples', object)):
        assert list(batch[key]) == ['sup', 'unsup_teacher', 'unsup_student']
        assert all(len(part) == 2 and isinstance(part[0], kind) for part in batch[key].values())
    first, *others = (part[0] for part in batch['data_samples'].values())
    assert all(other is not first for other in others)  # models may change them in place
    assert len(tool.batch_for(cfg, 32)['inputs']) == 2  # predictions use one branch


def test_log_is_resumed(tool, monkeypatch, tmp_path, capsys):
    log = tmp_path / 'log.jsonl'
    monkeypatch.setattr(tool.Worker, 'try_config', lambda self, config: tool.Result(config, 'yes', 'yes'))
    tool.main(['mmdet::a/b.py', '--log', str(log)])
    monkeypatch.setattr(tool.Worker, 'try_config', lambda self, config: tool.Result(config, 'no', kind='operator'))
    with pytest.raises(UserError, match='an operator of mmcv is missing for mmseg::c/d.py'):
        tool.main(['mmdet::a/b.py', 'mmseg::c/d.py', '--log', str(log)])
    assert [json.loads(line)['config'] for line in log.read_text().splitlines()] == ['mmdet::a/b.py', 'mmseg::c/d.py']
    shown = capsys.readouterr().out
    assert 'mmdet: of 1 configs 1 predicted, 1 trained a step; stopped by nothing' in shown
    assert 'mmseg: of 1 configs 0 predicted, 0 trained a step; stopped by operator: 1' in shown


@pytest.mark.parametrize('size, side', [(None, 640), ((224, 224), 224), ((512, 1024), 640)])
def test_second_attempt_uses_the_size_of_the_config(tool, size, side):
    assert tool.side_of(Config(dict(model=dict(data_preprocessor=dict(type='X', size=size))))) == side


def test_missing_arguments_are_reported(tool):
    with pytest.raises(UserError, match='nothing to test: give configs, or a library with --library'):
        tool.main([])


def test_timeout_is_a_result(tool, monkeypatch):
    monkeypatch.setattr(tool, 'PRELOAD', [])
    worker = tool.Worker(0.0, training=False)
    result = worker.try_config('mmdet::no/config.py')
    assert result.kind == 'time' and worker.process is None
