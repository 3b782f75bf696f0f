"""Resuming after an interruption with the same data and random numbers as without one.

MMEngine restores weights, optimizer and schedules. This module adds: the seed if the config has none, random numbers
that do not depend on when the process started, the position within an epoch, and the repetition of an interrupted
validation. :mod:`fcvit_mm.engine.resume_point` chooses the checkpoint.
"""

import functools
import logging
import platform
import random
import sys
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed

from ...errors import UserError, library_errors
from ...registry import HOOKS
from ..config import type_name
from ..optim.schedules import all_settings, follow_config, resumed_rates
from ..optim.states import count_states, missing_states
from .resumable_sampler import EpochPart, Index, ResumableBatchSampler, hash_seed


def make_resumable(cfg: Config) -> None:
    """Wrap the batch sampler of training in :class:`ResumableBatchSampler`."""
    loader = cfg.get('train_dataloader')
    if not loader or not isinstance(loader.get('sampler'), dict):
        return
    inner = loader.get('batch_sampler') or dict(type='BatchSampler', drop_last=loader.pop('drop_last', False))
    if isinstance(inner, dict) and type_name(inner) != 'ResumableBatchSampler':
        loader['batch_sampler'] = dict(type='ResumableBatchSampler', batch_sampler=inner)


def restore_attributes(loader: Any) -> None:
    """Set the attributes that a data loader would have without the wrapper of :func:`make_resumable`.

    Other hooks, such as mmpretrain's ``PreciseBNHook``, read them. PyTorch sets no ``batch_size`` if a data loader gets
    a batch sampler.
    """
    batches = loader.batch_sampler
    if batches.name == 'BatchSampler':
        for name in ('batch_size', 'sampler', 'drop_last'):
            object.__setattr__(loader, name, getattr(batches, name))  # setattr is refused after construction


def load_samples(dataset: Any, indices: List[int]) -> List[Any]:
    """Load a batch, each sample with the seed of its index (called by torch as ``__getitems__``).

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


def restart_data_iterator(loop: IterBasedTrainLoop) -> Any:
    """Build MMEngine's endless iterator over the loop's data loader, with new workers."""
    loop.dataloader._iterator = None  # torch keeps persistent workers here
    return type(loop.dataloader_iterator)(loop.dataloader)


class ResumedBatches:
    """Endless batches of an iteration-based run from a given number on; earlier batches are not loaded.

    MMEngine skips the earlier ones by ``skip_iter`` or, in 0.10.7, by iterating over them.
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


class ResumeError(UserError):
    """A run cannot be resumed with this config and command line."""


#: Key in a checkpoint's ``meta`` of the result of :func:`describe` and the position in the data.
RUN = 'run'
#: Settings that the order of samples depends on: entry of :func:`describe` -> where the config sets it.
ORDER = {
    'sampler': 'train_dataloader.sampler.type',
    'shuffle': 'train_dataloader.sampler.shuffle',
    'sampler_seed': 'the seed of train_dataloader.sampler',
    'batch_sampler': 'train_dataloader.batch_sampler.type',
    'drop_last': 'train_dataloader.drop_last',
}
#: Packages whose versions a run depends on.
PACKAGES = ('torch', 'torchvision', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'fcvit_mm')


def _length(thing: Any) -> Optional[int]:
    """Return the length of a loader or data set; ``None`` for a stream."""
    try:
        return len(thing)
    except TypeError:
        return None


def describe(runner: Any) -> Dict[str, Any]:
    """Return the settings that a resumed run depends on, as values that a checkpoint can store."""
    loop = runner.train_loop
    loader = loop.dataloader
    batches = loader.batch_sampler
    sampler = getattr(batches, 'sampler', loader.sampler)
    by_iter = isinstance(loop, IterBasedTrainLoop)
    wrapper = runner.optim_wrapper
    wrappers = list(wrapper.values()) if hasattr(wrapper, 'optim_wrappers') else [wrapper]
    modules = {name: sys.modules[name] for name in PACKAGES if name in sys.modules}
    return dict(
        loop='iterations' if by_iter else 'epochs',
        length=loop.max_iters if by_iter else loop.max_epochs,
        processes=get_world_size(),
        batch_size=getattr(batches, 'batch_size', None),
        batches=_length(loader),
        samples=_length(loader.dataset),
        sampler=type(sampler).__name__,
        shuffle=getattr(sampler, 'shuffle', None),
        sampler_seed=getattr(sampler, 'seed', None),
        batch_sampler=getattr(batches, 'name', type(batches).__name__),
        drop_last=getattr(batches, 'drop_last', None),
        optimizers=[type(getattr(each, 'optimizer', each)).__name__ for each in wrappers],
        wrapper=type(wrapper).__name__,
        settings=[
            [
                {key: value for key, value in group.items() if isinstance(value, (int, float, str, tuple, type(None)))}
                for group in groups
            ]
            for groups in all_settings(runner)
        ],
        versions=dict(
            {name: str(getattr(module, '__version__', '?')) for name, module in modules.items()},
            python=platform.python_version(),
            device=get_device(),
        ),
    )


