import os
import pickle
import re
import shutil
import sys

import pytest
import torch
from harness import call_tool, load_tool, run_tool, write_config
from mmengine.config import Config

from fcvit_mm.preflight.checks import PreflightError


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_trains_evaluates_and_saves(trained, task):
    result = trained(task)
    metric = {'classification': 'accuracy/top1', 'detection': 'coco/segm_mAP', 'segmentation': 'mIoU'}[task]
    assert 'loss' in result.output and metric in result.output
    content = torch.load(result.checkpoint, map_location='cpu', weights_only=False)
    assert any(key.startswith('backbone.stages.3') for key in content['state_dict'])
    assert 'circle' in content['meta']['dataset_meta']['classes']


def test_resumes_without_the_pretrained_file(trained, tmp_path):
    """In another folder, with relative paths and the default work directory."""
    result = trained('classification')
    shutil.copytree(result.work_dir, tmp_path / 'work_dirs' / 'classification')
    write_config('classification', tmp_path, result.data)
    done = run_tool(
        'train.py',
        'classification.py',
        '--resume',
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        'pretrained=gone.pth',
        cwd=tmp_path,
        python=sys.executable,  # a fresh interpreter, as for a user
    )
    assert 'resumed epoch: 1, iter: 2' in done.stdout
    # 4 images; the base batch size is 1024
    assert 'LR has been set based on' in done.stdout or 'LR is set based on batch size of 1024' in done.stdout
    assert (tmp_path / 'work_dirs' / 'classification' / 'epoch_2.pth').is_file()


def test_resume_without_a_checkpoint_needs_the_pretrained_file(trained, tmp_path):
    result = trained('classification')
    done = run_tool(
        'train.py',
        result.config,
        '--resume',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'pretrained=gone.pth',
        'train_dataloader.dataset.data_root=lost',
        check=False,
    )
    assert done.returncode == 1
    assert 'starting from scratch' in done.stdout
    # All problems are in one message, without a traceback.
    assert 'gone.pth does not exist' in done.stdout and '/lost does not exist' in done.stdout
    assert 'Traceback' not in done.stdout


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_checkpoint_with_code_is_refused_before_unpickling(trained, tmp_path, tool):
    result = trained('classification')
    torch.save({'state_dict': {}, 'meta': Bomb(tmp_path / 'boom')}, tmp_path / 'hostile.pth')
    arguments = ['--resume', tmp_path / 'hostile.pth'] if tool == 'train.py' else [tmp_path / 'hostile.pth']
    done = run_tool(tool, result.config, *arguments, '--work-dir', tmp_path / 'w', check=False)
    assert done.returncode == 1 and 'mkdir' in done.stdout and 'Rejected' in done.stdout
    assert not (tmp_path / 'boom').exists()
    # Unpickling would really run the code.
    pickle.loads(pickle.dumps(Bomb(tmp_path / 'boom')))
    assert (tmp_path / 'boom').exists()


def test_corrupt_image_is_reported_before_training(trained, tmp_path):
    result = trained('classification')
    shutil.copytree(result.data, tmp_path / 'data')
    image = tmp_path / 'data' / 'train' / 'star' / '000003.jpg'
    image.write_bytes(image.read_bytes()[:300])
    config = write_config('classification', tmp_path, tmp_path / 'data')
    done = run_tool('train.py', config, '--work-dir', tmp_path / 'w', check=False)
    assert done.returncode == 1 and f'{image} cannot be decoded' in done.stdout and 'Traceback' not in done.stdout


