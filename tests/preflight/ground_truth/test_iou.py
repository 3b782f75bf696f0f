"""Segmentation maps, and the labels that an IoUMetric ignores."""

import numpy as np
from PIL import Image
from problems import validation_problems

from fcvit_mm.preflight.checks import data_problems


def test_maps_of_turned_images(own):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:32]).save(path)
    assert any('but its image has' in line for line in data_problems(cfg, ['val_dataloader']))


def test_one_image_that_exif_data_turns(own, said):
    cfg, data = own('segmentation')
    path = sorted((data / 'images' / 'validation').iterdir())[0]
    label = sorted((data / 'annotations' / 'validation').iterdir())[0]
    Image.fromarray(np.asarray(Image.open(label))[:32]).save(label)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).resize((64, 32)).save(path, exif=exif)
    validation_problems(cfg, 0)
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in said[0]
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    del said[:]
    assert data_problems(cfg, ['test_dataloader']) == []
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in said[0]


def test_everything_is_ignored(own):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.new('L', (64, 64), 0).save(path)
    cfg.val_dataloader.dataset.test_mode = True  # the data set is not asked what it teaches
    assert 'all pixels of the 5 segmentation maps tested are ignored (255)' in validation_problems(cfg)


def test_zero_label_is_reduced_in_one_place_only(own):
    cfg, _ = own('segmentation', {'val_dataloader.dataset.reduce_zero_label': False})
    assert any('reduce_zero_label' in line for line in data_problems(cfg, ['val_dataloader']))


def test_classes_that_count_although_they_never_occur(own, said):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels == 6, 5, labels).astype(np.uint8)).save(path)
    validation_problems(cfg, 0)
    assert '1 of 6 classes (triangle) occur in none of the 5 segmentation maps tested' in said[-1]
    cfg.val_evaluator.nan_to_num = 0
    validation_problems(cfg, 0)
    assert (
        'the ground truth itself scores only' in said[-1]
        and 'the classes triangle occur in none of 5 segmentation maps' in said[-1]
    )


def test_more_labels_than_names(own):
    """The head has room for them, the metric has not."""
    cfg, _ = own('segmentation')
    names = ('background', 'circle', 'cross')
    cfg.val_dataloader.dataset.metainfo = dict(classes=names, palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    assert 'but the data set has 3 classes' in '\n'.join(data_problems(cfg, ['val_dataloader']))


def test_samples_without_maps(own):
    cfg, _ = own('segmentation')
    cfg.val_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    problem = validation_problems(cfg)
    assert "IoUMetric reads 'gt_sem_seg' of each sample, which the pipeline of the data set does not pack" in problem


def test_ignored_label_of_the_data_set_and_of_the_metric(own):
    cfg, data = own('segmentation', {'val_dataloader.dataset.ignore_index': 250})
    for path in (data / 'annotations' / 'validation').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: label or 251).save(path)
    assert data_problems(cfg, ['val_dataloader']) == [
        'val_evaluator: the data set has ignore_index=250, but IoUMetric ignores the label 255: set '
        'ignore_index=250 of the metric in val_evaluator and test_evaluator'
    ]
    cfg.val_evaluator.ignore_index = 250
    assert data_problems(cfg, ['val_dataloader']) == []


def test_segmentation_without_names_of_classes(own):
    cfg, _ = own('segmentation')
    cfg.val_dataloader.dataset.metainfo = None
    message = 'IoUMetric reads the names of the classes, which the data set lacks: set metainfo=dict('
    assert message in validation_problems(cfg)
