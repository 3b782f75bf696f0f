"""Measuring the speed of data loading and of the model, and the number of workers that balances the two."""

import copy
import math
import os
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from ..engine.config import leaf_datasets, type_name, walk
from ..engine.run import TRAINING_STEPS
from ..errors import UserError, library_errors
from .trial import build_runner, scratch_folder, train_steps

#: Number of samples that are loaded before timing, because the first ones import modules and fill caches.
WARM_UP = 4


class DataSpeed(NamedTuple):
    """The time that a config's training data and model take.

    Attributes:
        dataset (str): Type of the data set.
        length (int): Number of its samples.
        measured (int): Number of samples that were timed.
        seconds (float): Seconds for one sample, on one core.
        waiting (float): Part of these during which the process did not use the core, because it waited, mostly for
        files.
        transforms (list[tuple[str, float]]): Steps of the pipeline and the seconds of each for one sample.
        batch (int): Samples per process and step.
        step_seconds (float): Seconds for one training step without loading.
        device (str): Device of the training step, or ``'given'`` if the time was given.
        workers (int): Number of workers in the config.
        cores (int): Number of cores that this process may use.
    """

    dataset: str
    length: int
    measured: int
    seconds: float
    waiting: float
    transforms: List[Tuple[str, float]]
    batch: int
    step_seconds: float
    device: str
    workers: int
    cores: int

    @property
    def needed(self) -> int:
        """Workers of a process that load as fast as the model works."""
        return max(1, math.ceil(self.batch * self.seconds / self.step_seconds))

    def rate(self, workers: int) -> float:
        """Return the images per second of a process with workers, each with a core; 0 loads between the steps."""
        load = self.batch * self.seconds
        return self.batch / (max(self.step_seconds, load / workers) if workers else self.step_seconds + load)


def measure_data(cfg: Config, samples: int = 256, step_seconds: Optional[float] = None) -> DataSpeed:
    """Load a config's training data on one core, and take training steps, as a run does; nothing is written.

    Args:
        cfg (Config): From :func:`fcvit_mm.engine.config.load_config`; a copy goes through
            :data:`fcvit_mm.engine.run.TRAINING_STEPS`.
        samples (int): Number of samples that are timed.
        step_seconds (float, optional): Seconds for one training step. Default: measured, with random weights.

    Raises:
        UserError: There is no training data, a number is out of range, or data or model fail, such as a
            :class:`LibraryError`.
    """
    if samples < 1:
        raise UserError(f'--samples {samples}: expected at least 1')
    if step_seconds is not None and not step_seconds > 0:
        raise UserError(f'--step-seconds {step_seconds}: expected more than 0')
    loader = cfg.get('train_dataloader')
    if not loader:
        raise UserError(f'{cfg.filename or "the config"} has no train_dataloader: give the config of a training run')
    workers = loader.get('num_workers', 0)
    cfg = copy.deepcopy(cfg)
    cfg.launcher, cfg.resume, cfg.load_from = 'none', False, None
    for part in ('val', 'test'):
        cfg[f'{part}_dataloader'] = cfg[f'{part}_evaluator'] = cfg[f'{part}_cfg'] = None
    cfg.param_scheduler = None  # not measured; a schedule cannot be built for a data set without a complete batch
    for node in walk(cfg.get('model')):
        if type_name(node.get('init_cfg') or {}) == 'Pretrained':
            node['init_cfg'] = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    for option in ('prefetch_factor', 'timeout'):
        cfg.train_dataloader.pop(option, None)
    advice = 'Check the data and the model in the config'
    doing, scope = f'measuring {cfg.filename or "the config"}', DefaultScope.overwrite_default_scope(cfg.default_scope)
    with scratch_folder() as folder, library_errors(doing, advice), scope:
        for step in TRAINING_STEPS:
            step(cfg)
        cfg.work_dir = folder
        if step_seconds is None:
            runner = build_runner(cfg)
            loader, device = runner.train_dataloader, str(next(runner.model.parameters()).device)
        else:
            loader, device = Runner.build_dataloader(cfg.train_dataloader, seed=0), 'given'
        data = _load(loader, samples)
        if step_seconds is None:
            step_seconds = train_steps(runner, [])[0]['step_seconds']
    found: List[Any] = [type_name(each) for each in leaf_datasets(loader.dataset)]
    return DataSpeed(
        dataset=', '.join(sorted(set(found))),
        length=len(loader.dataset),
        measured=data['number'],
        seconds=data['seconds'],
        waiting=data['waiting'],
        transforms=data['transforms'],
        batch=data['batch'],
        step_seconds=step_seconds,
        device=device,
        workers=workers,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1,
    )