def early_stopping(runner: Runner) -> List[EarlyStoppingHook]:
    """Return the hooks that stop training, whose best score and count of validations MMEngine does not store."""
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


@HOOKS.register_module()
class ResumableHook(Hook):
    """Hook that makes a resumed run identical to an uninterrupted one. ``tools/train.py`` adds it.

    - Random numbers of an iteration (drop path, dropout, Mixup, sampled proposals) depend on the run's seed, the
      process and the iteration, not on what the process did before.
    - Samples already trained are skipped without loading them, also inside an epoch. Checkpoints store their number,
      the batch size and the number of processes; with other values the run continues after the same samples.
    - Checkpoints also store the other settings that a run depends on. Changed schedules or optimizer settings are
      applied as if used from the beginning; a sampler or an optimizer of another type is rejected; other versions of
      libraries are reported.
    - A checkpoint that lost optimizer states, which PyTorch loads silently, is rejected.
    - A validation that was due at the checkpoint is repeated, so that the best checkpoint is the same. Early stopping
      continues with its best score and count.
    """

    priority = 'LOWEST'  # after the set-up of all other hooks

    def __init__(self) -> None:
        self.today: Dict[str, Any] = {}
        #: Number of the epoch, its parts trained before this start, and iteration and number of batches since.
        self.number = 0
        self.parts: List[EpochPart] = []
        self.start = 0
        self.length: Optional[int] = None

    # Reading a checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        loop: Any = getattr(runner, '_train_loop', None)
        if not getattr(runner, '_resume', False) or not isinstance(loop, (IterBasedTrainLoop, EpochBasedTrainLoop)):
            return
        self.today = describe(runner)
        meta = checkpoint['meta']
        before = meta.get(RUN)
        if before is None:
            self._log(
                'the checkpoint does not contain its batch size and number of processes (it was written by MMEngine '
                'alone or an older version): assumed to be the current ones'
            )
        else:
            self._refuse(before)
        if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            self._log(
                'the checkpoint has averaged weights of EMAHook, which the config lacks: training continues from them, '
                'not from the raw weights. Add the EMAHook of that run to custom_hooks'
            )
        for hook in early_stopping(runner):
            kept = (before or {}).get('stopping', {}).get((hook.monitor, hook.rule))
            hook.best_score, hook.wait_count = kept or (hook.best_score, hook.wait_count)
        moved = self._set_position(loop, meta, before)
        self.start = meta['iter']  # 0 is possible, because a pending validation saves before the first iteration
        by_iter = isinstance(loop, IterBasedTrainLoop)
        changed = follow_config(
            runner,
            checkpoint,
            before and before['settings'],
            meta['iter'],
            0 if by_iter else len(loop.dataloader),
            moved,
        )
        if changed:
            self._log(
                'schedules or optimizer settings differ from the checkpoint. Those of the config are applied as if '
                f'used from the beginning: {"; ".join(changed)}'
            )
        if meta['iter']:
            lacking = missing_states(runner, checkpoint.get('optimizer') or {}, (before or {}).get('states'))
            if lacking:
                self._log(lacking)
        self._report(loop, meta, before, bool(changed), resumed_rates(runner, checkpoint))

    def _log(self, text: str) -> None:
        print_log(f'Resuming: {text}.', logger='current', level=logging.WARNING)

    def _refuse(self, before: dict) -> None:
        today = self.today
        if before['loop'] != today['loop']:
            raise ResumeError(
                f'train_cfg is {today["loop"][:-1]}-based, but the run of the checkpoint was '
                f'{before["loop"][:-1]}-based: resume with its train_cfg, or start from its weights only, with '
                'load_from and without --resume'
            )
        if before['optimizers'] != today['optimizers']:
            raise ResumeError(
                f'optim_wrapper.optimizer.type is {", ".join(today["optimizers"])}, but the checkpoint has the state '
                f'of {", ".join(before["optimizers"])}: resume with that optimizer, or start from its weights only, '
                'with load_from and without --resume'
            )

    def _set_position(self, loop: Any, meta: dict, before: Optional[dict]) -> bool:
        """Set the position in the data; convert the iteration of ``meta`` to the current batch size.

        Returns:
            bool: Whether the iteration count changed.
        """
        by_iter = isinstance(loop, IterBasedTrainLoop)
        batches = loop.dataloader.batch_sampler
        resumable = isinstance(batches, ResumableBatchSampler)
        per_pass = self.today['batches']
        own = (self.today['processes'], self.today['batch_size'])
        if before is not None:
            self.number, self.parts = before['pass'], [EpochPart(*part) for part in before['parts']]
        elif by_iter:
            ends = resumable and not isinstance(batches.sampler, InfiniteSampler)
            self.number, done = divmod(meta['iter'], per_pass) if ends else (0, meta['iter'])
            self.parts = [EpochPart(*own, done)] if done else []
        else:
            done = meta['iter'] - meta['epoch'] * per_pass
            self.number, self.parts = meta['epoch'], [EpochPart(*own, done)] if 0 < done < per_pass else []
        if self.parts and before is not None:
            self._check_order(before, batches)
        if self.parts and not resumable:
            self._log('train_dataloader.batch_sampler is not built from a config: the data starts with a new epoch')
            self.parts = []
        if by_iter:
            return False
        iteration = meta['epoch'] * per_pass
        if self.parts:
            iteration += per_pass - batches.left(self.parts)
        moved, meta['iter'] = iteration != meta['iter'], iteration
        return moved

    def _check_order(self, before: dict, batches: Any) -> None:
        place = 'the samples already trained cannot be identified'
        way_out = (
            'use the previous setting or a checkpoint from the end of an epoch, or start from its weights only, with '
            'load_from and without --resume'
        )
        for key, name in ORDER.items():
            if before[key] != self.today[key]:
                raise ResumeError(
                    f'{name} is {self.today[key]!r}, but was {before[key]!r} in the run of the checkpoint, which '
                    f'ended inside an epoch: {place}. To resume, {way_out}'
                )
        if before['samples'] != self.today['samples']:
            self._log(
                f'train_dataloader.dataset has {self.today["samples"]} samples, but had {before["samples"]} when the '
                f'checkpoint was written: {place}. The epoch starts again'
            )
            self.parts = []
        elif isinstance(batches, ResumableBatchSampler) and batches.order is None and self._moves(batches):
            raise ResumeError(
                f'train_dataloader.sampler {self.today["sampler"]} distributes its samples itself: inside an epoch it '
                'can only be resumed with the previous batch size and number of processes '
                f'({self.parts[-1].batch_size} on {self.parts[-1].processes}, now {batches.batch_size} on '
                f'{batches.processes}). To resume, {way_out}'
            )

    def _moves(self, batches: ResumableBatchSampler) -> bool:
        return any(part[:2] != (batches.processes, batches.batch_size) for part in self.parts)

    def _report(self, loop: Any, meta: dict, before: Optional[dict], changed: bool, rates: List[float]) -> None:
        """Log the differences from the run of the checkpoint."""
        by_iter = isinstance(loop, IterBasedTrainLoop)
        today, unit = self.today, 'iteration' if by_iter else 'epoch'
        position, end = (meta['iter'], loop.max_iters) if by_iter else (meta['epoch'], loop.max_epochs)
        if before is not None:
            then, now = ((run['batch_size'], run['processes']) for run in (before, today))
            if then != now:
                samples = sum(part.processes * part.batch_size * part.batches for part in self.parts)
                self._log(
                    f'batch size {now[0]} on {now[1]} process(es), previously {then[0]} on {then[1]}. The data '
                    f'continues after {samples} samples of epoch {self.number + 1}, at iteration {meta["iter"] + 1} '
                    f'of {loop.max_iters}'
                )
            versions = [
                f'{name} {before["versions"].get(name, "none")} -> {version}'
                for name, version in today['versions'].items()
                if before['versions'].get(name) != version
            ]
            if versions:
                self._log(f'{", ".join(versions)}: results may differ')
            if before['wrapper'] != today['wrapper']:
                self._log(f'optim_wrapper is {today["wrapper"]}, previously {before["wrapper"]}')
            if before['samples'] != today['samples'] and not by_iter:
                self._log(f'epochs have {today["samples"]} samples, previously {before["samples"]}')
            if before['length'] != end:
                schedules = 'changed as listed above' if changed else 'unchanged'
                rate = f', the learning rate continues at {rates[-1]:.3g}' if rates else ''
                self._log(
                    f'training ends at {unit} {end}, previously at {before["length"]}. Schedules are {schedules}{rate}'
                )
        if position >= end:
            self._log(f'the checkpoint is from {unit} {position} of {end}: training is already complete')

    # Writing a checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not self.today:
            return
        meta, parts, number = checkpoint['meta'], self.parts, self.number
        own = (self.today['processes'], self.today['batch_size'])
        done = meta['iter'] - self.start
        if self.today['loop'] == 'epochs':
            if meta['epoch'] != number:
                number, parts, done = meta['epoch'], [], 0
        else:
            while self.length is not None and done >= self.length:
                number, parts, done, self.length = number + 1, [], done - self.length, self.today['batches']
                self.number, self.parts, self.start = number, parts, meta['iter'] - done
        parts = [*parts, EpochPart(*own, done)] if done > 0 else parts
        states = count_states(runner, checkpoint.get('optimizer') or {})
        stopping = {
            (hook.monitor, hook.rule): (float(hook.best_score), hook.wait_count) for hook in early_stopping(runner)
        }
        parts_of_pass = [list(part) for part in parts]
        meta[RUN] = {**self.today, 'pass': number, 'parts': parts_of_pass, 'states': states, 'stopping': stopping}

    # The run

    def before_run(self, runner: Runner) -> None:
        loop: Any = getattr(runner, '_train_loop', None)
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        if dataset is None or not hasattr(dataset, '__getitem__'):
            return
        if isinstance(loop.dataloader.batch_sampler, ResumableBatchSampler):
            dataset.__getitems__ = functools.partial(load_samples, dataset)
            restore_attributes(loop.dataloader)
        if isinstance(loop, IterBasedTrainLoop):
            # MMEngine 0.10.7 has already started workers; their copies of the data set lack later changes by hooks.
            loop.dataloader_iterator = restart_data_iterator(loop)

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if not self.today and isinstance(loop, (IterBasedTrainLoop, EpochBasedTrainLoop)):
            self.today = describe(runner)
        if runner.iter == 0 or runner.val_loop is None:
            return
        by_iter = isinstance(loop, IterBasedTrainLoop)
        position, end = (loop.iter, loop.max_iters) if by_iter else (loop.epoch, loop.max_epochs)
        if not by_iter and (self.parts or loop.iter != loop.epoch * len(loop.dataloader)):
            return  # inside an epoch
        loop._decide_current_val_interval()
        if position >= loop.val_begin and (position % loop.val_interval == 0 or position == end):
            runner.logger.info('Validating first: a validation was due when the checkpoint was written')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        sampler = getattr(loop.dataloader, 'batch_sampler', None)
        if not isinstance(sampler, ResumableBatchSampler):
            self.number, self.parts, self.start = loop.epoch, [], loop.iter
            return
        by_iter = isinstance(loop, IterBasedTrainLoop)
        if not by_iter and self.number != loop.epoch:
            self.number, self.parts = loop.epoch, []
        parts = self.parts
        self.parts, done = sampler.split(parts)
        self.start = loop.iter - done
        if by_iter and not isinstance(sampler.sampler, InfiniteSampler):
            self.length = sampler.left(self.parts)
        if by_iter:
            if loop.iter:
                self._skip_iterations(loop, sampler, parts)
        elif parts:
            samples = sum(part.processes * part.batch_size * part.batches for part in parts)
            runner.logger.info(f'Resuming inside epoch {loop.epoch + 1}, after its first {samples} samples')
            sampler.resume(parts)
            # MMEngine counts batches from the first that it loads; logs and hooks need the number within the epoch.
            trained, run_iter = loop.iter - loop.epoch * len(loop.dataloader), loop.run_iter
            loop.run_iter = lambda number, batch: run_iter(trained + number, batch)

    def after_train_epoch(self, runner: Runner) -> None:
        vars(runner.train_loop).pop('run_iter', None)  # of a resumed epoch

    def _skip_iterations(
        self, loop: IterBasedTrainLoop, sampler: ResumableBatchSampler, parts: List[EpochPart]
    ) -> None:
        if hasattr(sampler.sampler, 'set_epoch') and hasattr(sampler.sampler, 'epoch'):  # a finite sampler
            sampler.sampler.set_epoch(self.number)
        sampler.resume(parts)
        batches = restart_data_iterator(loop)
        batches._epoch = self.number
        loop.dataloader_iterator = ResumedBatches(batches, loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        set_random_seed(hash_seed(runner.seed, runner.rank, runner.iter))
