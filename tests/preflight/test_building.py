import pytest
from harness import LIBRARIES
from problems import only_training_problem

from fcvit_mm.engine.run import train
from fcvit_mm.preflight.building import build_problems, checkpoint_hook_problems
from fcvit_mm.preflight.checks import PreflightError
from fcvit_mm.preflight.start import explained_start


def only_problem(cfg):
    (problem,) = build_problems(cfg)
    return problem


@pytest.mark.parametrize('task', LIBRARIES)
def test_valid_config_is_built_and_not_changed(make_config, task):
    cfg, _ = make_config(task)
    before = cfg.to_dict()
    assert build_problems(cfg) == [] and checkpoint_hook_problems(cfg) == []
    assert cfg.to_dict() == before


def test_configs_are_not_formatted(make_config, monkeypatch):
    """It takes seconds for a large config. Values that cannot be written are still found."""
    cfg, _ = make_config('classification')
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda *args, **options: pytest.fail('formatted'))
    assert build_problems(cfg) == []
    cfg.env_cfg.mine = object()
    assert 'the runner cannot be built: ' in only_problem(cfg)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'default_hooks.checkpoint': dict(type='CheckpointHook', intervall=1)},
            'default_hooks.checkpoint (AtomicCheckpointHook): CheckpointHook got an unexpected keyword argument '
            "'intervall'; did you mean 'interval'? Correct the arguments of this type in the config",
        ),
        (
            {'default_hooks.logger.intervall': 1},
            "default_hooks.logger (LoggerHook): LoggerHook.__init__() got an unexpected keyword argument 'intervall'; "
            "did you mean 'interval'? ",
        ),
        (
            {'custom_hooks': [dict(type='EMAHook', momentun=0.1)]},
            'custom_hooks[0] (EMAHook): ExponentialMovingAverage.__init__() got an unexpected keyword argument '
            "'momentun'; did you mean 'momentum'? Correct",
        ),
        (
            {'custom_hooks': [dict(type='EmaHook')]},
            "custom_hooks[0] (EmaHook): EmaHook is not in the mmpretrain::hook registry; did you mean 'EMAHook'? ",
        ),
        (
            {'optim_wrapper.optimizer.weight_decays': 0.1},
            "optim_wrapper: AdamW.__init__() got an unexpected keyword argument 'weight_decays'; did you mean "
            "'weight_decay'? Correct",
        ),
        (
            {'optim_wrapper.optimizer.lr': '1e-3'},
            "optim_wrapper: '<=' not supported between instances of 'float' and 'str' (lr='1e-3'). Correct",
        ),
        (
            {'optim_wrapper.optimizer.lr': None},
            "optim_wrapper: '<=' not supported between instances of 'float' and 'NoneType' (lr=None). Correct",
        ),
        (
            {'optim_wrapper.optimizer.betas': 0.9},
            "optim_wrapper: 'float' object is not subscriptable (lr=0.001, betas=0.9, ",
        ),
        (
            {'param_scheduler': [dict(type='MultiStepLRR', milestones=[1])]},
            'param_scheduler: MultiStepLRR is not in the mmpretrain::parameter scheduler registry; did you mean '
            "'MultiStepLR'? ",
        ),
        (
            {'param_scheduler': [dict(type='MultiStepLR', milestone=[1])]},
            "param_scheduler: MultiStepParamScheduler.__init__() got an unexpected keyword argument 'milestone'; did "
            "you mean 'milestones'? ",
        ),
        (
            {'train_cfg.max_epoch': 3},
            "train_cfg: EpochBasedTrainLoop.__init__() got an unexpected keyword argument 'max_epoch'; did you mean "
            "'max_epochs'? Correct",
        ),
        (
            {'val_cfg.fp_16': True},
            "val_cfg: ValLoop.__init__() got an unexpected keyword argument 'fp_16'; did you mean 'fp16'? ",
        ),
        (
            {'train_dataloader.samples_per_gpu': 2},
            "train_dataloader: DataLoader.__init__() got an unexpected keyword argument 'samples_per_gpu'. Correct",
        ),
        ({'train_dataloader.num_workers': -1}, 'train_dataloader: num_workers option should be non-negative; '),
        (
            {'val_dataloader.sampler.type': 'DefautSampler'},
            'val_dataloader: DefautSampler is not in the mmpretrain::data sampler registry; did you mean '
            "'DefaultSampler'? ",
        ),
        (
            {'model.backbone.drop_path': 0.1},
            'the runner cannot be built: FCViT.__init__() got an unexpected keyword argument ',
        ),
        ({'log_level': 'info'}, "the runner cannot be built: 'info'. Correct the config"),
        (
            {'visualizer.vis_backends': [dict(type='NeptuneVisBackend')]},
            'visualizer.vis_backends: NeptuneVisBackend needs a package that is missing: Please run "pip install',
        ),
        (
            {'visualizer.vis_backends': [dict(type='TensorboardVisBackend', init_kwargs=dict(project='shapes'))]},
            'visualizer.vis_backends: TensorboardVisBackend.__init__() got an unexpected keyword argument '
            "'init_kwargs'. Correct",
        ),
        (
            {'visualizer.vis_backends': [dict(type='WandbVisBackend', init_kwarg=dict(project='shapes'))]},
            "visualizer.vis_backends: WandbVisBackend.__init__() got an unexpected keyword argument 'init_kwarg'; did "
            "you mean 'init_kwargs'? ",
        ),
        (
            {'visualizer.vis_backends': [dict(type='TensorBoardVisBackend')]},
            'visualizer.vis_backends: TensorBoardVisBackend is not in the mmengine::vis_backend registry; did you mean '
            "'TensorboardVisBackend'? ",
        ),
    ],
)
def test_components_that_cannot_be_built(make_config, options, message):
    cfg, _ = make_config('classification', options)
    assert only_problem(cfg).startswith(message)


