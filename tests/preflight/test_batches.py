import pytest
import torch
from harness import LIBRARIES
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData
from PIL import Image

from fcvit_mm.apis.step import try_step
from fcvit_mm.preflight import batches
from fcvit_mm.preflight.batches import report_values
from fcvit_mm.preflight.checks import data_problems

BOTH = ['train_dataloader', 'val_dataloader']
#: Use BatchNorm on pooled maps. UperNet in this project's configs does not, so that it can train on one image.
POOLED = {'model.decode_head.norm_cfg': dict(type='BN'), 'model.decode_head.pool_scales': (1, 2)}
DEFAULT = 'train_dataloader.sampler'


def only(cfg, loader='train_dataloader'):
    (problem,) = data_problems(cfg, [loader])
    return problem


@pytest.mark.parametrize(
    'options, message',
    [
        ({'train_dataloader.batch_size': 1}, 'train_dataloader: batch_size is 1, but BatchNorm in model.decode_head'),
        (
            {'train_dataloader.batch_size': 7, DEFAULT: dict(type='DefaultSampler', shuffle=True)},
            '8 samples in batches of 7 leave a last batch of one image, of which BatchNorm in model.decode_head',
        ),
    ],
)
def test_batch_norm_with_batches_of_one_image(make_config, options, message):
    cfg, _ = make_config('segmentation', {**POOLED, **options})
    found = only(cfg)
    assert message in found and 'set train_dataloader.' in found


@pytest.mark.parametrize(
    'options',
    [
        {'train_dataloader.batch_size': 7},  # the sampler never ends
        {
            'train_dataloader.batch_size': 7,
            'train_dataloader.drop_last': True,
            DEFAULT: dict(type='DefaultSampler', shuffle=True),
        },
        {'train_dataloader.batch_size': 4, DEFAULT: dict(type='DefaultSampler', shuffle=True)},
        {'train_dataloader.batch_size': 7, 'train_cfg.max_iters': 1, DEFAULT: dict(type='DefaultSampler')},
        {'train_dataloader.batch_size': 1, 'model.decode_head.norm_cfg': dict(type='GN', num_groups=4)},
    ],
)
def test_batches_that_batch_norm_can_train_on(make_config, options):
    assert data_problems(make_config('segmentation', {**POOLED, **options})[0], ['train_dataloader']) == []


@pytest.mark.parametrize('task', ['classification', 'detection'])
def test_step_with_one_image_is_tried_only_if_the_model_has_batch_norm(make_config, task, monkeypatch):
    asked = []
    monkeypatch.setattr(batches, 'try_step', lambda *given, **options: asked.append(options) or try_step)
    cfg, _ = make_config(task, {'train_dataloader.batch_size': 1})
    assert data_problems(cfg, ['train_dataloader']) == []
    assert asked == ([dict(images=1)] if task == 'classification' else [])


NORMALIZED = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.mark.parametrize('task', list(LIBRARIES))
def test_images_that_are_normalized_twice(make_config, logged, task):
    cfg, _ = make_config(task)
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Normalize', **NORMALIZED))
    assert data_problems(cfg, BOTH) == []
    assert [text for text in logged if 'the values of the images' in text] == [
        text for text in logged if text.startswith('train_dataloader: the values of the images are -')
    ]
    assert any('so that the model gets almost constant images' in text for text in logged)


@pytest.mark.parametrize('mean, std, is_reported', [(0.5, 0.25, True), (128.0, 1.0, False), (0.0, 255.0, False)])
def test_mean_and_std_for_images_of_0_to_1(make_config, logged, mean, std, is_reported):
    cfg, _ = make_config('detection')
    cfg.model.data_preprocessor.update(mean=[mean] * 3, std=[std] * 3)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any(text.endswith('as for images of 0..1: multiply mean and std by 255') for text in logged) == is_reported


