"""Runs that go on after an interruption as if there had been none: the same data, the same random numbers.

MMEngine restores weights, optimizer and schedules. What it leaves open is closed here: which checkpoint of a work
directory is complete, a seed that nobody set, random numbers that depend on how long the process lives, a place inside
an epoch, and a validation that was cut off.
"""

import functools
import hashlib
import os
import os.path as osp
import random
import zipfile
from typing import Iterator, List, Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import IterBasedTrainLoop, set_random_seed
from torch.utils.data import BatchSampler

from ...registry import HOOKS


def find_resume_point(work_dir: str) -> Optional[str]:
    """The latest checkpoint of a work directory that is complete.

    ``last_checkpoint`` names it. Should that file be damaged, name one that is gone (a work directory that was moved)
    or one that was cut off (written by something else than this package's hook), the newest complete one is taken.

    Returns:
        str | None: Its path; ``None`` where training never got to the first.
    """
    named = None
    try:
        with open(osp.join(work_dir, 'last_checkpoint'), encoding='utf-8') as file:
            named = file.read().strip()
    except (OSError, ValueError):
        pass
    if named and '://' in named:
        return named
    if named:
        for path in (named, osp.join(work_dir, osp.basename(named))):
            if is_complete(path):
                return path
    # Best checkpoints have no optimizer to go on with.
    found = (
        [
            entry.path
            for entry in os.scandir(work_dir)
            if entry.name.endswith('.pth') and entry.is_file() and not entry.name.startswith('best_')
        ]
        if osp.isdir(work_dir)
        else []
    )
    found = [path for path in sorted(found, key=osp.getmtime) if is_complete(path)]
    if not found:
        return None
    print_log(
        f'{osp.join(work_dir, "last_checkpoint")} names no complete checkpoint ({named!r}): going on from '
        f'{found[-1]}, the newest one that is',
        logger='current',
        level=30,
    )
    return found[-1]


def is_complete(path: str) -> bool:
    """Whether a file is a zip archive to its end, as torch writes checkpoints. Fast: its contents are not read."""
    if osp.isdir(path):  # as DeepSpeed writes them
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def make_resumable(cfg: Config) -> None:
    """Let the training batches carry their random seeds, and let them be skipped without being loaded."""
    loader = cfg.get('train_dataloader')
    if not loader or not isinstance(loader.get('sampler'), dict):
        return
    inner = loader.get('batch_sampler') or dict(type='BatchSampler', drop_last=loader.pop('drop_last', False))
    if isinstance(inner, dict) and inner.get('type') != 'ResumableBatchSampler':
        loader['batch_sampler'] = dict(type='ResumableBatchSampler', batch_sampler=inner)


