import os
from pathlib import Path

import pytest
import torch
from mmengine._strategy import SingleDeviceStrategy
from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import STRATEGIES
from small_run import train

from fcvit_mm.engine.hooks.resume import (
    ResumeError,
    load_samples,
    make_resumable,
)
from fcvit_mm.engine.resume_point import find_resume_point
from fcvit_mm.errors import LibraryError, UserError
from fcvit_mm.registry import HOOKS


def assert_resumes(tmp_path, start, end, **options):
    """Check that a run interrupted before iteration ``end`` resumes at ``start``, with the same results."""
    expected, whole = train(tmp_path / 'whole', **options)
    seen, _ = train(tmp_path / 'cut', end=end, **options)
    more, runner = train(tmp_path / 'cut', resume=True, **options)
    assert sorted(more) == list(range(start, max(expected) + 1)) and runner.iter == whole.iter
    for iteration, batch in {**seen, **more}.items():
        assert torch.equal(batch, expected[iteration]), iteration
    assert torch.equal(runner.model.fc.weight, whole.model.fc.weight)
    return expected


@pytest.mark.parametrize(
    'by_epoch, sampler, start, workers',
    [(True, 'DefaultSampler', 4, 2), (False, 'InfiniteSampler', 4, 2), (False, 'DefaultSampler', 4, 0)],
)
def test_resumed_run_has_the_same_images_and_augmentations(by_epoch, sampler, start, workers, tmp_path):
    expected = assert_resumes(tmp_path, start, 6, by_epoch=by_epoch, sampler=sampler, workers=workers)
    assert len(torch.cat(list(expected.values()))[:, 1:].unique()) == 3 * 3 * len(expected)  # no number twice


@pytest.mark.parametrize('by_epoch', [True, False])
def test_sigterm_resumes_inside_an_epoch(by_epoch, tmp_path):
    assert_resumes(tmp_path, 7, 6, by_epoch=by_epoch, how='SIGTERM')
    # Regular checkpoints have taken its place.
    assert not (tmp_path / 'cut' / 'interrupted.pth').exists()