@pytest.mark.parametrize('scale, is_reported', [(1, False), (255, True)])
def test_images_of_0_to_1(make_config, logged, scale, is_reported):
    unit = dict(type='Normalize', mean=[0.0] * 3, std=[255.0] * 3, to_rgb=False)
    cfg, _ = make_config('segmentation')
    cfg.model.data_preprocessor.update({key: [each / 255 * scale for each in NORMALIZED[key]] for key in NORMALIZED})
    cfg.train_dataloader.dataset.pipeline.insert(1, unit)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('the values of the images are 0' in text for text in logged) == is_reported


@pytest.mark.parametrize('image', [torch.linspace(0, 60, 48).view(3, 4, 4), torch.zeros(3, 0, 4)])
def test_dark_and_empty_images(logged, image):
    cfg = Config(dict(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3)))
    report_values(cfg, 'train_dataloader', [image])
    assert not logged


def enlarge(path, size):
    with Image.open(path) as image:
        image.resize(size, Image.NEAREST).save(path)


@pytest.fixture
def two_sizes(make_config):
    """Return a function that makes a segmentation data set whose first images are larger than the others."""

    def get(options):
        cfg, data = make_config('segmentation', options)
        for split in ('training', 'validation'):
            for folder in ('images', 'annotations'):
                enlarge(sorted((data / folder / split).iterdir())[0], (80, 70))
        return cfg

    return get


def test_images_of_two_sizes_in_one_batch(two_sizes):
    cfg = two_sizes({'val_dataloader.batch_size': 2})
    found = only(cfg, 'val_dataloader')
    assert 'images of different sizes ((3, 70, 80) and (3, 64, 64)) are in one batch (batch_size=2)' in found
    assert 'set val_dataloader.batch_size=1, or let the pipeline resize or crop' in found


def test_padded_images_of_two_sizes(two_sizes):
    assert data_problems(two_sizes({'model.data_preprocessor.size': (96, 96)}), BOTH) == []


def test_images_of_two_sizes_in_classification(make_config):
    cfg, data = make_config('classification')
    enlarge(sorted((data / 'val').rglob('*.jpg'))[0], (90, 64))
    cfg.val_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    assert 'images of different sizes ((3, 64, 90) and (3, 64, 64)) are in one batch' in only(cfg, 'val_dataloader')
    cfg.val_dataloader.batch_size = 1
    assert data_problems(cfg, ['val_dataloader']) == []


@pytest.mark.parametrize('head', [True, False])
def test_mask_head_without_loaded_masks(make_config, head):
    boxes_only = {'model.roi_head.mask_head': None, 'val_evaluator.metric': 'bbox'}
    cfg, _ = make_config('detection', {} if head else boxes_only)
    cfg.train_dataloader.dataset.pipeline[1].pop('with_mask')
    found = data_problems(cfg, BOTH)
    assert len(found) == head
    assert not head or (
        'train_dataloader: the model has a mask head (model.roi_head.mask_head), but the pipeline returns no masks: '
        'set LoadAnnotations(with_mask=True)' in found[0]
    )


@pytest.mark.parametrize('size, reported', [(64, False), (90, False), (128, False), (192, True)])
def test_large_padding_is_reported(make_config, logged, size, reported):
    """The crop size was changed, but not that of the preprocessor: the loss shrinks by the part that is padding."""
    cfg, _ = make_config('segmentation', {'model.data_preprocessor.size': (size, size)})
    assert data_problems(cfg, ['train_dataloader']) == []
    found = [line for line in logged if 'is padding' in line]
    assert len(found) == reported
    assert not found or 'is 64x64 (width x height) after the pipeline and is padded to 192x192, so 89% of' in found[0]


