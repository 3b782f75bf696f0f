import functools
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace

import mmengine.runner
import numpy as np
import pytest
import torch
from harness import ROOT
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from fcvit_mm import files
from fcvit_mm.engine.hooks.checkpoint import AtomicCheckpointHook, Interrupted
from fcvit_mm.engine.hooks.resume import (
    Index,
    ResumableBatchSampler,
    find_resume_point,
    is_complete,
    make_resumable,
    mix,
)
from fcvit_mm.engine.run import TRAINING_STEPS, run_training_loop
from fcvit_mm.files import WriteError
from fcvit_mm.registry import DATASETS, MODELS

SIZE = 12


@DATASETS.register_module()
class Numbers(BaseDataset):
    """Its pipeline draws from every generator that augmentation may use."""

    def load_data_list(self):
        return [dict(number=number) for number in range(SIZE)]

    def prepare_data(self, index):
        return dict(
            inputs=torch.tensor([index, random.random(), np.random.rand(), torch.rand(1).item()]), data_samples=index
        )


@MODELS.register_module()
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 1)
        self.drop = nn.Dropout()

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.drop(self.fc(torch.stack(inputs))).square().mean())


class Witness(Hook):
    priority = 'VERY_HIGH'

    def __init__(self, end=None, how=KeyboardInterrupt):
        self.seen, self.end, self.how = {}, end, how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.end:
            if self.how == 'SIGTERM':
                next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)).terminated = True
            else:
                raise self.how
        self.seen[runner.iter] = torch.stack(data_batch['inputs'])


def train(
    work_dir,
    by_epoch,
    sampler='DefaultSampler',
    workers=0,
    end=None,
    resume=False,
    seed=3,
    how=KeyboardInterrupt,
    **checkpoint,
):
    cfg = Config(
        dict(
            model=dict(type='Line'),
            work_dir=str(work_dir),
            resume=resume,
            randomness=dict(seed=seed),
            experiment_name=f'{work_dir.name}{end}{resume}',
            train_cfg=dict(by_epoch=True, max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=9),
            train_dataloader=dict(
                batch_size=3,
                num_workers=workers,
                dataset=dict(type='Numbers'),
                persistent_workers=workers > 0,
                sampler=dict(type=sampler, shuffle=True),
            ),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            log_level='ERROR',
            param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)],
            default_hooks=dict(
                logger=None,
                checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4, **checkpoint),
            ),
        )
    )
    for step in TRAINING_STEPS:
        step(cfg)
    runner = Runner.from_cfg(cfg)
    witness = Witness(end, how)
    runner.register_hook(witness)
    try:
        run_training_loop(runner)
    except KeyboardInterrupt:
        pass
    except Interrupted as error:
        assert error.code == 143
    # Workers end at once now; left to the garbage collector, it waits ten seconds for them.
    runner.train_loop.dataloader._iterator = runner.train_loop.dataloader_iterator = None
    return witness.seen, runner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what MMEngine's runner asks the system at each start, and its pause between passes."""
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.runner.loops.time, 'sleep', lambda seconds: None)


def assert_goes_on(tmp_path, start, end, **options):
    """A run that ends before iteration ``end`` goes on at ``start``, as one that does not end."""
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
def test_same_images_augmented_alike(by_epoch, sampler, start, workers, tmp_path):
    expected = assert_goes_on(tmp_path, start, 6, by_epoch=by_epoch, sampler=sampler, workers=workers)
    assert len(torch.cat(list(expected.values()))[:, 1:].unique()) == 3 * 3 * len(expected)  # no number twice


@pytest.mark.parametrize('by_epoch', [True, False])
def test_sigterm_goes_on_inside_an_epoch(by_epoch, tmp_path):
    assert_goes_on(tmp_path, 7, 6, by_epoch=by_epoch, how='SIGTERM')
    # Regular checkpoints have taken its place.
    assert not (tmp_path / 'cut' / 'interrupted.pth').exists()


ALONE = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}, {tests!r} + '/engine/hooks']
from pathlib import Path
import test_resume

class Group(test_resume.Witness):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            os.killpg(0, signal.SIGTERM)

test_resume.Witness = Group
test_resume.train(Path({work_dir!r}), by_epoch=True, workers=2)
"""


def test_sigterm_for_the_workers_too(tmp_path):
    """As Slurm sends it to a whole group: torch would end training for its workers' end."""
    code = ALONE.format(root=str(ROOT), tests=str(ROOT / 'tests'), work_dir=str(tmp_path))
    done = subprocess.run(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=120,
    )
    assert (tmp_path / 'last_checkpoint').read_text().endswith('interrupted.pth'), done.stdout
    saved = torch.load(tmp_path / 'interrupted.pth', map_location='cpu', weights_only=False)
    assert saved['meta']['iter'] in (5, 6) and saved['optimizer']['state']


