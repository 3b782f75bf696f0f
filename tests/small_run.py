"""A tiny training run whose data and model use all random generators, to test interruption and resuming."""

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from fcvit_mm.engine.hooks.checkpoint import AtomicCheckpointHook, Interrupted
from fcvit_mm.engine.run import TRAINING_STEPS, run_training_loop
from fcvit_mm.files import atomic_local_writes
from fcvit_mm.registry import DATASETS, MODELS

SIZE = 12


@DATASETS.register_module()
class Numbers(BaseDataset):
    """A data set whose samples contain numbers of all random generators that augmentation may use."""

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


class RecordingHook(Hook):
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
    change=None,
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
    cfg.merge_from_dict(change or {})
    for step in TRAINING_STEPS:
        step(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    recorder = RecordingHook(end, how)
    runner.register_hook(recorder)
    try:
        with atomic_local_writes():
            run_training_loop(runner)
    except KeyboardInterrupt:
        pass
    except Interrupted as error:
        assert error.code == 143
    # End the workers now; the garbage collector would wait ten seconds for them.
    for loader in (runner.train_loop.dataloader, getattr(runner.train_loop, 'dataloader_iterator', None)):
        iterator = getattr(loader, '_iterator', None)
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
    runner.train_loop.dataloader._iterator = runner.train_loop.dataloader_iterator = None
    return recorder.seen, runner