def _load(loader: Any, samples: int) -> Dict[str, Any]:
    """Load batches without workers, and measure the seconds per sample and per step of its pipeline."""
    with one_thread(), timed_transforms(loader.dataset) as times:
        number, largest, begin = 0, 0, None
        for batch in _endless(loader):
            size = len(batch['data_samples'])
            largest = max(largest, size)
            if begin is None:
                number += size
                if number >= WARM_UP:  # at least one batch
                    number, begin = 0, (time.perf_counter(), time.process_time())
                    times.clear()
                continue
            number += size
            if number >= samples:
                break
        assert begin is not None
        wall, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return dict(
        number=number,
        batch=largest,
        seconds=wall / number,
        waiting=max(0.0, wall - busy) / number,
        transforms=[(name, seconds / number) for name, seconds in times.items()],
    )


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        found = False
        for batch in loader:
            found = True
            yield batch
        if not found:
            raise UserError(
                'train_dataloader yields no batch: the data set is smaller than batch_size and drop_last=True; reduce '
                'batch_size'
            )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core, as a worker does."""
    import cv2

    threads, threads_cv2 = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads_cv2)


@contextmanager
def timed_transforms(dataset: Any) -> Iterator[Dict[str, float]]:
    """Add up the seconds of each step of a data set's pipelines, by name, in their order."""
    times: Dict[str, float] = {}
    pipelines = [each.pipeline for each in leaf_datasets(dataset) if hasattr(each, 'pipeline')]
    pipelines = [each for each in pipelines if isinstance(getattr(each, 'transforms', None), list)]
    before = [list(each.transforms) for each in pipelines]

    def timed(step: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
        def call(data: Any) -> Any:
            begin = time.perf_counter()
            try:
                return step(data)
            finally:
                times[name] = times.get(name, 0.0) + time.perf_counter() - begin

        return call

    for pipeline, steps in zip(pipelines, before):
        names = [type(step).__name__ for step in steps]
        pipeline.transforms[:] = [
            timed(step, f'{name} {names[: index + 1].count(name)}' if names.count(name) > 1 else name)
            for index, (step, name) in enumerate(zip(steps, names))
        ]
    try:
        yield times
    finally:
        for pipeline, steps in zip(pipelines, before):
            pipeline.transforms[:] = steps


def format_data_speed(found: DataSpeed, processes: int = 1) -> str:
    """Return the measurements as text, with the number of workers that they imply.

    Args:
        found (DataSpeed): From :func:`measure_data`.
        processes (int): Number of processes of the run on this machine, such as its GPUs.
    """
    rest = found.seconds - sum(seconds for _, seconds in found.transforms)
    parts = [*found.transforms, ('data set, checks, batch', max(0.0, rest))]
    width = max(len(name) for name, _ in parts)
    timed = f'{found.measured} of them' if found.measured <= found.length else f'{found.measured} reads of them'
    lines = [
        f'{found.dataset}, {found.length:,} samples; {timed} timed on one core',
        f'one sample   {found.seconds * 1e3:.2f} ms: {1 / found.seconds:.0f} images/s per core',
        *(f'  {name:<{width}}  {seconds * 1e3:7.2f} ms' for name, seconds in parts),
    ]
    if found.waiting > 0.2 * found.seconds:
        lines.append(
            f'  for {found.waiting * 1e3:.2f} ms of these the process waited, for files or for a core used by others. '
            'More workers than cores can help'
        )
    of = 'as given' if found.device == 'given' else f'on {found.device}'
    lines.append(
        f'one step     {found.step_seconds:.3f} s for {found.batch} images {of}: '
        f'{found.batch / found.step_seconds:.0f} images/s'
    )
    lines += [f'balance      {text}' for text in _balance(found, processes)]
    return '\n'.join(lines)


def _balance(found: DataSpeed, processes: int) -> Iterator[str]:
    """Yield the lines of the report about the number of workers."""
    cores, each = found.cores // processes, f' of each of {processes} processes' if processes > 1 else ''
    yield f'{_number(found.needed, "worker")}{each} keep{"s" * (found.needed == 1)} up with the model'
    now = found.rate(found.workers)
    yield (
        f'the config has num_workers={found.workers}: {now:.0f} images/s, '
        f'{now * found.step_seconds / found.batch:.0%} of what the model consumes'
    )
    if found.device == 'cpu':
        yield 'the model shares its cores with the workers'
    elif found.needed > cores:
        best = found.rate(max(cores, 1))
        yield (
            f'this machine has {_number(found.cores, "core")}: with {_number(max(cores, 1), "worker")}{each} about '
            f'{best:.0f} images/s, {best * found.step_seconds / found.batch:.0%} of what the model consumes'
        )
    elif found.workers < found.needed:
        yield f'set train_dataloader.num_workers={found.needed}'


def _number(count: int, name: str) -> str:
    return f'{count} {name}' if count == 1 else f'{count} {name}s'
