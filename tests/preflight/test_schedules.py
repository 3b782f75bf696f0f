import pytest
from mmengine.config import Config

from fcvit_mm.preflight.schedules import epoch_length, report_long_schedules, report_short_schedules


def config(schedulers, **loop):
    return Config(dict(train_cfg=loop, train_dataloader=dict(batch_size=4), param_scheduler=schedulers))


@pytest.mark.parametrize(
    ('loop', 'schedule', 'given'),
    [
        (dict(max_epochs=12), dict(type='LinearLR', by_epoch=False, begin=0, end=500), ''),
        (
            dict(max_epochs=12),
            dict(type='LinearLR', by_epoch=False, begin=0, end=5000),
            'LinearLR (begin=0, end=5000; training has 1200 iterations)',
        ),
        (dict(max_epochs=12), dict(type='MultiStepLR', begin=0, end=24, milestones=[8, 11]), ''),
        (
            dict(max_epochs=6),
            dict(type='MultiStepLR', milestones=[8, 11]),
            'MultiStepLR (milestones=[8, 11]; training has 6 epochs)',
        ),
        (
            dict(max_epochs=100),
            dict(type='CosineAnnealingLR', T_max=295, begin=5),
            'CosineAnnealingLR (begin=5, T_max=295; training has 100 epochs)',
        ),
        (dict(max_epochs=300), dict(type='CosineAnnealingLR', T_max=295, begin=5, end=300), ''),
        (
            dict(max_iters=1000),
            dict(type='PolyLR', by_epoch=False, begin=1500, end=160000),
            'PolyLR (begin=1500, end=160000; training has 1000 iterations)',
        ),
        (dict(max_iters=1000), dict(type='PolyLR', begin=0, end=160000), ''),  # another check reports by_epoch
        (dict(max_epochs=3), dict(type='ExponentialLR', gamma=0.9), ''),
        (dict(), dict(type='MultiStepLR', milestones=[8, 11]), ''),
    ],
)
def test_long_schedules_are_reported(logged, loop, schedule, given):
    report_long_schedules(config([schedule], **loop), 'max_iters' not in loop, 400)
    assert logged == ([] if not given else [
        f'param_scheduler: {given}: made for a longer training, so that a warm-up or a decay is not complete or does '
        'not happen. Adapt begin, end, T_max and milestones'
    ])  # fmt: skip


ZERO, RISE = 'the learning rate is 0 from {} on, and nothing is learned', 'the learning rate rises again after {}'


@pytest.mark.parametrize(
    ('loop', 'schedules', 'given', 'change'),
    [
        (dict(max_iters=320000), [dict(type='PolyLR', by_epoch=False, begin=1500, end=160000)],
         'PolyLR is made for a shorter training (iterations 1500 to 160000 of 320000)',
         ZERO.format('iteration 160000')),
        (dict(max_iters=320000), [dict(type='PolyLR', by_epoch=False, end=160000, eta_min=1e-6)], '', ''),
        (dict(max_iters=320000), [
            dict(type='PolyLR', by_epoch=False, end=160000),
            dict(type='ConstantLR', by_epoch=False, begin=160000, end=320000, factor=1),
        ], '', ''),
        (dict(max_iters=160000), [dict(type='PolyLR', by_epoch=False, begin=1500, end=160000)], '', ''),
        (dict(max_epochs=24), [dict(type='CosineAnnealingLR', T_max=12)],
         'CosineAnnealingLR is made for a shorter training (epochs 0 to 12 of 24)', RISE.format('epoch 12')),
        (dict(max_epochs=24), [dict(type='CosineAnnealingLR', T_max=12, end=12)],
         'CosineAnnealingLR is made for a shorter training (epochs 0 to 12 of 24)', ZERO.format('epoch 12')),
        (dict(max_epochs=24), [dict(type='CosineAnnealingLR', begin=2, end=12)],
         'CosineAnnealingLR is made for a shorter training (epochs 2 to 12 of 24)', ZERO.format('epoch 12')),
        (dict(max_epochs=310), [dict(type='CosineAnnealingLR', T_max=295, begin=5, end=301, eta_min=1e-6)], '', ''),
        (dict(max_epochs=300), [dict(type='CosineAnnealingLR', T_max=295, begin=5)], '', ''),
        (dict(max_epochs=300), [dict(type='CosineAnnealingLR', T_max=150, begin=150, end=300)], '', ''),
        (dict(max_epochs=100), [dict(type='LinearLR', end=50, start_factor=1, end_factor=0)],
         'LinearLR is made for a shorter training (epochs 0 to 50 of 100)', ZERO.format('epoch 50')),
        (dict(max_epochs=24), [
            dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=500),
            dict(type='MultiStepLR', milestones=[8, 16]),
        ], '', ''),
        (dict(max_epochs=100), [dict(type='CosineAnnealingMomentum', T_max=12)], '', ''),
        (dict(), [dict(type='CosineAnnealingLR', T_max=12)], '', ''),
    ],
)  # fmt: skip
def test_short_schedules_are_reported(logged, loop, schedules, given, change):
    report_short_schedules(config(schedules, **loop), 'max_iters' not in loop, 400)
    assert logged == ([f'param_scheduler: {given}: {change}. Adapt begin, end and T_max'] if given else [])


@pytest.mark.parametrize(
    ('steps', 'options'),
    [(0, dict(total_steps=12)), (0, dict()), (1, dict(total_steps=11)), (0, dict(total_steps=10, end=11, begin=1))],
)
def test_total_steps_of_a_shorter_training(logged, steps, options):
    """MMEngine ends the run at the first step beyond them."""
    report_short_schedules(config([dict(type='OneCycleLR', eta_max=0.1, **options)], max_epochs=12), True, 400)
    assert len(logged) == steps
    for each in logged:
        assert 'OneCycleLR has total_steps=11, but the training has 12 epochs' in each


def test_milestones_for_a_shorter_training(logged):
    report_short_schedules(config([dict(type='MultiStepLR', end=12, milestones=[8, 11])], max_epochs=36), True, 400)
    assert logged == [
        'param_scheduler: MultiStepLR is made for a shorter training: its last milestone is 11, so the learning rate '
        'is at its lowest for most of the 36 epochs. Adapt milestones'
    ]


@pytest.mark.parametrize('times', [dict(end='inf'), dict(T_max='9')])
def test_schedules_with_non_numbers_are_not_checked(logged, times):
    cfg = config([dict(type='CosineAnnealingLR', **times)], max_epochs=36)
    report_long_schedules(cfg, True, 400)
    report_short_schedules(cfg, True, 400)
    assert logged == []


def test_schedules_with_begin_none(logged):
    cfg = config([dict(type='CosineAnnealingLR', begin=None, end=None, T_max=12)], max_epochs=36)
    report_long_schedules(cfg, True, 400)
    report_short_schedules(cfg, True, 400)
    assert len(logged) == 1 and 'CosineAnnealingLR is made for a shorter training (epochs 0 to 12 of 36)' in logged[0]


def test_length_of_an_epoch(monkeypatch):
    cfg = config([])
    assert epoch_length(cfg, 10) == 3 and epoch_length(cfg, None) is None
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert epoch_length(cfg, 10) == 2
    cfg.train_dataloader.batch_size = '4'
    assert epoch_length(cfg, 10) is None