def mix(*numbers: int) -> int:
    """A seed of 32 bits from some numbers; unlike a sum, it is another one for each combination."""
    digest = hashlib.blake2b(','.join(map(str, numbers)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, 'little')


class Index(int):
    """The index of a sample, with the seed for what is random about loading it."""

    def __new__(cls, value: int, seed: int):
        self = super().__new__(cls, value)
        self.seed = seed
        return self

    def __reduce__(self):
        return Index, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(BatchSampler):
    """Another batch sampler's batches, each sample with a seed that depends on its place in the run alone.

    So augmentation is the same whether a run was interrupted or not, and for any number of workers.

    Args:
        sampler (Sampler): As for any batch sampler.
        batch_size (int): As for any batch sampler.
        batch_sampler (dict): The other one's config; ``dict(type='BatchSampler')`` is torch's.
    """

    def __init__(self, sampler, batch_size: int, batch_sampler: dict) -> None:
        batch_sampler = dict(batch_sampler)
        if batch_sampler['type'] == 'BatchSampler':
            self.batches = BatchSampler(sampler, batch_size, batch_sampler.get('drop_last', False))
        else:
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = getattr(self.batches, 'drop_last', False)
        self.rank = get_dist_info()[0]
        self.skipped = 0

    def skip(self, number: int) -> None:
        """Leave out the first batches of the next pass."""
        self.skipped = number

    def __iter__(self) -> Iterator[List[Index]]:
        start, self.skipped = self.skipped, 0
        if isinstance(self.sampler, InfiniteSampler):
            # It has one stream for all that read it; data loaders that are made anew must find its beginning.
            self.sampler.indices = self.sampler._indices_of_rank()
        # MMEngine sets these on its samplers; a sampler without an epoch never ends.
        seed, epoch = getattr(self.sampler, 'seed', None) or 0, getattr(self.sampler, 'epoch', 0)
        for number, batch in enumerate(self.batches):
            if number >= start:
                yield [Index(index, mix(seed, self.rank, epoch, number, place)) for place, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self.batches)


def load_samples(dataset, indices: List[int]) -> list:
    """The samples of a batch, each loaded from the seed that its index brings (what torch calls ``__getitems__``)."""
    samples = []
    for index in indices:
        if isinstance(index, Index):
            random.seed(index.seed)
            np.random.seed(index.seed)
            torch.default_generator.manual_seed(index.seed)
        samples.append(dataset[int(index)])
    return samples


def start_anew(loop: IterBasedTrainLoop):
    """MMEngine's endless iterator over the loop's data loader, with workers of its own."""
    loop.dataloader._iterator = None  # torch keeps persistent workers here
    return type(loop.dataloader_iterator)(loop.dataloader)


class ResumedBatches:
    """The endless batches of a run by iteration, from a given one on; those before are not loaded.

    MMEngine asks to skip them by ``skip_iter`` or, in 0.10.7, by taking them.
    """

    def __init__(self, batches, number: int) -> None:
        self.batches = batches
        self.pending = number
        self.skips = hasattr(batches, 'skip_iter')

    def __iter__(self):
        return self

    def skip_iter(self, number: int) -> None:
        self.pending = 0

    def __next__(self):
        if self.pending and not self.skips:
            self.pending -= 1
            return None
        return next(self.batches)


@HOOKS.register_module()
class ResumableHook(Hook):
    """Let a run that goes on from a checkpoint be the run that was not interrupted. Tools add it by themselves.

    - Random numbers of an iteration (drop path, dropout, Mixup, sampled proposals) depend on the run's seed, the
      process and the iteration, not on what the process did before.
    - Batches that were trained before are skipped without loading, by iteration and inside an epoch.
    - A validation that was due at the checkpoint is done again: the best checkpoint is the one it would have been.
    """

    priority = 'LOWEST'  # after the others have set themselves up

    def before_run(self, runner) -> None:
        loop = getattr(runner, '_train_loop', None)
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        if dataset is None or not hasattr(dataset, '__getitem__'):
            return
        if isinstance(loop.dataloader.batch_sampler, ResumableBatchSampler):
            dataset.__getitems__ = functools.partial(load_samples, dataset)
        if isinstance(loop, IterBasedTrainLoop):
            # MMEngine 0.10.7 has started its workers, which do not know what hooks did to the data set since.
            loop.dataloader_iterator = start_anew(loop)

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        if runner.iter == 0 or runner.val_loop is None:
            return
        by_iter = isinstance(loop, IterBasedTrainLoop)
        position, end = (loop.iter, loop.max_iters) if by_iter else (loop.epoch, loop.max_epochs)
        if not by_iter and loop.iter != loop.epoch * len(loop.dataloader):
            return  # inside an epoch
        loop._decide_current_val_interval()
        if position >= loop.val_begin and (position % loop.val_interval == 0 or position == end):
            runner.logger.info('Validating first, as it was due when the checkpoint was written')
            runner.val_loop.run()

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        sampler = getattr(loop.dataloader, 'batch_sampler', None)
        if not isinstance(sampler, ResumableBatchSampler):
            return
        if isinstance(loop, IterBasedTrainLoop):
            if loop.iter:
                self._skip_iterations(loop, sampler)
            return
        done = loop.iter - loop.epoch * len(loop.dataloader)
        if done > 0:
            runner.logger.info(f'Going on inside epoch {loop.epoch + 1}, after its first {done} iterations')
            sampler.skip(done)

    @staticmethod
    def _skip_iterations(loop, sampler: ResumableBatchSampler) -> None:
        number, passes = loop.iter, 0
        if hasattr(sampler.sampler, 'set_epoch') and hasattr(sampler.sampler, 'epoch'):
            # A sampler that ends: as many passes are over, each after as many batches as a pass has.
            passes, number = divmod(number, len(sampler))
            sampler.sampler.set_epoch(passes)
        sampler.skip(number)
        batches = start_anew(loop)
        batches._epoch = passes
        loop.dataloader_iterator = ResumedBatches(batches, loop.iter)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        set_random_seed(mix(runner.seed, runner.rank, runner.iter))
