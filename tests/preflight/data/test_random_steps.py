"""Validation pipelines with steps for training."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import LIBRARIES

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data import random_steps
from fcvit_mm.preflight.data.random_steps import report_random_steps


def reports(logged):
    return [text for text in logged if text.startswith('val_dataloader: Random')]


@pytest.mark.parametrize('task', LIBRARIES)
def test_random_steps(make_config, logged, task):
    cfg, _ = make_config(task)
    steps = cfg.val_dataloader.dataset.pipeline
    assert data_problems(cfg, ['val_dataloader']) == [] and reports(logged) == []
    steps.insert(1, dict(type='RandomFlip', prob=0.0))
    assert data_problems(cfg, ['val_dataloader']) == [] and reports(logged) == []
    steps[1] = dict(type='RandomFlip', prob=0.5)
    assert data_problems(cfg, ['val_dataloader']) == []
    assert reports(logged) == [
        'val_dataloader: RandomFlip changes the images at random, so the metrics differ from run to run. Remove it '
        'from the pipeline of val_dataloader, unless this is intended'
    ]


def test_training_data_may_be_changed_at_random(make_config, logged):
    cfg, _ = make_config('classification')
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    assert not any('RandomFlip' in text for text in logged)


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_flipped_images_with_ground_truth(make_config, logged, task):
    cfg, _ = make_config(task)
    steps = cfg.val_dataloader.dataset.pipeline
    steps.insert(len(steps) - 1, dict(type='RandomFlip', prob=1.0, direction='horizontal'))
    assert data_problems(cfg, ['val_dataloader']) == []
    (text,) = reports(logged)
    assert 'RandomFlip flips the images, so predictions do not fit the ground truth. Remove it' in text


def test_data_sets_without_steps_are_not_checked(logged):
    report_random_steps([SimpleNamespace()], 'val_dataloader')
    report_random_steps([SimpleNamespace(pipeline=SimpleNamespace(transforms=[len]))], 'val_dataloader')
    assert logged == []


def load(info):
    return dict(img=np.zeros((4, 4, 3)))


def blur(info):
    return dict(img=info['img'] + np.random.rand() + random.random() + torch.rand(1).item())


def test_large_images_are_not_checked(logged, monkeypatch):
    monkeypatch.setattr(random_steps, 'LARGEST', 100)
    dataset = SimpleNamespace(get_data_info=lambda index: {}, pipeline=SimpleNamespace(transforms=[load, blur]))
    report_random_steps([dataset], 'val_dataloader')
    assert logged == []


def test_random_numbers_of_the_run_stay_the_same(logged):
    dataset = SimpleNamespace(get_data_info=lambda index: {}, pipeline=SimpleNamespace(transforms=[load, blur]))
    drawn = []
    for check in (lambda: None, lambda: report_random_steps([dataset], 'val_dataloader')):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        check()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert len(logged) == 1 and 'val_dataloader: function changes the images at random' in logged[0]
