import pytest
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems

STEPS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs'),
]


def switching(make_config, steps, epoch=1, epochs=2):
    """Return a config whose hook switches to ``steps``."""
    hooks = [dict(type='NumClassCheckHook'), dict(type='PipelineSwitchHook', switch_epoch=epoch, switch_pipeline=steps)]
    return make_config('detection', {'custom_hooks': hooks, 'train_cfg.max_epochs': epochs})[0]


@pytest.mark.parametrize(
    'number, step, message',
    [
        (1, dict(type='LoadAnnotations', with_bbox=True), 'a mask head (model.roi_head.mask_head), but the pipeline'),
        (
            2,
            dict(type='Rezise', scale=(64, 64)),
            "Rezise is not in the mmdet::transform registry; did you mean 'Resize'? ",
        ),
        (
            2,
            dict(type='Resize', scales=(64, 64)),
            "got an unexpected keyword argument 'scales'; did you mean 'scale'? ",
        ),
        (2, dict(type='Mosaic', img_scale=(64, 64)), 'failed: AssertionError: assert'),
    ],
)
def test_mistakes_after_a_switch(make_config, number, step, message):
    """They would end the run after many epochs."""
    cfg = switching(make_config, [*STEPS[:number], step, *STEPS[number + 1 :]])
    problem = only_problem(cfg)
    assert problem.startswith('train_dataloader: after the switch by custom_hooks.1 (PipelineSwitchHook): ')
    assert message in problem


@pytest.mark.parametrize('epoch', [1, 2, 280])
def test_switches_after_the_training_are_reported(make_config, logged, epoch):
    assert data_problems(switching(make_config, STEPS, epoch), ['train_dataloader']) == []
    assert [line for line in logged if 'switch_epoch' in line] == [
        f'custom_hooks.1 (PipelineSwitchHook): switch_epoch is {epoch}, but the training has 2 epochs, so the pipeline '
        'is never switched: set an earlier epoch, unless this is intended'
    ] * (epoch > 1)


def test_switches_without_effect_are_reported(make_config, logged):
    cfg = switching(make_config, STEPS)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert 'outermost data set, but RepeatDataset has none: the pipeline is never switched' in logged[-1]


@pytest.mark.parametrize('wrapped', [True, False])
def test_yolox_switches_off_mosaic(make_config, wrapped):
    """Its hook needs MultiImageMixDataset."""
    cfg = make_config('detection', {'custom_hooks': [dict(type='YOLOXModeSwitchHook', priority=48)]})[0]
    if wrapped:
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline[1].with_mask, cfg.model.roi_head.mask_head = False, None  # Mosaic keeps no masks
        steps = [dict(type='Mosaic', img_scale=(64, 64)), dict(type='YOLOXHSVRandomAug'), dataset.pipeline.pop()]
        cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=dataset, pipeline=steps)
        assert data_problems(cfg, ['train_dataloader']) == []
    else:
        assert only_problem(cfg) == (
            "train_dataloader: after the switch by custom_hooks.0 (YOLOXModeSwitchHook): 'CocoDataset' object has no "
            "attribute 'update_skip_type_keys'. Correct the hook, or the type of the data set"
        )