@HOOKS.register_module()
class Places(Hook):
    """Record the index of each batch as hooks and logs count it, and whether it is the last of its epoch."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        end = self.end_of_epoch(runner.train_dataloader, batch_idx)
        self.seen.append((runner.epoch, batch_idx, end))


@pytest.mark.parametrize('batch_size, trained', [(3, 3), (2, 4)])
def test_batch_indices_continue_in_a_resumed_epoch(batch_size, trained, tmp_path):
    train(tmp_path, by_epoch=True, end=6, how='SIGTERM')  # after 9 of the 12 samples of epoch 1
    change = dict(custom_hooks=[dict(type='Places')], train_dataloader=dict(batch_size=batch_size))
    _, runner = train(tmp_path, by_epoch=True, resume=True, change=change)
    seen = next(hook.seen for hook in runner.hooks if isinstance(hook, Places))
    last = 12 // batch_size - 1
    assert seen == [
        *((1, number, number == last) for number in range(trained, last + 1)),
        *((2, number, number == last) for number in range(last + 1)),
    ]


@HOOKS.register_module()
class SavesBeforeTraining(Hook):
    """Save before the first iteration, as an overdue validation does that finds a new best score."""

    def before_train(self, runner):
        if runner.iter:
            place = dict(epoch=runner.epoch, iter=runner.iter)
            runner.save_checkpoint(runner.work_dir, 'again.pth', meta=place, by_epoch=False)
            Path(runner.work_dir, 'last_checkpoint').write_text('again.pth')


@pytest.mark.parametrize(
    'by_epoch, how, start', [(True, KeyboardInterrupt, 4), (True, 'SIGTERM', 7), (False, 'SIGTERM', 7)]
)
def test_checkpoint_that_is_saved_before_the_first_iteration(by_epoch, how, start, tmp_path):
    expected, _ = train(tmp_path / 'whole', by_epoch=by_epoch)
    train(tmp_path / 'cut', by_epoch=by_epoch, end=6, how=how)
    change = dict(custom_hooks=[dict(type='SavesBeforeTraining')])
    train(tmp_path / 'cut', by_epoch=by_epoch, resume=True, change=change, end=start)
    more, _ = train(tmp_path / 'cut', by_epoch=by_epoch, resume=True)
    assert sorted(more) == list(range(start, max(expected) + 1))
    assert all(torch.equal(batch, expected[iteration]) for iteration, batch in more.items())


def test_number_of_workers_does_not_change_the_batches(tmp_path):
    runs = [train(tmp_path / str(workers), by_epoch=True, workers=workers)[0] for workers in (0, 2)]
    for other in runs[1:]:
        assert all(torch.equal(batch, other[iteration]) for iteration, batch in runs[0].items())


def test_random_seed_is_kept(tmp_path):
    first, _ = train(tmp_path, by_epoch=True, end=6, seed=None)
    more, _ = train(tmp_path, by_epoch=True, resume=True, seed=None)
    assert torch.equal(more[4], first[4]) and torch.equal(more[5], first[5])
    other, _ = train(tmp_path / 'other', by_epoch=True, end=6, seed=None)
    assert not torch.equal(other[4], first[4])


@pytest.mark.parametrize('end, start, how', [(6, 4, KeyboardInterrupt), (6, 7, 'SIGTERM')])
def test_flexible_runner_resumes(end, start, how, tmp_path):
    change = dict(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'), env_cfg={})
    assert_resumes(tmp_path, start, end, by_epoch=True, change=change, how=how)


@STRATEGIES.register_module()
class FolderStrategy(SingleDeviceStrategy):
    """Writes a folder with one file per process, as MMEngine's FSDP and DeepSpeed strategies do."""

    def save_checkpoint(self, filename, **kwargs):
        os.makedirs(filename)
        super().save_checkpoint(os.path.join(filename, 'rank0.pth'), **kwargs)

    def load_checkpoint(self, filename, **kwargs):
        return super().load_checkpoint(os.path.join(filename, 'rank0.pth'), **kwargs)


@pytest.mark.parametrize('end, start, how', [(6, 4, KeyboardInterrupt), (6, 7, 'SIGTERM')])
def test_resumes_from_folder_checkpoints(end, start, how, tmp_path):
    change = dict(runner_type='FlexibleRunner', strategy=dict(type='FolderStrategy'), env_cfg={})
    assert_resumes(tmp_path, start, end, by_epoch=True, change=change, how=how)