def test_samplers_that_need_the_data_set_are_not_checked(make_config):
    cfg, _ = make_config('detection', {'train_dataloader.sampler': dict(_delete_=True, type='ClassAwareSampler')})
    assert build_problems(cfg) == []


def test_missing_package_is_reported_once_before_and_after_the_start(make_config):
    """MMEngine would reuse the visualizer of the first attempt, with the backend that failed."""
    cfg, _ = make_config('detection', {'visualizer.vis_backends': [dict(type='NeptuneVisBackend')]})
    message = 'visualizer.vis_backends: NeptuneVisBackend needs a package that is missing'
    assert only_training_problem(cfg).startswith(message)
    with pytest.raises(PreflightError, match=f'^1 problem found.*\n.*{message}'), explained_start(cfg):
        train(cfg)


def test_visualizer_check_starts_no_online_run(make_config, monkeypatch):
    from mmengine.visualization import WandbVisBackend

    from fcvit_mm.preflight import building

    find = building.importlib.util.find_spec
    monkeypatch.setattr(building.importlib.util, 'find_spec', lambda name, *args: name == 'wandb' or find(name, *args))
    monkeypatch.setattr(WandbVisBackend, '_init_env', lambda self: pytest.fail('a run was started'))
    cfg, _ = make_config('classification', {'visualizer.vis_backends': [dict(type='WandbVisBackend')]})
    assert build_problems(cfg) == []


def test_invalid_arguments_for_saving_checkpoints(make_config):
    cfg, _ = make_config('classification', {'default_hooks.checkpoint.max_keep_ckpt': 1})
    assert checkpoint_hook_problems(cfg) == [
        "default_hooks.checkpoint: CheckpointHook got an unexpected keyword argument 'max_keep_ckpt'; did you mean "
        "'max_keep_ckpts'?: the first checkpoint would end the run. Correct it"
    ]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, save_optimizer=False)
    assert checkpoint_hook_problems(cfg) == []
    cfg.default_hooks.checkpoint = dict(type='AtomicCheckpointHook', interval=1, listen_interval=1)
    assert checkpoint_hook_problems(cfg) == []
    cfg.default_hooks.checkpoint = None
    assert checkpoint_hook_problems(cfg) == []
