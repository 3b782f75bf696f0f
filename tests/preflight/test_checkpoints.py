import re
from contextlib import suppress

import pytest
import torch
from harness import LIBRARIES
from problems import only_training_problem as only_problem

from fcvit_mm.apis.load import build_model
from fcvit_mm.preflight.checkpoints import load_from_problems
from fcvit_mm.preflight.checks import PreflightError, check_testing, check_training


def test_invalid_checkpoint_to_test_is_reported(make_config, tmp_path):
    cfg, _ = make_config('classification')
    path = tmp_path / 'cut.pth'
    torch.save({'state_dict': {'a': torch.zeros(1000)}}, path)
    check_testing(cfg, str(path))
    path.write_bytes(path.read_bytes()[:1500])
    for checkpoint, message in [
        (str(path), 'cut.pth .* is corrupt or truncated'),
        ('no.pth', 'no.pth does not exist'),
        ('s3://host/x.pth', 's3://host/x.pth is a URL, expected a path, http.*: download the file'),
        ('http://127.0.0.1:9/x.pth', r'x.pth could not be downloaded: .*\. Check the URL, or download the file your'),
    ]:
        with pytest.raises(PreflightError, match=message):
            check_testing(cfg, checkpoint)


@pytest.mark.parametrize('content', [{'state_dict': None}, {'state_dict': [torch.ones(1)]}], ids=['nothing', 'a list'])
def test_checkpoint_with_something_else_under_state_dict(make_config, tmp_path, content):
    cfg, _ = make_config('classification')
    path = str(tmp_path / 'a.pth')
    torch.save(content, path)
    cfg.load_from = path
    assert re.search(r'load_from: 0 of .*a\.pth: it has nothing', only_problem(cfg))
    cfg.resume = True
    assert 'a.pth contains weights but no training state' in only_problem(cfg)
    cfg.resume, cfg.load_from = False, None
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    assert 'a.pth contains no tensors, only state_dict' in only_problem(cfg)


def test_detector_whose_weights_a_model_renames_when_it_loads_them(make_config, tmp_path):
    """Training of mmdet's SoftTeacher may start from a detector."""
    pytest.importorskip('mmdet')
    cfg, _ = make_config('detection')
    cfg.load_from = str(tmp_path / 'a.pth')
    torch.save({'state_dict': build_model(cfg).state_dict()}, cfg.load_from)
    cfg.model = dict(type='SoftTeacher', detector=cfg.model, semi_train_cfg=dict(freeze_teacher=True))
    assert hasattr(build_model(cfg), 'student') and load_from_problems(cfg) == []


@pytest.mark.parametrize('container', ['state_dict', 'model'])
def test_weights_with_nan_in_any_container(make_config, tmp_path, container):
    cfg, _ = make_config('classification')
    cfg.load_from = str(tmp_path / 'a.pth')
    torch.save({container: {'head.fc.bias': torch.tensor([1.0, torch.nan])}}, cfg.load_from)
    assert 'a.pth contains NaN or infinite values in 1 of 1 tensors (head.fc.bias)' in only_problem(cfg)


def test_pretrained_file_is_not_checked_with_load_from(make_config, tmp_path):
    cfg, _ = make_config('classification', {'pretrained': 'gone.pth'})
    cfg.load_from = str(tmp_path / 'a.pth')
    torch.save(build_model(cfg).state_dict(), cfg.load_from)
    check_training(cfg)
    cfg.load_from = None
    assert 'gone.pth does not exist' in only_problem(cfg)


def test_checkpoint_without_matching_weights(make_config, tmp_path):
    """One matching weight is enough, in any format of checkpoint."""
    cfg, _ = make_config('classification')
    path = str(tmp_path / 'a.pth')
    cfg.load_from = path
    weights = build_model(cfg).state_dict()
    name = next(key for key in weights if key.startswith('backbone.stages.0') and key.endswith('weight'))
    for content, message in [
        ({key.partition('.')[2]: value for key, value in weights.items()}, f'0 of {len(weights)} values .*it has '),
        ({'state_dict': {f'model.{name}': weights[name]}}, f'it has model.{name}, the model backbone'),
        ({'model': {name: torch.zeros(1, 2, 3)}}, f'their shapes differ .{name}'),
    ]:
        torch.save(content, path)
        found = only_problem(cfg)
        assert re.search(f'load_from: .*{message}', found), found
        assert f'--cfg-options load_from=None pretrained={path}; for other files: tools/convert_checkpoint' in found
    for content in ({'model': {name: weights[name]}}, {'state_dict': {f'module.{name}': weights[name]}}):
        torch.save(content, path)
        check_training(cfg)