def test_random_seed_of_a_folder_checkpoint_is_reported_as_lost(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.run.print_log', lambda text, **_: logged.append(text))
    change = dict(runner_type='FlexibleRunner', strategy=dict(type='FolderStrategy'), env_cfg={})
    for seed in (3, None):
        train(tmp_path / str(seed), True, change=change, seed=seed, end=6)
        train(tmp_path / str(seed), True, change=change, seed=seed, resume=True)
    assert len(logged) == 1 and 'Set randomness.seed to continue in the same order' in logged[0]


SCHEDULES = dict(
    ConstantLR=dict(factor=0.5),
    CosineAnnealingLR=dict(T_max=3),
    CosineRestartLR=dict(periods=[4, 8], restart_weights=[1, 0.5], eta_min=0),
    ExponentialLR=dict(gamma=0.9),
    LinearLR=dict(start_factor=0.1),
    MultiStepLR=dict(milestones=[2, 5]),
    OneCycleLR=dict(eta_max=0.1, total_steps=12),
    PolyLR=dict(eta_min=1e-3, end=10),
    ReduceOnPlateauLR=dict(monitor='loss', patience=1),
    StepLR=dict(step_size=2),
)


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules_of_mmengine(name, tmp_path):
    schedule = dict(type=name, by_epoch=name == 'ReduceOnPlateauLR', **SCHEDULES[name])
    assert_resumes(tmp_path, 4, 6, by_epoch=True, change=dict(param_scheduler=[schedule]))


def samples(seen):
    return [int(row[0]) for iteration in sorted(seen) for row in seen[iteration]]


@pytest.mark.parametrize('how', [KeyboardInterrupt, 'SIGTERM'])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_resumes_with_another_batch_size(by_epoch, how, tmp_path):
    """Each pass has each of the twelve samples once, and no pass is empty."""
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    before, _ = train(tmp_path, by_epoch, sampler, end=6, how=how)
    end = {'train_cfg.max_epochs': 6} if by_epoch else {'train_cfg.max_iters': 15}
    after, runner = train(tmp_path, by_epoch, sampler, resume=True, change={'train_dataloader.batch_size': 4, **end})
    kept = {True: {KeyboardInterrupt: 12, 'SIGTERM': 21}, False: {KeyboardInterrupt: 12, 'SIGTERM': 21}}[by_epoch][how]
    seen = samples(before)[:kept] + samples(after)
    passes = [seen[start : start + 12] for start in range(0, len(seen) // 12 * 12, 12)]
    assert len(passes) >= 4 and all(sorted(each) == list(range(12)) for each in passes)
    if by_epoch:
        assert len(passes) == 6 and runner.iter == 6 * 3


def test_longer_run_follows_the_schedule_of_the_config(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.hooks.resume.print_log', lambda text, **_: logged.append(text))
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, T_max=3)
    train(tmp_path / 'a', True, change=dict(param_scheduler=[cosine]))
    longer = {'train_cfg.max_epochs': 6, 'param_scheduler': [dict(cosine, T_max=6)]}
    _, runner = train(tmp_path / 'a', True, resume=True, change=longer)
    _, expected = train(tmp_path / 'b', True, change=longer)
    rates = [[group['lr'] for group in each.optim_wrapper.param_groups] for each in (runner, expected)]
    assert rates[0] == rates[1]
    assert any('CosineAnnealingLR.T_max 3 -> 6' in text for text in logged)
    assert any('training ends at epoch 6, previously at 3' in text for text in logged)


def test_message_names_the_learning_rate_of_a_longer_run(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.hooks.resume.print_log', lambda text, **_: logged.append(text))
    # With settings for parts, MMEngine's wrapper has a group more, which no scaling changes.
    parts = {'optim_wrapper.paramwise_cfg': dict(bias_lr_mult=1.0)}
    scaled = {**parts, 'auto_scale_lr': dict(enable=True, base_batch_size=60)}
    train(tmp_path, True, change=scaled)
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['optimizer']['param_groups']
    train(tmp_path, True, resume=True, change={**scaled, 'train_cfg.max_epochs': 4})
    (text,) = [text for text in logged if 'training ends at epoch 4, previously at 3' in text]
    (rate,) = {group['lr'] for group in saved}
    assert rate == pytest.approx(0.1 * 3 / 60) and text.endswith('the learning rate continues at 0.005.')


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'optim_wrapper.optimizer': dict(type='SGD', lr=0.1, _delete_=True)},
            'type is SGD, but the checkpoint has the state of Ad',
        ),
        ({'train_dataloader.sampler.shuffle': False}, 'sampler.shuffle is False, but was True'),
        (
            dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=9)),
            'is iteration-based, but the run .* epoch-based',
        ),
    ],
)
def test_changes_that_prevent_resuming_are_refused(change, message, tmp_path):
    train(tmp_path, True, end=6, how='SIGTERM')
    with pytest.raises(ResumeError, match=message):
        train(tmp_path, True, resume=True, change=change)


def test_early_stopping_continues_counting(tmp_path):
    @HOOKS.register_module(force=True)
    class CountingHook(EarlyStoppingHook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.wait_count, self.best_score = self.wait_count + 1, 0.5

    change = dict(custom_hooks=[dict(type='CountingHook', monitor='loss', rule='less')])
    train(tmp_path, True, end=6, how='SIGTERM', change=change)
    _, runner = train(tmp_path, True, resume=True, change=change)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, CountingHook)]
    assert (hook.wait_count, hook.best_score) == (runner.iter, 0.5)
    change['custom_hooks'][0]['monitor'] = 'another'
    _, runner = train(tmp_path, True, resume=True, change={**change, 'train_cfg.max_epochs': 4})
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, CountingHook)]
    assert hook.wait_count == 4


