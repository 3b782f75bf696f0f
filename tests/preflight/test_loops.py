import pytest
from problems import only_training_problem as only_problem

from fcvit_mm.preflight.checks import check_training, data_problems


def test_infinite_sampler_with_epochs(make_config):
    endless = dict(type='InfiniteSampler', shuffle=True)
    cfg, _ = make_config('segmentation', {'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)})
    assert only_problem(cfg) == (
        'train_dataloader.sampler is InfiniteSampler, which has no end, so the first epoch would not end: use '
        "sampler=dict(type='DefaultSampler', shuffle=True), or train by iterations: train_cfg=dict(by_epoch=False, "
        'max_iters=...)'
    )
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    assert 'has no end' in only_problem(cfg)
    cfg.train_cfg = dict(by_epoch=False, max_iters=2)
    cfg.train_dataloader.update(batch_size=9, drop_last=True)  # it always fills a batch
    check_training(cfg)
    cfg.val_dataloader.sampler = endless
    assert "the evaluation would not end: use sampler=dict(type='DefaultSampler', shuffle=False)" in only_problem(cfg)


@pytest.mark.parametrize('size, lost', [(5, 0), (4, 1)])
def test_drop_last_in_validation(make_config, logged, size, lost):
    cfg, _ = make_config('classification', {'val_dataloader.batch_size': size, 'val_dataloader.drop_last': True})
    assert data_problems(cfg, ['val_dataloader']) == []
    text = f'val_dataloader has drop_last=True, so {lost} of 5 samples are not evaluated: set drop_last=False'
    assert [each for each in logged if 'drop_last' in each] == [text] * lost


def test_drop_last_with_fewer_samples_than_a_batch(make_config):
    cfg, _ = make_config('classification', {'train_dataloader.batch_size': 9, 'train_dataloader.drop_last': True})
    assert only_problem(cfg) == (
        'train_dataloader has drop_last=True and 8 samples, fewer than batch_size=9, so no batch is left: lower '
        'batch_size, or set drop_last=False'
    )
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    check_training(cfg)


@pytest.mark.parametrize('value', [0, -1, None])
def test_val_interval_of_0_or_less(make_config, value):
    cfg, _ = make_config('classification', {'train_cfg.val_interval': value})
    assert only_problem(cfg) == (
        f'train_cfg.val_interval is {value}, expected 1 or more. To train without validation: val_dataloader=None '
        'val_cfg=None val_evaluator=None'
    )
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    check_training(cfg)


def test_val_begin_after_the_end_of_training(make_config, logged):
    cfg, _ = make_config('classification', {'train_cfg.val_begin': 9})
    check_training(cfg)
    assert 'train_cfg.val_begin is 9, but max_epochs is 1: there is no validation during this training' in logged
    logged.clear()
    cfg.train_cfg.val_begin = 1
    check_training(cfg)
    assert not any('val_begin' in text for text in logged)


@pytest.mark.parametrize('key', ['max_epochs', 'max_iters'])
def test_max_epochs_or_max_iters_of_0(make_config, key):
    cfg, _ = make_config('classification' if key == 'max_epochs' else 'segmentation', {f'train_cfg.{key}': 0})
    assert only_problem(cfg) == f'train_cfg.{key} is 0, so nothing would be trained: set 1 or more'


def test_by_epoch_settings_in_iteration_based_training(make_config, logged):
    cfg, _ = make_config('segmentation', {'param_scheduler': [dict(type='CosineAnnealingLR', T_max=2)]})
    cfg.default_hooks.checkpoint.by_epoch = True
    check_training(cfg)
    assert 'CosineAnnealingLR counts epochs (by_epoch=True)' in logged[0] and 'Set by_epoch=False' in logged[0]
    assert 'default_hooks.checkpoint counts epochs' in logged[1] and len(logged) == 2


@pytest.mark.parametrize('split', ['val', 'test'])
def test_dataloader_without_its_loop(make_config, split):
    cfg, _ = make_config('classification')
    cfg[f'{split}_cfg'] = None
    assert only_problem(cfg) == (
        f'{split}_cfg is None, but not all of {split}_dataloader, {split}_cfg, {split}_evaluator: set all three, or '
        'all to None'
    )
    cfg[f'{split}_dataloader'] = cfg[f'{split}_evaluator'] = None
    check_training(cfg)


def test_repeat_dataset_with_0_repetitions(make_config):
    cfg, _ = make_config('classification')
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=0, dataset=cfg.train_dataloader.dataset)
    assert only_problem(cfg) == (
        'train_dataloader.dataset has no samples: correct the settings of its wrappers, such as times, or indices'
    )
