import pytest

from fcvit_mm.preflight.settings import setting_problems


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'log_level': 'info'}, "log_level is 'info', expected one of DEBUG, INFO, WARNING, ERROR"),
        ({'randomness.seed': 'x'}, "randomness.seed is 'x', expected an integer from 0 to 4294967295, or None for"),
        ({'randomness.seed': -1}, 'randomness.seed is -1, expected an integer from 0 to 4294967295, or None for'),
        ({'model.head.num_classes': 5.0}, 'num_classes of LinearClsHead is 5.0, expected an integer'),
        ({'model.head.num_classes': '5'}, "num_classes of LinearClsHead is '5', expected an integer"),
        (
            {'optim_wrapper.optimizer.lr': '1e-3'},
            "optim_wrapper.optimizer.lr is the text '1e-3', expected a number: write it without quotation marks (YAML "
            'reads 1e-3 as text: 0.001)',
        ),
        (
            {'param_scheduler': [{'type': 'LinearLR', 'start_factor': '.01'}]},
            "param_scheduler.0.start_factor is the text '.01', expected a number",
        ),
        ({'train_dataloader.batch_size': '4'}, "train_dataloader.batch_size is the text '4', expected a number"),
        (
            {'model.test_cfg': {'rcnn': {'nms': {'iou_threshold': '0.5'}}}},
            "model.test_cfg.rcnn.nms.iou_threshold is the text '0.5', expected a number",
        ),
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