def test_another_data_set_restarts_the_epoch(tmp_path, monkeypatch):
    train(tmp_path, True, end=6, how='SIGTERM')
    monkeypatch.setattr('small_run.SIZE', 9)
    seen, runner = train(tmp_path, True, resume=True)
    assert sorted(samples(seen)) == sorted([*range(9)] * 2) and runner.iter == 9


@pytest.mark.parametrize('iteration, trained', [(4, 8), (7, 5)])
def test_checkpoints_without_a_batch_size_resume(iteration, trained, tmp_path, monkeypatch):
    """For checkpoints of earlier versions and of MMEngine, the current batch size is assumed."""
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.hooks.resume.print_log', lambda text, **_: logged.append(text))
    end = dict(end=4, how=KeyboardInterrupt) if iteration == 4 else dict(end=6, how='SIGTERM')
    train(tmp_path, True, **end)
    path = find_resume_point(str(tmp_path))
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint['meta'].pop('run')['pass'] == 1
    torch.save(checkpoint, path)
    seen, _ = train(tmp_path, True, resume=True)
    assert len(seen) == trained and sum('does not contain its batch size' in text for text in logged) == 1


@pytest.mark.parametrize('left, message', [((), 'of 0 of 2 parameters'), ((0,), 'of 1 of 2 parameters')])
def test_removed_optimizer_states_are_refused(left, message, tmp_path):
    train(tmp_path, True, end=4)
    path = find_resume_point(str(tmp_path))
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint['meta']['run']['states'] == [2]
    checkpoint['optimizer']['state'] = {key: checkpoint['optimizer']['state'][key] for key in left}
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=f'optimizer state \\(AdamW\\) {message}, but of 2 when it was written'):
        train(tmp_path, True, resume=True)


def test_averaged_weights_without_ema_hook_are_reported(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.hooks.resume.print_log', lambda text, **_: logged.append(text))
    hook = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    train(tmp_path, True, end=4, change=hook)
    train(tmp_path, True, end=5, resume=True, change=hook)
    assert not any('EMAHook' in text for text in logged)
    train(tmp_path, True, end=5, resume=True)
    (text,) = [text for text in logged if 'EMAHook' in text]
    assert text.startswith('Resuming: the checkpoint has averaged weights of EMAHook, which the config lacks: training')


def test_config_keeps_its_batch_sampler():
    cfg = Config(dict(train_dataloader=dict(batch_size=2, drop_last=True, sampler=dict(type='DefaultSampler'))))
    make_resumable(cfg)
    expected = dict(type='ResumableBatchSampler', batch_sampler=dict(type='BatchSampler', drop_last=True))
    assert cfg.train_dataloader.batch_sampler == expected and 'drop_last' not in cfg.train_dataloader
    make_resumable(cfg)
    assert cfg.train_dataloader.batch_sampler == expected
    cfg = Config(dict(train_dataloader=dict(sampler=dict(type='A'), batch_sampler=dict(type='ByAspectRatio'))))
    make_resumable(cfg)
    assert cfg.train_dataloader.batch_sampler.batch_sampler.type == 'ByAspectRatio'


@pytest.mark.parametrize('by_epoch', [True, False])
def test_other_hooks_find_the_attributes_of_the_data_loader(by_epoch, tmp_path):
    """As without the wrapper around its batch sampler."""
    _, runner = train(tmp_path, by_epoch, workers=1)
    loader = runner.train_loop.dataloader
    assert (loader.batch_size, loader.drop_last, type(loader.sampler).__name__) == (3, False, 'DefaultSampler')
    assert loader.sampler is loader.batch_sampler.sampler and len(loader) == 4


def test_error_names_the_failing_sample():
    class Rows:
        def __getitem__(self, index):
            return [0, 1][index]

    with pytest.raises(LibraryError, match=r'loading sample 7 of Rows failed: IndexError: list index out of range'):
        load_samples(Rows(), [0, 7])