def test_image_corrupted_during_training_is_skipped(trained, tmp_path, monkeypatch):
    """A hook overwrites the files at the start of training, after the preflight checks."""
    result = trained('classification')
    shutil.copytree(result.data, tmp_path / 'data')
    image = tmp_path / 'data' / 'train' / 'star' / '000003.jpg'
    held_out = next((tmp_path / 'data' / 'val').rglob('*.jpg'))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    (tmp_path / 'spoil.py').write_text(f"""
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Spoil(Hook):
    def before_train(self, runner):
        for path in {[str(image), str(held_out)]!r}:
            Path(path).write_bytes(b'no image')
""")
    config = write_config(
        'classification',
        tmp_path,
        tmp_path / 'data',
        """
custom_imports = dict(imports=['fcvit_mm', 'spoil'], allow_failed_imports=False)
custom_hooks = [dict(type='Spoil')]
""",
    )
    done = run_tool('train.py', config, '--work-dir', tmp_path / 'w')
    assert f'loading {image} failed: {image} cannot be decoded' in done.stdout
    assert 'Skipped and replaced by another sample (1 of 8 so far)' in done.stdout
    assert '1 of 8 samples were skipped so far because of corrupt files, listed above' in done.stdout
    assert f'loading {held_out} failed: ' in done.stdout and 'accuracy/top1' in done.stdout
    assert 'Replaced by an empty file, which the metrics count (1 of 5 so far)' in done.stdout


def test_config_in_the_work_directory_is_complete(trained):
    """The saved config does not need its base configs."""
    result = trained('detection')
    assert Config.fromfile(result.work_dir / 'detection.py').model.roi_head.bbox_head.num_classes == 5


OWN = """
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from mmpretrain.datasets import CustomDataset

@METRICS.register_module()
class Fails(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(accuracy={}['categories'])

@DATASETS.register_module()
class FailsToo(CustomDataset):
    def __getitem__(self, index):
        raise IndexError('no row of the table for it')
"""
OWN_CONFIG = """
custom_imports = dict(imports=['fcvit_mm', 'own'], allow_failed_imports=False)
model.update(backbone=dict(arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
"""


@pytest.fixture
def config_with_errors(shapes, tmp_path, monkeypatch):
    """A small config with a user's data set and metric, which raise errors."""
    pytest.importorskip('mmpretrain')
    (tmp_path / 'own.py').write_text(OWN)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return write_config('classification', tmp_path, shapes('classification'), OWN_CONFIG)


@pytest.mark.parametrize(
    'options, message',
    [
        (['model.backbone.type=FCVit'], "cannot be built: FCVit is not in .*; did you mean 'FCViT'.*custom_imports"),
        (['model.backbone.depth=3'], "cannot be built: .*unexpected keyword argument 'depth'.*Correct the arguments"),
        (['model.backbone.arch=b99'], "cannot be built: unknown arch 'b99', expected one of"),
    ],
)
def test_invalid_configs_are_reported_without_a_traceback(config_with_errors, tmp_path, options, message):
    done = run_tool(
        'train.py', config_with_errors, '--work-dir', tmp_path / 'w', '--cfg-options', *options, check=False
    )
    assert done.returncode == 1 and 'Traceback' not in done.stdout, done.stdout
    assert re.search(f'train.py: 1 problem found before the start:\n.*{message}', done.stdout), done.stdout[-2000:]


def test_error_in_a_metric_is_reported(config_with_errors, tmp_path):
    with open(config_with_errors, 'a') as file:
        file.write("val_evaluator = dict(_delete_=True, type='Fails')\n")
    for debug in ([], ['--debug']):
        done = run_tool('train.py', config_with_errors, '--work-dir', tmp_path / 'w', *debug, check=False)
        assert done.returncode == 1
        assert (
            f"train.py: training with {config_with_errors} failed: KeyError: 'categories' (raised in own). Check"
            in done.stdout
        )
        assert ('Traceback' in done.stdout and 'compute_metrics' in done.stdout) == bool(debug)


def test_error_of_a_data_set_in_a_worker_is_reported(config_with_errors, tmp_path):
    options = ['train_dataloader.dataset.type=FailsToo', 'train_dataloader.num_workers=1']
    done = run_tool(
        'train.py', config_with_errors, '--work-dir', tmp_path / 'w', '--cfg-options', *options, check=False
    )
    assert done.returncode == 1 and 'Traceback' not in done.stdout, done.stdout
    expected = (
        r'train.py: loading sample \d of FailsToo failed: IndexError: no row of the table for it \(raised in own\)'
    )
    assert re.search(expected, done.stdout), done.stdout[-2000:]


