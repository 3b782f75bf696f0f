"""Complete pipelines, also of wrapped data sets."""

import shutil

import pytest
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ClassBalancedDataset', 'ConcatDataset', 'MultiImageMixDataset'])
def test_wrapped_data_sets(make_config, wrapper):
    cfg, _ = make_config('detection', {'model.roi_head.mask_head': None})  # Mosaic removes masks
    leaf = cfg.train_dataloader.dataset
    options = {
        'RepeatDataset': dict(dataset=leaf, times=2),
        'ClassBalancedDataset': dict(dataset=leaf, oversample_thr=0.5),
        'ConcatDataset': dict(datasets=[leaf, dict(type='RepeatDataset', dataset=leaf, times=2)]),
        'MultiImageMixDataset': dict(
            dataset=dict(leaf, pipeline=[leaf.pipeline[0], dict(type='LoadAnnotations', with_bbox=True)]),
            pipeline=[dict(type='Mosaic', img_scale=(64, 64)), dict(type='PackDetInputs')],
        ),
    }[wrapper]
    cfg.train_dataloader.dataset = dict(type=wrapper, **options)
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset['unknown'] = 1
    assert f'{wrapper} cannot be built' in only_problem(cfg) and 'unknown' in only_problem(cfg)


def test_failing_transform_is_named(make_config):
    cfg, _ = make_config('detection')
    leaf = cfg.train_dataloader.dataset
    steps = leaf.pipeline
    leaf.pipeline = [*steps[:2], dict(type='RandomApply', transforms=dict(type='Mosaic'), prob=1), *steps[2:]]
    assert '000000000000.jpg in Mosaic(img_scale=(640, 640), ' in only_problem(cfg)
    # Mosaic removes masks, which the next transform of the wrapper reads.
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset',
        dataset=dict(leaf, pipeline=steps[:2]),
        pipeline=[dict(type='Mosaic', img_scale=(64, 64)), dict(type='PackDetInputs')],
    )
    assert "sample 0 failed to load in PackDetInputs(meta_keys=('img_id', " in only_problem(cfg)


def test_settings_of_a_failing_step_are_named(make_config):
    cfg, _ = make_config('classification', {'train_dataloader.dataset.pipeline.1.scale': (64,)})
    assert '.jpg in Resize(scale=(64,), scale_factor=None, ' in only_problem(cfg)


@pytest.mark.parametrize(('times', 'named'), [('2', " (times='2')"), (None, ' (times=None)'), (-1, '')])
def test_wrapper_without_a_length(make_config, times, named):
    cfg, _ = make_config('classification')
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=times, dataset=cfg.train_dataloader.dataset)
    problem = only_problem(cfg)
    assert problem.startswith('train_dataloader: RepeatDataset cannot be built: ') and problem.endswith(named)


def test_pipeline_that_returns_none(make_config):
    cfg, _ = make_config('detection')
    steps = cfg.train_dataloader.dataset.pipeline
    steps.insert(2, dict(type='FilterAnnotations', min_gt_bbox_wh=(999, 999), keep_empty=True))
    assert 'the pipeline returned None for all 4 samples' in only_problem(cfg)


def test_invalid_transforms(make_config):
    cfg, data = make_config('detection')
    steps = cfg.train_dataloader.dataset.pipeline
    steps.insert(1, dict(type='LoadProposals'))
    assert '.jpg in LoadProposals(num_max_proposals=None) failed: KeyError' in only_problem(
        cfg
    ) and 'proposals' in only_problem(cfg)
    steps[1] = dict(type='NoSuchStep')
    assert 'CocoDataset cannot be built: NoSuchStep' in only_problem(cfg)
    del cfg.train_dataloader.dataset['type']
    assert 'has no type: give its class, for example type="CocoDataset"' in only_problem(cfg)


def test_concatenated_data_sets_with_different_classes(make_config):
    cfg, data = make_config('classification')
    shutil.copytree(data / 'train', data / 'other')
    (data / 'other' / 'circle').rename(data / 'other' / 'disc')
    leaf = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, dict(leaf, data_prefix='other')])
    assert 'ConcatDataset cannot be built: The meta information of the' in '\n'.join(
        data_problems(cfg, ['train_dataloader'])
    )