@pytest.mark.parametrize('head', ['model.roi_head.semantic_head', 'model.semantic_head', 'model.panoptic_head'])
def test_maps_for_the_semantic_head(make_config, head):
    stuff = dict(num_stuff_classes=1) if head == 'model.panoptic_head' else dict(loss_weight=0.2)
    cfg, _ = make_config('detection', {head: stuff})
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader, sample = batches.Batches(cfg, 'train_dataloader', 4), DATASETS.build(cfg.train_dataloader.dataset)[0]
    (found,) = batches.mask_problems(loader, [sample])
    assert f'the model has a semantic head ({head}), but the pipeline returns no semantic' in found
    assert found.endswith('semantic_roi_extractor=None') == (head == 'model.roi_head.semantic_head')
    sample['data_samples'].gt_sem_seg = PixelData(sem_seg=torch.zeros(1, 64, 64))
    assert batches.mask_problems(loader, [sample]) == []


def test_padding_label_that_the_head_does_not_ignore(make_config):
    options = {f'model.{head}.ignore_index': 250 for head in ('decode_head', 'auxiliary_head')}
    options['model.data_preprocessor.size'] = (96, 96)
    cfg, _ = make_config('segmentation', options)
    cfg.train_dataloader.dataset.reduce_zero_label = False  # otherwise label 0 becomes 255
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = False
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 7
    cfg.train_dataloader.dataset.metainfo = dict(classes=tuple('abcdefg'), palette=[[9, 9, 9]] * 7)
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 2
    assert (
        'model.data_preprocessor pads segmentation maps with 255, but model.decode_head ignores the label 250'
        in (found[0])
    )
    assert found[0].endswith('set model.data_preprocessor.seg_pad_val=250')
    cfg.model.data_preprocessor.seg_pad_val = 250
    assert data_problems(cfg, ['train_dataloader']) == []


def test_ignore_index_of_the_data_set_only(make_config):
    cfg, data = make_config('segmentation', {'train_dataloader.dataset.ignore_index': 250})
    for path in (data / 'annotations' / 'training').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: label or 251).save(path)
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 2 and 'contain the labels 250 after the pipeline, but model.decode_head has 6' in found[0]
    assert 'set model.decode_head.ignore_index=250' in found[0] and 'model.auxiliary_head' in found[1]


def test_labels_that_a_step_interpolates(make_config):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: 1 if label < 4 else 255).save(path)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomRotFlip', rotate_prob=1.0, degree=20))
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 2 and 'ignores the label 255: correct the maps and the steps that pad' in found[0]
    assert found[0].endswith('(seg_pad_val) or interpolate them (RandomRotFlip)')


@pytest.mark.parametrize('task', LIBRARIES)
def test_pipeline_without_packing(make_config, task):
    cfg, _ = make_config(task)
    steps = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = steps[:-1]
    (problem,) = data_problems(cfg, ['train_dataloader'])
    assert 'samples have no inputs (' in problem and 'end the pipeline with PackInputs' in problem


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_training_without_annotations(make_config, task):
    cfg, _ = make_config(task)
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [step for step in dataset.pipeline if step['type'] != 'LoadAnnotations']
    cfg.model.pop('roi_head', None)  # it requires masks
    (problem,) = data_problems(cfg, ['train_dataloader'])
    assert 'no sample has annotations: add LoadAnnotations to the pipeline' in problem


def test_training_without_labels(make_config):
    cfg, _ = make_config('classification', {'train_dataloader.dataset.with_label': False})
    assert data_problems(cfg, ['train_dataloader']) == [
        'train_dataloader: no sample has a label: set with_label=True of the data set, or an ann_file with labels'
    ]


@pytest.mark.parametrize('key', ['mean', 'std'])
def test_mean_and_std_for_another_number_of_channels(make_config, key):
    cfg, _ = make_config('classification')
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    cfg.data_preprocessor.update({'mean': [120.0], 'std': [60.0], key: [1.0, 2.0, 3.0]})
    expected = f'train_dataloader: images have 1 channel, but data_preprocessor.{key} has 3 values: give one value per '
    assert only(cfg) == f'{expected}channel, or correct color_type of LoadImageFromFile'
    cfg.data_preprocessor[key] = [1.0]
    assert data_problems(cfg, ['train_dataloader']) == []
