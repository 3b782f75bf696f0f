import pickle
import re
import shutil
import sys

import cv2
import pytest
import torch
from harness import call_tool, load_tool, run_tool, write_config

import fcvit_mm
from fcvit_mm.engine import run
from fcvit_mm.engine.config import load_config
from fcvit_mm.preflight.checks import PreflightError


def images(folder):
    return sorted(path for path in folder.rglob('*') if path.suffix in ('.png', '.jpg'))


def test_classifier_with_tta_and_out(trained, tmp_path):
    result = trained('classification')
    shutil.copytree(result.work_dir, tmp_path / 'w')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--tta',
        '--out',
        tmp_path / 'out.pkl',
        cwd=tmp_path,
        python=sys.executable,  # a fresh interpreter, as for a user
    )
    assert 'accuracy/top1' in done.stdout
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 5 and predictions[0]['pred_score'].shape == (5,)
    # The config of the training run in the work directory is not overwritten.
    config = (tmp_path / 'w' / 'classification.py').read_text()
    assert config == (result.work_dir / 'classification.py').read_text() and "type='ImageClassifier'" in config


def test_detector_with_out_and_show_dir(trained, tmp_path):
    result = trained('detection')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--out',
        tmp_path / 'out.pkl',
        '--show-dir',
        'shown',
        cwd=tmp_path,
    )
    assert 'coco/bbox_mAP' in done.stdout and 'coco/segm_mAP' in done.stdout
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 5 and 'masks' in predictions[0]['pred_instances']
    assert len(images(tmp_path / 'shown')) == 5
    (config,) = (tmp_path / 'w').rglob('*.py')
    assert config.parent.name == 'vis_data' and 'DumpDetResults' in config.read_text()  # the config of the test


def test_segmentor_with_tta_out_and_show_dir(trained, tmp_path):
    result = trained('segmentation')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--tta',
        '--out',
        tmp_path / 'maps',
        '--show-dir',
        'shown',
        cwd=tmp_path,
    )
    assert 'mIoU' in done.stdout
    maps = images(tmp_path / 'maps')
    assert len(maps) == 5 and len(images(tmp_path / 'shown')) == 5
    # As in the data set: 0 is ignored, and 1 to 6 are the classes.
    values = cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED)
    assert values.shape == (64, 64) and values.min() >= 1 and values.max() <= 6


def test_published_weights_by_name(trained, tmp_path, monkeypatch):
    """A detector in the format of mmdet 2 with published key names, in the folder FCVIT_MM_WEIGHTS."""
    result = trained('detection')
    state_dict = torch.load(result.checkpoint, weights_only=False)['state_dict']
    backbone = fcvit_mm.FCViT('tiny').state_dict()
    heads = {key: value for key, value in state_dict.items() if not key.startswith('backbone.')}
    theirs = fcvit_mm.FCViT.published_names.to_published(backbone)
    meta = dict(mmdet_version='2.19.0', epoch=12, CLASSES=('circle', 'cross', 'square', 'star', 'triangle'))
    content = dict(meta=meta, state_dict={**{f'backbone.{key}': value for key, value in theirs.items()}, **heads})
    torch.save(dict(content, optimizer=dict(state={}, param_groups=[])), tmp_path / 'mine.pth')
    (tmp_path / 'mine.py').write_text(
        'from fcvit_mm.checkpoints import PublishedWeights, register_published\n'
        "register_published(PublishedWeights('mine', 'fcvit_tiny', 'detector', 'detection.py', 'https://a.b', 'x'))\n"
    )
    more = "custom_imports = dict(imports=['fcvit_mm', 'mine'], allow_failed_imports=False)\n"
    config = write_config('detection', tmp_path, result.data, f"\nmodel['backbone'].pop('arch')\n{more}")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(tmp_path))
    done = run_tool('test.py', config, 'published:mine', cwd=tmp_path)
    assert 'coco/bbox_mAP' in done.stdout and 'Loads checkpoint by published backend' in done.stdout


def test_checkpoint_in_the_format_of_timm(trained, tmp_path, monkeypatch):
    """MMEngine alone would load none of these weights."""
    result = trained('classification')
    state_dict = torch.load(result.checkpoint, weights_only=False)['state_dict']
    torch.save({'model': {f'_orig_mod.{key}': value for key, value in state_dict.items()}}, tmp_path / 'model.pth')
    cfg = load_config(result.config, work_dir=str(tmp_path))
    loaded = []

    def tested(runner):
        runner.load_or_resume()
        loaded.append(runner.model.state_dict())
        return {}

    monkeypatch.setattr('mmengine.runner.Runner.test', tested)
    run.test(cfg, str(tmp_path / 'model.pth'))
    assert all(torch.equal(value.cpu(), state_dict[key].cpu()) for key, value in loaded[0].items())


def test_checkpoint_of_another_model_is_refused(trained, tmp_path):
    result = trained('classification')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.backbone.arch=b12',
        'model.head.in_channels=512',
        check=False,
    )
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert re.search('does not fit the config: .* have another shape .*convert_checkpoint.py', done.stdout)


def test_preflight_can_be_skipped(shapes, tmp_path, monkeypatch):
    """Only the test itself is replaced."""
    pytest.importorskip('mmdet')
    config = write_config('detection', tmp_path, shapes('detection'), 'test_evaluator.update(type="NoSuchMetric")\n')
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    tool = load_tool('test.py')
    tested = []
    monkeypatch.setattr('fcvit_mm.engine.run.test', lambda cfg, checkpoint: tested.append(checkpoint))
    arguments = [config, tmp_path / 'a.pth']
    with pytest.raises(PreflightError, match='test_evaluator: NoSuchMetric cannot be built: .* Correct the name'):
        call_tool(tool, arguments)
    assert not tested
    call_tool(tool, [*arguments, '--no-preflight'])
    assert tested == [str(tmp_path / 'a.pth')]
