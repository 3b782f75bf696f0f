import pytest
from mmengine.config import Config

from fcvit_mm.preflight.schedules import epoch_length, report_long_schedules


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
        (dict(max_iters=1000), dict(type='PolyLR', begin=0, end=160000), ''),  # it has a warning of its own
        (dict(max_epochs=3), dict(type='ExponentialLR', gamma=0.9), ''),
        (dict(), dict(type='MultiStepLR', milestones=[8, 11]), ''),
    ],
)
def test_schedules_for_a_longer_training(said, loop, schedule, given):
    report_long_schedules(config([schedule], **loop), 'max_iters' not in loop, 400)
    assert said == ([] if not given else [
        f'param_scheduler: {given}: made for a longer training, so that a warm-up or a decay is not complete or does '
        'not happen. Adapt begin, end, T_max and milestones'
    ])  # fmt: skip


def test_length_of_an_epoch(monkeypatch):
    cfg = config([])
    assert epoch_length(cfg, 10) == 3 and epoch_length(cfg, None) is None
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert epoch_length(cfg, 10) == 2
    cfg.train_dataloader.batch_size = '4'
    assert epoch_length(cfg, 10) is None
