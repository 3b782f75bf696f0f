import os
import pickle
import shutil

import pytest
import torch
from harness import run_tool, write_config
from mmengine.config import Config


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_trains_evaluates_and_saves(trained, task):
    result = trained(task)
    metric = {'classification': 'accuracy/top1', 'detection': 'coco/segm_mAP', 'segmentation': 'mIoU'}[task]
    assert 'loss' in result.output and metric in result.output
    content = torch.load(result.checkpoint, map_location='cpu', weights_only=False)
    assert any(key.startswith('backbone.stages.3') for key in content['state_dict'])
    assert 'circle' in content['meta']['dataset_meta']['classes']


def test_resumes_without_the_pretrained_file(trained, tmp_path):
    """From another directory, with relative paths, and with the work directory's default name."""
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
    )
    assert 'resumed epoch: 1, iter: 2' in done.stdout
    # 4 images of a base batch of 1024
    assert 'LR has been set based on' in done.stdout or 'LR is set based on batch size of 1024' in done.stdout
    assert (tmp_path / 'work_dirs' / 'classification' / 'epoch_2.pth').is_file()


def test_nothing_to_resume_from_needs_the_pretrained_file(trained, tmp_path):
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
    assert 'starting anew' in done.stdout
    # Every problem in one message, without a traceback.
    assert 'gone.pth does not exist' in done.stdout and '/lost does not exist' in done.stdout
    assert 'Traceback' not in done.stdout


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_hostile_checkpoint_is_refused_before_it_is_unpickled(trained, tmp_path, tool):
    result = trained('classification')
    torch.save({'state_dict': {}, 'meta': Bomb(tmp_path / 'boom')}, tmp_path / 'hostile.pth')
    arguments = ['--resume', tmp_path / 'hostile.pth'] if tool == 'train.py' else [tmp_path / 'hostile.pth']
    done = run_tool(tool, result.config, *arguments, '--work-dir', tmp_path / 'w', check=False)
    assert done.returncode == 1 and 'mkdir' in done.stdout and 'Refused' in done.stdout
    assert not (tmp_path / 'boom').exists()
    # The bomb is a real one.
    pickle.loads(pickle.dumps(Bomb(tmp_path / 'boom')))
    assert (tmp_path / 'boom').exists()


def test_corrupt_image_is_found_before_training(trained, tmp_path):
    result = trained('classification')
    shutil.copytree(result.data, tmp_path / 'data')
    image = tmp_path / 'data' / 'train' / 'star' / '000003.jpg'
    image.write_bytes(image.read_bytes()[:300])
    config = write_config('classification', tmp_path, tmp_path / 'data')
    done = run_tool('train.py', config, '--work-dir', tmp_path / 'w', check=False)
    assert done.returncode == 1 and f'{image} does not decode' in done.stdout and 'Traceback' not in done.stdout


def test_corrupt_image_that_is_met_in_training_is_skipped_and_named(trained, tmp_path, monkeypatch):
    """One that is corrupt after the checks: here a hook of the config spoils it when training starts."""
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
    assert f'loading {image} failed: {image} does not decode' in done.stdout
    assert 'Skipped, another sample stands in (1 of 8 so far)' in done.stdout
    assert '1 of 8 samples were skipped so far: corrupt files, named above' in done.stdout
    assert f'loading {held_out} failed: ' in done.stdout and 'accuracy/top1' in done.stdout
    assert 'An empty file stands in, which the metrics count (1 of 5 so far)' in done.stdout


def test_dumped_config_is_complete(trained):
    """The config that a run leaves behind describes it on its own."""
    result = trained('detection')
    assert Config.fromfile(result.work_dir / 'detection.py').model.roi_head.bbox_head.num_classes == 5