def test_workers_make_no_difference(tmp_path):
    runs = [train(tmp_path / str(workers), by_epoch=True, workers=workers)[0] for workers in (0, 2)]
    for other in runs[1:]:
        assert all(torch.equal(batch, other[iteration]) for iteration, batch in runs[0].items())


def test_a_seed_that_nobody_set_is_kept(tmp_path):
    first, _ = train(tmp_path, by_epoch=True, end=6, seed=None)
    more, _ = train(tmp_path, by_epoch=True, resume=True, seed=None)
    assert torch.equal(more[4], first[4]) and torch.equal(more[5], first[5])
    other, _ = train(tmp_path / 'other', by_epoch=True, end=6, seed=None)
    assert not torch.equal(other[4], first[4])


def test_a_full_disk_ends_training_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    original = files.os.replace

    def replace(source, target):
        if target.endswith('epoch_2.pth'):
            raise OSError(28, 'No space left on device')
        original(source, target)

    monkeypatch.setattr(files.os, 'replace', replace)
    with pytest.raises(
        WriteError,
        match='epoch_2.pth .* No space left on device.* Training ends here. .*epoch_1.pth '
        'is complete: make room and resume from it with --resume',
    ):
        train(tmp_path, by_epoch=True)
    assert find_resume_point(str(tmp_path)).endswith('epoch_1.pth')
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['epoch_1.pth']


@pytest.mark.parametrize('keep, left', [(1, ['epoch_3.pth']), (2, ['epoch_2.pth', 'epoch_3.pth'])])
def test_old_checkpoints_go_when_the_new_one_stands(keep, left, tmp_path, monkeypatch):
    seen = []
    original = AtomicCheckpointHook._point_to

    def point_to(self, runner, path):
        seen.append(sorted(file.name for file in tmp_path.glob('*.pth')))
        original(self, runner, path)

    monkeypatch.setattr(AtomicCheckpointHook, '_point_to', point_to)
    train(tmp_path, by_epoch=True, max_keep_ckpts=keep)
    # While last_checkpoint is written, the checkpoint that it named is still there.
    assert [len(files) for files in seen] == [1, 2, min(keep + 1, 3)]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == left


def test_what_a_killed_run_was_writing_is_swept_away(tmp_path):
    (tmp_path / '.epoch_1.pth.abc.tmp').write_bytes(b'half')
    train(tmp_path, by_epoch=True)
    assert not list(tmp_path.glob('.*.tmp'))


def test_resume_point(tmp_path):
    assert find_resume_point(str(tmp_path)) is None and find_resume_point(str(tmp_path / 'none')) is None
    for name in ('epoch_1', 'epoch_2', 'best_acc_epoch_3'):
        torch.save({'a': torch.ones(1000)}, tmp_path / f'{name}.pth')
    first, second = str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'epoch_2.pth')
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text(first)
    assert find_resume_point(str(tmp_path)) == first
    pointer.write_text('/moved/from/epoch_1.pth')
    assert find_resume_point(str(tmp_path)) == first
    for content in (b'', b'\xff\xfe', b'gone.pth'):
        pointer.write_bytes(content)
        assert find_resume_point(str(tmp_path)) == second
    with open(second, 'r+b') as file:
        file.truncate(1500)
    pointer.write_text(second)
    assert not is_complete(second) and find_resume_point(str(tmp_path)) == first
    pointer.write_text('s3://bucket/epoch_9.pth')
    assert find_resume_point(str(tmp_path)) == 's3://bucket/epoch_9.pth'


def test_batches_can_be_skipped_and_bring_seeds():
    class Sampler(SimpleNamespace):
        def __iter__(self):
            return iter(range(10))

        def __len__(self):
            return 10

    make = functools.partial(ResumableBatchSampler, batch_size=4, batch_sampler=dict(type='BatchSampler'))
    sampler = make(Sampler(seed=1, epoch=0))
    whole = list(sampler)
    assert len(sampler) == 3 and whole == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sampler.skip(2)
    rest = list(sampler)
    assert rest == whole[2:] and [index.seed for index in rest[0]] == [index.seed for index in whole[2]]
    assert list(sampler) == whole  # once
    seeds = {
        index.seed
        for epoch in range(3)
        for seed in range(3)
        for batch in make(Sampler(seed=seed, epoch=epoch))
        for index in batch
    }
    assert len(seeds) == 90
    copy = pickle.loads(pickle.dumps(whole[0][1]))
    assert copy == 1 and isinstance(copy, Index) and copy.seed == whole[0][1].seed


def test_mixed_seeds_differ():
    assert len({mix(a, b) for a in range(100) for b in range(100)}) > 9990
    assert 0 <= mix(1) < 2**32 and mix(1, 2) != mix(12) and mix(2, 1) != mix(1, 2)


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
