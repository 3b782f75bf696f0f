"""Evaluation of segmentation maps by IoUMetric, and the labels that it ignores."""

import numpy as np
from PIL import Image
from problems import validation_problems

from fcvit_mm.preflight.checks import data_problems


def test_maps_of_another_size_than_the_images(make_config):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:32]).save(path)
    assert any('but its image has' in line for line in data_problems(cfg, ['val_dataloader']))


def test_metric_without_an_ignored_label(make_config):
    cfg, _ = make_config('segmentation', {'val_evaluator.ignore_index': None})
    assert validation_problems(cfg) == (
        'val_evaluator: IoUMetric has ignore_index=None, expected the label of ignored pixels, such as 255'
    )


def test_one_image_rotated_by_exif_data(make_config, logged):
    cfg, data = make_config('segmentation')
    path = sorted((data / 'images' / 'validation').iterdir())[0]
    label = sorted((data / 'annotations' / 'validation').iterdir())[0]
    Image.fromarray(np.asarray(Image.open(label))[:32]).save(label)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).resize((64, 32)).save(path, exif=exif)
    validation_problems(cfg, 0)
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in logged[0]
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    del logged[:]
    assert data_problems(cfg, ['test_dataloader']) == []
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in logged[0]


def test_all_pixels_are_ignored(make_config):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.new('L', (64, 64), 0).save(path)
    cfg.val_dataloader.dataset.test_mode = True  # otherwise the check of the training labels reports it
    assert 'all pixels of the 5 segmentation maps tested are ignored (255)' in validation_problems(cfg)


def test_reduce_zero_label_of_the_loading_step_only(make_config):
    cfg, _ = make_config('segmentation', {'val_dataloader.dataset.reduce_zero_label': False})
    assert any('reduce_zero_label' in line for line in data_problems(cfg, ['val_dataloader']))


def test_classes_that_never_occur_lower_the_score_with_nan_to_num(make_config, logged):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels == 6, 5, labels).astype(np.uint8)).save(path)
    validation_problems(cfg, 0)
    assert '1 of 6 classes (triangle) occur in none of the 5 segmentation maps tested' in logged[-1]
    cfg.val_evaluator.nan_to_num = 0
    validation_problems(cfg, 0)
    assert (
        'the ground truth itself scores only' in logged[-1]
        and 'the classes triangle occur in none of 5 segmentation maps' in logged[-1]
    )


def test_more_labels_than_class_names(make_config):
    """The head has enough outputs for them, but the metric counts only the named classes."""
    cfg, _ = make_config('segmentation')
    names = ('background', 'circle', 'cross')
    cfg.val_dataloader.dataset.metainfo = dict(classes=names, palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    assert 'but the data set has 3 classes' in '\n'.join(data_problems(cfg, ['val_dataloader']))


def test_samples_without_maps(make_config):
    cfg, _ = make_config('segmentation')
    cfg.val_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    problem = validation_problems(cfg)
    assert "IoUMetric reads 'gt_sem_seg' of each sample, which the pipeline of the data set does not pack" in problem


def test_ignore_index_differs_between_data_set_and_metric(make_config):
    cfg, data = make_config('segmentation', {'val_dataloader.dataset.ignore_index': 250})
    for path in (data / 'annotations' / 'validation').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: label or 251).save(path)
    assert data_problems(cfg, ['val_dataloader']) == [
        'val_evaluator: the data set has ignore_index=250, but IoUMetric ignores the label 255: set '
        'ignore_index=250 of the metric in val_evaluator and test_evaluator'
    ]
    cfg.val_evaluator.ignore_index = 250
    assert data_problems(cfg, ['val_dataloader']) == []


def test_missing_class_names(make_config):
    cfg, _ = make_config('segmentation')
    cfg.val_dataloader.dataset.metainfo = None
    message = 'IoUMetric reads the names of the classes, which the data set lacks: set metainfo=dict('
    assert message in validation_problems(cfg)
