import pytest
from problems import only_training_problem

from fcvit_mm.preflight.checks import PreflightError, check_testing
from fcvit_mm.preflight.settings import setting_problems, type_problems


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'log_level': 'info'}, "log_level is 'info', expected one of DEBUG, INFO, WARNING, ERROR"),
        ({'randomness.seed': 'x'}, "randomness.seed is 'x', expected an integer from 0 to 4294967295, or None for"),
        ({'randomness.seed': -1}, 'randomness.seed is -1, expected an integer from 0 to 4294967295, or None for'),
        ({'env_cfg.mp_cfg.mp_start_method': 'spwn'}, "env_cfg.mp_cfg.mp_start_method is 'spwn', expected one of "),
        (
            {'optim_wrapper.optimizer.type': 'Adamw'},
            "optim_wrapper.optimizer.type is 'Adamw', which is no registered optimizer; did you mean 'AdamW'? ",
        ),
        ({'sync_bn': 'torchh'}, "sync_bn is 'torchh', expected 'torch', 'mmcv' or None"),
        (
            {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bf16'},
            "optim_wrapper.dtype is 'bf16', expected one of float16, bfloat16, float32, float64",
        ),
        (
            {'custom_hooks': [{'type': 'EMAHook', 'priority': 'HIGHEST_'}]},
            "custom_hooks.0.priority is 'HIGHEST_', expected an integer from 0 to 100 or one of HIGHEST, VERY_HIGH, ",
        ),
        ({'default_hooks.checkpoint.interval': 'x'}, "default_hooks.checkpoint.interval is 'x', expected an integer"),
        ({'default_hooks.logger.priority': 101}, 'default_hooks.logger.priority is 101, expected an integer from 0'),
        (
            {'optim_wrapper.clip_grad': {'max_norm': 0}},
            'optim_wrapper.clip_grad.max_norm is 0, which makes every gradient 0: for no limit omit clip_grad',
        ),
        *(
            (
                {'optim_wrapper.optimizer.type': name},
                f'optim_wrapper.optimizer.type is {name!r}, which MMEngine takes from {package}, not installed: pip',
            )
            for name, package in (
                ('Lion', 'lion_pytorch'),
                ('DAdaptSGD', 'dadaptation'),
                ('PagedAdamW8bit', 'bitsandbytes'),
                ('bnb_Adam', 'bitsandbytes'),
            )
        ),
        (
            {'optim_wrapper.optimizer.type': 'Xyzzy'},
            "optim_wrapper.optimizer.type is 'Xyzzy', which is no registered optimizer. Correct it, or let the config "
            "import the module that registers it: custom_imports=dict(imports=['MODULE'])",
        ),
    ],
)
def test_invalid_settings_are_reported(make_config, options, message):
    (problem,) = setting_problems(make_config('classification', options)[0])
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.head.num_classes': 5.0}, 'num_classes of LinearClsHead is 5.0, expected an integer'),
        ({'model.head.num_classes': '5'}, "num_classes of LinearClsHead is '5', expected an integer"),
        ({'data_preprocessor.num_classes': '5'}, "num_classes of data_preprocessor is '5', expected an integer"),
        ({'val_evaluator.ignore_index': [255]}, 'ignore_index of Accuracy is [255], expected an integer'),
        (
            {'optim_wrapper.optimizer.lr': '1e-3'},
            "optim_wrapper.optimizer.lr is the text '1e-3', expected a number: write it without quotation marks (YAML "
            'reads 1e-3 as text: 0.001)',
        ),
        (
            {'param_scheduler': [{'type': 'LinearLR', 'start_factor': '.01'}]},
            "param_scheduler.0.start_factor is the text '.01', expected a number",
        ),
        (
            {'model.test_cfg': {'rcnn': {'nms': {'iou_threshold': '0.5'}}}},
            "model.test_cfg.rcnn.nms.iou_threshold is the text '0.5', expected a number",
        ),
        ({'train_cfg.max_epochs': '12'}, "train_cfg.max_epochs is the text '12', expected a number"),
        ({'train_cfg.max_epochs': [12]}, 'train_cfg.max_epochs is [12], expected an integer'),
        ({'train_cfg.val_interval': 1.5}, 'train_cfg.val_interval is 1.5, expected an integer'),
        ({'optim_wrapper.accumulative_counts': 'x'}, "optim_wrapper.accumulative_counts is 'x', expected an integer"),
        *(
            (
                {'train_dataloader.batch_size': value},
                f'train_dataloader.batch_size is {value!r}, expected an integer, 1',
            )
            for value in ('4', 0, -1, None, 2.0, [2], True)
        ),
        *(
            ({'val_dataloader.num_workers': value}, f'val_dataloader.num_workers is {value!r}, expected an integer, 0')
            for value in ('4', -1, None, 1.5)
        ),
        *(
            (
                {'param_scheduler': [{'type': 'MultiStepLR', 'milestones': value}]},
                f'param_scheduler: milestones of MultiStepLR is {value!r}, expected a list of integers',
            )
            for value in (8, None, [8.5], [None])
        ),
        (
            {'param_scheduler': [{'type': 'MultiStepLR', 'milestones': ['8']}]},
            "param_scheduler.0.milestones.0 is the text '8', expected a number",
        ),
        (
            {'train_dataloader.dataset.test_mode': 'False'},
            "test_mode of CustomDataset is the text 'False', which counts as true: write True or False without",
        ),
        (
            {'train_cfg': dict(by_epoch='false', max_epochs=1)},
            "by_epoch of train_cfg is the text 'false', which counts as true: write True or False without quotation",
        ),
        ({'data_preprocessor.pad_value': '0'}, "data_preprocessor.pad_value is '0', expected a number"),
        (
            {'model.data_preprocessor': {'seg_pad_val': [None]}},
            'model.data_preprocessor.seg_pad_val is [None], expected',
        ),
        (
            {'data_preprocessor.mean': [None, 1, 2]},
            'data_preprocessor.mean is [None, 1, 2], expected a list of numbers',
        ),
        ({'data_preprocessor.std': 'a'}, "data_preprocessor.std is 'a', expected a list of numbers"),
        (
            {'data_preprocessor.std': [1, 0, 1]},
            'data_preprocessor.std is [1, 0, 1], expected numbers above 0, by which',
        ),
    ],
)
def test_settings_of_a_wrong_type_are_reported_alone(make_config, options, message):
    cfg, _ = make_config('classification', options)
    assert only_training_problem(cfg).startswith(message)


