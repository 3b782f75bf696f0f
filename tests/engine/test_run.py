import os

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from fcvit_mm.engine import machine
from fcvit_mm.engine.run import (
    TESTING_STEPS,
    TRAINING_STEPS,
    is_first_here,
    keep_preprocessor_eager,
    keep_seed,
    omit_overwritten_weights,
    run,
    test,
    train,
)
from fcvit_mm.errors import LibraryError, UserError

test.__test__ = False


def test_load_from_a_url(tmp_path, monkeypatch):
    """The runner gets the downloaded file: MMEngine would run code from it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = tmp_path / 'hub' / 'checkpoints' / 'a-1a2b3c4d.pth'
    path.parent.mkdir(parents=True)
    torch.save(dict(state_dict={}), path)
    cfg = Config(
        dict(work_dir=str(tmp_path), train_dataloader=dict(batch_size=2), load_from='https://host/a-1a2b3c4d.pth')
    )
    for step in TRAINING_STEPS:
        step(cfg)
    assert cfg.load_from == str(path)


def test_each_step_has_a_docstring():
    for step in {*TRAINING_STEPS, *TESTING_STEPS}:
        assert step.__doc__ and step.__doc__[0].isupper(), step


def test_training_steps_on_a_minimal_config(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), train_dataloader=dict(batch_size=2, sampler=dict(type='DefaultSampler'))))
    for step in TRAINING_STEPS:
        step(cfg)
    assert cfg.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=1)
    assert [hook.type for hook in cfg.custom_hooks] == ['ResumableHook', 'NonFiniteHook', 'SkipCorruptSamplesHook']
    assert cfg.train_dataloader.batch_sampler.type == 'ResumableBatchSampler'
    again = Config(cfg.to_dict())
    for step in TRAINING_STEPS:
        step(again)
    assert again.to_dict() == cfg.to_dict()


def test_run_keeps_its_seed(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict={}, meta=dict(seed=5)), path)
    for seed, expected in ((None, 5), (5, 5), (7, 5)):
        cfg = Config(dict(resume=True, load_from=path, randomness=dict(seed=seed, deterministic=True)))
        keep_seed(cfg)
        assert cfg.randomness == dict(seed=expected, deterministic=True)


def test_missing_pretrained_file_is_omitted_with_load_from(tmp_path):
    """Only if the file is missing and the checkpoint has the backbone."""
    path = str(tmp_path / 'a.pth')

    def initial(checkpoint='gone.pth', **options):
        init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
        cfg = Config(dict(model=dict(backbone=dict(init_cfg=init_cfg)), **{'load_from': path, **options}))
        omit_overwritten_weights(cfg)
        return cfg.model.backbone.init_cfg

    assert initial()
    torch.save({'state_dict': {'head.weight': torch.ones(1)}}, path)
    assert initial()
    torch.save({'model': {'backbone.weight': torch.ones(1)}}, path)
    assert initial() is None
    assert initial(path) and initial('https://host/a.pth') and initial('published:a') and initial(load_from=None)
    assert initial(resume=True)


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Return a function that makes a config whose runner raises the given error."""

    def make(error):
        monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: (_ for _ in ()).throw(error))
        (tmp_path / 'mine.py').touch()
        return Config(dict(work_dir=str(tmp_path)), filename=str(tmp_path / 'mine.py'))

    return make


@pytest.mark.parametrize('start', [train, lambda cfg: test(cfg, 'a.pth')])
def test_errors_of_libraries_name_the_config(start, failing):
    with pytest.raises(LibraryError, match=r"(training|testing a.pth) with .*/mine.py failed: KeyError: 'gt'"):
        start(failing(KeyError('gt')))


def test_out_of_memory_error_names_solutions(failing):
    """With the messages of torch on a CPU and on a GPU."""
    for text in ("DefaultCPUAllocator: can't allocate memory", 'CUDA out of memory. Tried to allocate 20.00 MiB'):
        with pytest.raises(LibraryError, match='lower the batch size .*model.backbone.with_cp=True, or use --amp'):
            train(failing(RuntimeError(text)))


def test_user_errors_and_interruptions_are_not_changed(failing):
    for error in (UserError('a'), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            run(failing(error), 'training', lambda runner: None)
        assert caught.value is error


def test_preprocessor_is_not_compiled():
    traced = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor = Notes()

        def train_step(self, x):
            return self.data_preprocessor(x) * 2

    class Notes(torch.nn.Module):
        def forward(self, x):
            traced.append(torch._dynamo.is_compiling())
            return x + 1

    model = Model()
    keep_preprocessor_eager(model)
    assert torch.compile(model.train_step, backend='eager')(torch.ones(2)).tolist() == [4, 4] and traced == [False]


def test_models_without_a_preprocessor_are_not_changed():
    model = torch.nn.Identity()
    keep_preprocessor_eager(torch.nn.DataParallel(model))
    assert 'forward' not in vars(model)


def test_custom_runner_is_built(monkeypatch):
    from mmengine.registry import RUNNERS

    monkeypatch.setattr(RUNNERS, 'build', lambda cfg: cfg.runner_type)
    assert run(Config(dict(runner_type='Mine')), 'training', str.lower) == 'mine'


def test_testing_never_writes_the_config_of_the_training_run(monkeypatch, tmp_path):
    """Not even until the evaluation begins, before which the test may be killed."""
    path = tmp_path / 'w' / 'mine.py'
    path.parent.mkdir()
    path.write_text('a = 1')
    (tmp_path / 'mine.py').touch()
    cfg = Config(dict(work_dir=os.path.relpath(path.parent)), filename=str(tmp_path / 'mine.py'))

    def build(cfg):
        cfg.dump(str(path))  # as MMEngine's runner does when it is built
        cfg.dump(str(path.with_name('other.py')))
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, 'from_cfg', build)
    with pytest.raises(KeyboardInterrupt):
        test(cfg, 'a.pth')
    assert path.read_text() == 'a = 1' and path.with_name('other.py').exists()
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    assert 'work_dir' in path.read_text()


@pytest.mark.parametrize(
    'env, expected',
    [({}, True), ({'LOCAL_RANK': '0'}, True), ({'LOCAL_RANK': '0', 'SLURM_LOCALID': '1'}, False)],
)
def test_one_process_of_a_machine_checks_the_data(env, expected, monkeypatch):
    for name in ('OMPI_COMM_WORLD_LOCAL_RANK', 'SLURM_LOCALID', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert is_first_here() == expected


def test_model_wrapper_of_several_processes_on_cpus(monkeypatch):
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=dict(find_unused_parameters=True)))
    monkeypatch.setattr('fcvit_mm.engine.distributed.get_device', lambda: 'cpu')
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    for step in TESTING_STEPS:
        step(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None
    )