def test_syntax_errors_are_reported(config_with_errors, tmp_path):
    done = run_tool('train.py', config_with_errors, '--cfg-options', 'a', check=False)
    assert done.returncode == 1 and 'train.py: --cfg-options is a, expected KEY=VALUE' in done.stdout
    config_with_errors.write_text('model = dict(')
    done = run_tool('train.py', config_with_errors, check=False)
    assert (
        done.returncode == 1 and f'train.py: reading {config_with_errors} (line 1) failed: SyntaxError' in done.stdout
    )


LAZY = """
from mmcv.transforms import LoadImageFromFile, Resize
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model.weight_init import PretrainedInit
from mmengine.optim import OptimWrapper
from mmpretrain.datasets import CustomDataset, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead
from torch.optim import AdamW

from fcvit_mm import FCViT
from fcvit_mm.engine import NonFiniteHook

with read_base():
    from .schedule import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=FCViT, arch=dict(
        depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1)),
        init_cfg=dict(type=PretrainedInit, checkpoint='gone.pth')),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=5, in_channels=32))
data_preprocessor = dict(num_classes=5, mean=[123., 116., 103.], std=[58., 57., 57.], to_rgb=True)
pipeline = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 64)), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=CustomDataset, data_root='DATA', data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=CustomDataset, data_root='DATA', data_prefix='val', pipeline=pipeline))
val_evaluator = dict(type=Accuracy, topk=(1,))
test_dataloader, test_evaluator = val_dataloader, val_evaluator
val_cfg, test_cfg = dict(), dict()
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=0.001))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
custom_hooks = [dict(type=EMAHook), dict(type=NonFiniteHook, action='skip')]
"""


def test_pure_python_config_is_trained_resumed_and_tested(shapes, tmp_path):
    """Its types are classes, imported lazily. They determine the default scope."""
    pytest.importorskip('mmpretrain')
    (tmp_path / 'schedule.py').write_text('train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)\n')
    config = tmp_path / 'lazy.py'
    config.write_text(LAZY.replace('DATA', str(shapes('classification'))))
    work_dir = tmp_path / 'w'
    done = run_tool('train.py', config, '--work-dir', work_dir, check=False)
    assert (
        done.returncode == 1 and 'gone.pth does not exist' in done.stdout
    )  # the type of init_cfg is recognized, so the file is checked
    done = run_tool('train.py', config, '--work-dir', work_dir, '--cfg-options', 'pretrained=None')
    assert 'accuracy/top1' in done.stdout
    assert Config.fromfile(work_dir / 'lazy.py').default_scope == 'mmpretrain'
    done = run_tool('train.py', config, '--work-dir', work_dir, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in done.stdout and (work_dir / 'epoch_2.pth').is_file()
    done = run_tool('test.py', config, work_dir / 'epoch_2.pth', '--work-dir', work_dir)
    assert 'accuracy/top1' in done.stdout


def test_preflight_can_be_skipped(shapes, tmp_path, monkeypatch):
    """Only the training itself is replaced."""
    pytest.importorskip('mmdet')
    config = write_config('detection', tmp_path, shapes('detection'), 'val_evaluator["ann_file"] = "lost.json"\n')
    tool = load_tool('train.py')
    trained = []
    monkeypatch.setattr('fcvit_mm.engine.run.train', trained.append)
    arguments = [config, '--work-dir', tmp_path / 'w']
    with pytest.raises(PreflightError, match='val_evaluator: ann_file lost.json does not exist'):
        call_tool(tool, arguments)
    assert not trained
    call_tool(tool, [*arguments, '--no-preflight'])
    assert len(trained) == 1
