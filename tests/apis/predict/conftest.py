"""Small models of each task, and images for them."""

import cv2
import numpy as np
import pytest
import torch
from harness import LIBRARIES, write_config
from predictions import CLASSES, FOLDERS

from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.predict import folder as run_folder
from fcvit_mm.engine.config import load_config

MORE = {
    'classification': '',
    'detection': '\nmodel["test_cfg"]["rcnn"]["score_thr"] = 0.0\n',
    'segmentation': '\ntest_pipeline.insert(1, dict(type="Resize", scale=(96, 96)))\n',
}
SMALL = """
model.setdefault('backbone', {})['arch'] = dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))
"""
HEADS = {
    'classification': "model['head']['in_channels'] = 32\n",
    'detection': "model['neck']['in_channels'] = [8, 16, 24, 32]\n",
    'segmentation': "model['decode_head']['in_channels'] = [8, 16, 24, 32]\n"
    "model['auxiliary_head']['in_channels'] = 24\n",
}


@pytest.fixture(scope='session')
def model_of(tmp_path_factory, shapes):
    """Return a function that returns the config and checkpoint of a small random model of a task, and images."""
    made = {}

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            config = write_config(task, folder, shapes(task), SMALL + HEADS[task] + MORE[task])
            torch.manual_seed(1)
            model = build_model(load_config(str(config)))
            model.init_weights()
            meta = {'dataset_meta': {'classes': CLASSES}} if task == 'classification' else {}
            torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'model.pth')
            made[task] = (str(config), str(folder / 'model.pth'), shapes(task) / FOLDERS[task])
        return made[task]

    return get


#: Pipelines that keep the aspect ratio, so that the sizes of images differ.
KEEP_RATIO = {
    'classification': "dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=96), dict(type='PackInputs')",
    'detection': "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True), "
    "dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))",
    'segmentation': "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(192, 96), keep_ratio=True), "
    "dict(type='PackSegInputs')",
}


@pytest.fixture
def mixed(model_of, tmp_path):
    """Return a function like model_of, with a pipeline that keeps the aspect ratio, and images of two sizes."""

    def get(task):
        config, checkpoint, images = model_of(task)
        path = tmp_path / 'keep_ratio.py'
        path.write_text(f"_base_ = '{config}'\ntest_dataloader = dict(dataset=dict(pipeline=[{KEEP_RATIO[task]}]))\n")
        (tmp_path / 'in').mkdir()
        first = cv2.imread(str(sorted(path for path in images.rglob('*') if path.is_file())[0]))
        for number, width in enumerate((64, 40, 64, 40, 64)):
            image = np.roll(first, 13 * number, 1)[:, :width]
            cv2.imwrite(str(tmp_path / 'in' / f'{number}.png'), image)
        return str(path), checkpoint, tmp_path / 'in'

    return get


@pytest.fixture
def shards_of_two(monkeypatch):
    monkeypatch.setattr(run_folder, 'SHARD', 2)