def test_settings_that_only_training_reads_do_not_stop_a_test(make_config):
    wrong = {'train_dataloader.batch_size': 0, 'test_dataloader.batch_size': 1, 'train_cfg.max_epochs': '12'}
    cfg, _ = make_config('classification', wrong)
    with pytest.raises(PreflightError, match='checkpoint missing.pth does not exist'):
        check_testing(cfg, 'missing.pth')
    cfg.test_dataloader.batch_size = 0
    with pytest.raises(PreflightError) as caught:
        check_testing(cfg, 'missing.pth')
    assert caught.value.problems == ['test_dataloader.batch_size is 0, expected an integer, 1 or more']


def test_problem_of_a_variable_that_was_inserted_is_reported_once(make_config):
    cfg, _ = make_config('classification', {'train_dataloader.dataset.test_mode': 'False'})
    cfg.my_dataset = cfg.train_dataloader.dataset
    assert len(type_problems(cfg)) == 1


def test_valid_numbers_are_accepted(make_config):
    valid = {
        'train_cfg.max_epochs': 12.0,
        'train_dataloader.prefetch_factor': None,
        'data_preprocessor.mean': 0,
        'data_preprocessor.std': None,
        'data_preprocessor.num_classes': None,
        'param_scheduler': [dict(type='MultiStepLR', milestones=(8, 11.0))],
        'visualizer': dict(type='Visualizer', vis_backends=[dict(type='MLflowVisBackend', tags=dict(debug='true'))]),
    }
    assert type_problems(make_config('classification', valid)[0]) == []


def test_valid_settings_are_accepted(make_config):
    cfg, _ = make_config('classification', {'log_level': 'DEBUG', 'randomness.seed': 2**32 - 1})
    assert setting_problems(cfg) == []
    cfg.merge_from_dict({'log_level': 20, 'env_cfg': None, 'randomness': None, 'optim_wrapper.optimizer': None})
    assert setting_problems(cfg) == []
    cfg.optim_wrapper = None
    assert setting_problems(cfg) == []


@pytest.mark.parametrize('enable, number', [(True, 4), (True, 1), (False, 4)])
def test_learning_rate_scaled_without_accumulated_batches(make_config, logged, enable, number):
    options = {'auto_scale_lr.enable': enable, 'optim_wrapper.accumulative_counts': number}
    assert setting_problems(make_config('classification', options)[0]) == []
    assert len(logged) == (enable and number > 1)
    assert not logged or 'step takes 4 (optim_wrapper.accumulative_counts): multiply' in logged[0]


def test_learning_rate_of_0_is_a_warning(make_config, logged):
    cfg, _ = make_config('classification', {'optim_wrapper.optimizer.lr': 0.0})
    assert setting_problems(cfg) == []
    assert logged == [
        'optim_wrapper.optimizer.lr is 0, so no weight changes: set a learning rate, unless this is intended'
    ]
