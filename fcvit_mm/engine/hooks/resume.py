"""Resuming after an interruption as if there had been none: the same data, the same random numbers.

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
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed
from torch.utils.data import BatchSampler

from ...errors import library_errors
from ...registry import DATA_SAMPLERS, HOOKS
from ..config import type_name


def select_resume_point(cfg: Config) -> None:
    """Choose the checkpoint that ``resume`` continues from: ``load_from``, or else the work directory's last.

    Afterwards ``cfg.load_from`` names it and the backbone's pretrained file is not needed; without any checkpoint
    ``cfg.resume`` is ``False``. A config whose resume point was chosen stays as it is.
    """
    if not cfg.get('resume'):
        return
    cfg.load_from = cfg.get('load_from') or find_resume_point(cfg.work_dir)
    if not cfg.load_from:
        cfg.resume = False
        print_log(f'Nothing to resume from in {cfg.work_dir}: starting anew.', logger='current')
        return
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if type_name(backbone.get('init_cfg') or {}) == 'Pretrained':
        backbone['init_cfg'] = None


def find_resume_point(work_dir: str) -> Optional[str]:
    """Find the latest complete checkpoint of a work directory.

    ``last_checkpoint`` names it. If that file is corrupt, or names one that is missing (a work directory that was
    moved) or truncated (not written by this package's hook), it is the newest complete one.

    Returns:
        str | None: Its path; ``None`` if training never got to the first.
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
    # Best checkpoints have no optimizer to resume with.
    names = os.listdir(work_dir) if osp.isdir(work_dir) else []
    paths = [
        osp.join(work_dir, name) for name in names if name.endswith('.pth') and not name.startswith(('best_', '.'))
    ]
    found = [path for path in sorted(paths, key=osp.getmtime) if is_complete(path)]
    if not found:
        return None
    print_log(
        f'{osp.join(work_dir, "last_checkpoint")} names no complete checkpoint ({named!r}): resuming from '
        f'{found[-1]}, the newest complete one',
        logger='current',
        level=30,
    )
    return found[-1]


def is_complete(path: str) -> bool:
    """Check whether a file is a complete zip archive, as torch writes checkpoints. Its contents are not read."""
    if osp.isdir(path):  # as DeepSpeed writes them
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def make_resumable(cfg: Config) -> None:
    """Put :class:`ResumableBatchSampler` around the batch sampler of training."""
    loader = cfg.get('train_dataloader')
    if not loader or not isinstance(loader.get('sampler'), dict):
        return
    inner = loader.get('batch_sampler') or dict(type='BatchSampler', drop_last=loader.pop('drop_last', False))
    if isinstance(inner, dict) and type_name(inner) != 'ResumableBatchSampler':
        loader['batch_sampler'] = dict(type='ResumableBatchSampler', batch_sampler=inner)


def mix(*numbers: int) -> int:
    """Return a seed of 32 bits from some numbers; unlike a sum, it is another one for each combination."""
    digest = hashlib.blake2b(','.join(map(str, numbers)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, 'little')


class Index(int):
    """Index of a sample, with the seed for what is random about loading it."""

    seed: int

    def __new__(cls, value: int, seed: int) -> 'Index':
        self = super().__new__(cls, value)
        self.seed = seed
        return self

    def __reduce__(self) -> Tuple[type, Tuple[int, int]]:
        return Index, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(BatchSampler):
    """Batches of another batch sampler, each sample with a seed that depends on its place in the run alone.

    So augmentation is the same whether a run was interrupted or not, and for any number of workers. Batches that were
    trained before can be skipped without being loaded.

    Args:
        sampler (Sampler): As for any batch sampler.
        batch_size (int): As for any batch sampler.
        batch_sampler (dict): The other one's config; ``dict(type='BatchSampler')`` is torch's.
    """

    def __init__(self, sampler: Any, batch_size: int, batch_sampler: dict) -> None:
        self.batches: Any
        batch_sampler = dict(batch_sampler)
        if type_name(batch_sampler) == 'BatchSampler':
            self.batches = BatchSampler(sampler, batch_size, batch_sampler.get('drop_last', False))
        else:
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = getattr(self.batches, 'drop_last', False)
        self.rank = get_dist_info()[0]
        self.skipped = 0

    def skip(self, number: int) -> None:
        """Skip the first batches of the next pass."""
        self.skipped = number

    def __iter__(self) -> Iterator[List[int]]:
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


def load_samples(dataset: Any, indices: List[int]) -> List[Any]:
    """Load a batch, each sample from the seed that its index brings (torch calls this ``__getitems__``).

    Raises:
        LibraryError: A data set of a library or of the user fails; it names the sample.
    """
    samples = []
    for index in indices:
        if isinstance(index, Index):
            random.seed(index.seed)
            np.random.seed(index.seed)
            torch.default_generator.manual_seed(index.seed)
        doing = f'loading sample {int(index)} of {type(dataset).__name__}'
        with library_errors(doing, 'Check the sample, its annotations and the pipeline'):
            samples.append(dataset[int(index)])
    return samples


def start_anew(loop: IterBasedTrainLoop) -> Any:
    """Build MMEngine's endless iterator over the loop's data loader, with workers of its own."""
    loop.dataloader._iterator = None  # torch keeps persistent workers here
    return type(loop.dataloader_iterator)(loop.dataloader)


class ResumedBatches:
    """Endless batches of a run by iteration, from a given one on; those before are not loaded.

    MMEngine asks to skip them by ``skip_iter`` or, in 0.10.7, by taking them.
    """

    def __init__(self, batches: Any, number: int) -> None:
        self.batches = batches
        self.pending = number
        self.skips = hasattr(batches, 'skip_iter')

    def __iter__(self) -> 'ResumedBatches':
        return self

    def skip_iter(self, number: int) -> None:
        self.pending = 0

    def __next__(self) -> Any:
        if self.pending and not self.skips:
            self.pending -= 1
            return None
        return next(self.batches)


@HOOKS.register_module()
class ResumableHook(Hook):
    """Make a resumed run the same as one that was not interrupted. ``tools/train.py`` adds it.

    - Random numbers of an iteration (drop path, dropout, Mixup, sampled proposals) depend on the run's seed, the
      process and the iteration, not on what the process did before.
    - Batches that were trained before are skipped without loading, by iteration and inside an epoch.
    - A validation that was due at the checkpoint is done again: the best checkpoint is the one it would have been.
    """

    priority = 'LOWEST'  # after the others have set themselves up

    def before_run(self, runner: Runner) -> None:
        loop: Any = getattr(runner, '_train_loop', None)
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        if dataset is None or not hasattr(dataset, '__getitem__'):
            return
        if isinstance(loop.dataloader.batch_sampler, ResumableBatchSampler):
            dataset.__getitems__ = functools.partial(load_samples, dataset)
        if isinstance(loop, IterBasedTrainLoop):
            # MMEngine 0.10.7 has started its workers, which do not know what hooks did to the data set since.
            loop.dataloader_iterator = start_anew(loop)

    def before_train(self, runner: Runner) -> None:
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

    def before_train_epoch(self, runner: Runner) -> None:
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
            runner.logger.info(f'Resuming inside epoch {loop.epoch + 1}, after its first {done} iterations')
            sampler.skip(done)

    @staticmethod
    def _skip_iterations(loop: IterBasedTrainLoop, sampler: ResumableBatchSampler) -> None:
        number, passes = loop.iter, 0
        if hasattr(sampler.sampler, 'set_epoch') and hasattr(sampler.sampler, 'epoch'):
            # A sampler that ends: as many passes are over, each after as many batches as a pass has.
            passes, number = divmod(number, len(sampler))
            sampler.sampler.set_epoch(passes)
        sampler.skip(number)
        batches = start_anew(loop)
        batches._epoch = passes
        loop.dataloader_iterator = ResumedBatches(batches, loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        set_random_seed(mix(runner.seed, runner.rank, runner.iter))