def test_resuming_from_a_folder(make_config, tmp_path):
    """Only the strategies of FlexibleRunner can read a folder."""
    cfg, _ = make_config('classification', {'pretrained': None})
    cfg.resume, cfg.load_from = True, str(tmp_path)
    assert f'--resume: {tmp_path} is a directory: give the path of a checkpoint file in it' in only_problem(cfg)
    cfg.merge_from_dict(dict(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy')))
    check_training(cfg)


def test_resuming_from_an_invalid_checkpoint(make_config, tmp_path):
    cfg, _ = make_config('classification', {'pretrained': 'not_needed.pth'})
    path = str(tmp_path / 'a.pth')
    cfg.resume, cfg.load_from = True, path
    torch.save({'state_dict': {}}, path)
    assert 'contains weights but no training state' in only_problem(cfg)
    content = {'state_dict': {}, 'optimizer': {}, 'meta': {'epoch': 1, 'iter': 1, 'config': 'import os'}}
    torch.save(content, path)
    assert f'--resume: {path} has no message_hub, which MMEngine resumes from' in only_problem(cfg)
    # MMEngine would execute this text.
    torch.save({**content, 'message_hub': {}}, path)
    assert 'contains a config, which MMEngine would execute' in only_problem(cfg)


def test_checkpoint_with_a_part_of_the_backbone(make_config, tmp_path, logged):
    cfg, _ = make_config('classification')
    cfg.load_from = str(tmp_path / 'a.pth')
    weights = build_model(cfg).state_dict()
    torch.save(dict(state_dict={name: value for name, value in weights.items() if 'norm3' not in name}), cfg.load_from)
    check_training(cfg)
    assert not any('load_from' in line for line in logged)
    torch.save(dict(state_dict={key: value for key, value in weights.items() if 'stages.2' not in key}), cfg.load_from)
    check_training(cfg)
    (line,) = [line for line in logged if 'load_from' in line]
    assert re.match(r'load_from: (\d+) of \d+ values of the backbone are missing in .*a.pth or have another', line)
    assert 'start at random (backbone.stages.2.' in line and line.endswith('Is it of another variant?')


def test_checkpoint_of_a_deeper_backbone(make_config, tmp_path, logged):
    cfg, _ = make_config('classification')
    cfg.load_from = str(tmp_path / 'a.pth')
    weights = build_model(cfg).state_dict()
    deeper = {
        key.replace('stages.2.blocks.0', f'stages.2.blocks.{7 + i}'): weights[key] for i in (0, 1) for key in weights
    }
    torch.save(dict(state_dict={**weights, **deeper}), cfg.load_from)
    check_training(cfg)
    (line,) = [line for line in logged if 'load_from' in line]
    assert 'a.pth has 2 more blocks than the model, which are not loaded (backbone.stages.2.blocks.7, ' in line


def test_checkpoint_without_the_backbone(make_config, tmp_path, logged):
    cfg, _ = make_config('classification')
    cfg.load_from = str(tmp_path / 'a.pth')
    weights = {name: value for name, value in build_model(cfg).state_dict().items() if 'head' in name}
    torch.save({**weights, **{f'net.{name}': value for name, value in weights.items()}}, cfg.load_from)
    assert load_from_problems(cfg) == []
    (line,) = [line for line in logged if line.startswith('load_from: ')]
    number = line.split()[1]
    assert f'{number} of {number} values of the backbone are missing' in line
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='another.pth')
    assert load_from_problems(cfg) == []
    assert logged == [line]


@pytest.mark.parametrize('use', ['test', 'resume', 'load_from', 'pretrained'])
@pytest.mark.parametrize('task', LIBRARIES)
def test_images_normalized_in_another_way_than_in_training(make_config, tmp_path, logged, task, use):
    cfg, _ = make_config(task, {'train_cfg.max_epochs': 2} if task != 'segmentation' else None)
    path = str(tmp_path / 'a.pth')
    meta = dict(cfg=cfg.pretty_text, epoch=1, iter=2)
    content = dict(state_dict=build_model(cfg).state_dict(), meta=meta, optimizer={}, message_hub={})
    torch.save(content, path)

    def check():
        cfg.load_from, cfg.resume = path if use in ('resume', 'load_from') else None, use == 'resume'
        if use == 'pretrained':
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
        with suppress(PreflightError):  # about the state of the optimizer
            check_testing(cfg, path) if use == 'test' else check_training(cfg)
        found = [text for text in logged if 'was trained on images with' in text]
        logged.clear()
        return found

    assert check() == []
    node = cfg.data_preprocessor if task == 'classification' else cfg.model.data_preprocessor
    node['to_rgb' if task == 'classification' else 'bgr_to_rgb'] = False
    assert check() == [
        f'{path} was trained on images with mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], RGB, but the '
        'config has mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], BGR in data_preprocessor: give it the '
        'values of the checkpoint (to_rgb or bgr_to_rgb for RGB), unless this is intended'
    ]
    node.update(mean=[0.0] * 3, std=[255.0] * 3)
    assert 'but the config has mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], BGR in' in check()[0]


def test_resuming_with_another_model(make_config, tmp_path):
    cfg, _ = make_config('classification')
    cfg.load_from = str(tmp_path / 'a.pth')
    weights = build_model(cfg).state_dict()
    torch.save(dict(state_dict=weights, optimizer={}, message_hub={}, meta=dict(epoch=1, iter=2)), cfg.load_from)
    cfg.resume = True
    check_training(cfg)
    cfg.model.backbone.arch.channels = (32, 64, 160, 256)
    cfg.model.head.in_channels = 256
    problem = only_problem(cfg)
    assert 'a.pth does not fit the config: ' in problem and f'--cfg-options load_from={cfg.load_from}' in problem
