"""A trial of a run: a few training steps, one evaluation batch and one checkpoint."""

import copy
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop, Runner

from ..apis.step import Step, observed, parameters_without_gradient, watched_outputs
from ..engine.hooks.foreign_checkpoints import find_weights
from ..engine.optim.steps import call_before_step
from ..engine.run import TRAINING_STEPS
from ..errors import library_errors
from .building import backend_problems, runner_from
from .contexts import scratch_folder
from .gradients import missing_gradients
from .metrics import monitor_problems
from .work_dir import disk_problems

#: Number of training steps; the first one allocates memory, the others are timed.
STEPS = 3
#: What stands for the names of the metrics if there are none.
NO_METRICS = 'none of these predictions (the trained model may predict more)'


class Trial(NamedTuple):
    """Results of a trial.

    Attributes:
        problems (list[str]): Problems that would end the run or make it useless.
        parameters (int): Number of trainable parameter values of the model.
        batch (int): Images per process and step.
        losses (dict[str, float]): Losses of the last step.
        step_seconds (float): Seconds for one training step, without loading.
        load_seconds (float): Seconds for one batch of data, in one process.
        memory (int): Peak memory in bytes: of the GPU if there is one, else of this process.
        device (str): Device of ``memory``.
        iterations (int): Number of iterations of the run.
        validations (int): Number of validations in the run.
        val_seconds (float): Seconds for one validation batch and its share of the metric; 0 without validation.
        val_batches (int): Number of batches in one validation.
        metrics (list[str]): Names of the metrics.
        checkpoint (int): Bytes of one checkpoint.
        checkpoints (int): Maximum number of checkpoints at the same time, including one that is being written.
        free (int): Free bytes on the disk of the work directory.
        warnings (list[str]): Warnings about problems that only occur in other runs of this config.
    """

    problems: List[str]
    parameters: int
    batch: int
    losses: Dict[str, float]
    step_seconds: float
    load_seconds: float
    memory: int
    device: str
    iterations: int
    validations: int
    val_seconds: float
    val_batches: int
    metrics: List[str]
    checkpoint: int
    checkpoints: int
    free: int
    warnings: Sequence[str] = ()


def run_trial(cfg: Config, work_dir: str) -> Trial:
    """Run each stage of training once, with MMEngine's runner in a temporary directory.

    Args:
        cfg (Config): From :func:`fcvit_mm.engine.config.load_config`; a copy goes through
            :data:`fcvit_mm.engine.run.TRAINING_STEPS`.
        work_dir (str): Work directory of the planned run.

    Returns:
        Trial: The results.

    Raises:
        UserError: Model, data or metric failed, such as a :class:`LibraryError`.
    """
    given, cfg = cfg, copy.deepcopy(cfg)
    cfg.launcher = 'none'  # the trial is one process, whatever starts the run
    for step in TRAINING_STEPS:
        step(cfg)
    wanted = dict(cfg.default_hooks.checkpoint or {})
    problems = backend_problems(cfg)
    advice = 'Check the data, the model and the evaluators in the config'
    with scratch_folder() as folder, library_errors(f'trying {cfg.filename or "the config"}', advice):
        cfg.work_dir = folder
        cfg.resume, cfg.load_from = False, None if cfg.get('resume') else cfg.get('load_from')
        runner = build_runner(cfg)
        loop = runner.train_loop
        steps, taken = train_steps(runner, problems)
        saved = Path(folder) / 'trial.pth'
        runner.save_checkpoint(folder, saved.name, meta=dict(epoch=0, iter=0))
        size = saved.stat().st_size
        val_seconds, metrics = validate_once(runner, given, problems)
        memory, device = peak_memory()

    missing = missing_gradients(given, taken)
    if missing is not None and missing.ends_run:
        problems.append(missing.text)
    by_iter = isinstance(loop, IterBasedTrainLoop)
    kept = checkpoints_to_come(wanted, loop, by_iter)
    length, interval = (loop.max_iters if by_iter else loop.max_epochs), loop.val_interval
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    if by_iter and wanted.get('interval', -1) > 0 and wanted['interval'] % accumulated:
        problems.append(
            f'default_hooks.checkpoint.interval={wanted["interval"]} is not a multiple of '
            f'accumulative_counts={accumulated}: a resumed run would lose the gradients accumulated so far; choose a '
            'multiple'
        )
    here = Path(work_dir).absolute()
    while not here.is_dir():
        here = here.parent
    problems += disk_problems(str(here), kept * size)
    return Trial(
        problems,
        memory=memory,
        device=device,
        iterations=loop.max_iters,
        checkpoint=size,
        checkpoints=kept,
        validations=math.ceil(length / interval) if runner._val_loop is not None else 0,
        val_seconds=val_seconds,
        metrics=metrics,
        free=shutil.disk_usage(here).free,
        val_batches=len(runner._val_loop.dataloader) if runner._val_loop is not None else 0,
        parameters=sum(p.numel() for p in runner.model.parameters() if p.requires_grad),
        warnings=[missing.text] if missing is not None and not missing.ends_run else [],
        **steps,
    )


def build_runner(cfg: Config) -> Runner:
    """Build MMEngine's runner and what it builds when training starts: loops, optimizer, schedules, weights.

    Args:
        cfg (Config): Has gone through :data:`fcvit_mm.engine.run.TRAINING_STEPS`; its ``work_dir`` is written to.
    """
    # MMEngine names experiments by the second; with the same name, one would draw into the folder of another.
    cfg.experiment_name = Path(cfg.work_dir).name
    runner = runner_from(cfg)
    loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    if runner._val_loop is not None:
        runner._val_loop = runner.build_val_loop(runner._val_loop)
    runner.call_hook('before_run')
    runner._init_model_weights()
    find_weights(runner)
    runner.load_or_resume()
    runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    return runner


def train_steps(runner: Runner, problems: List[str]) -> Tuple[Dict[str, Any], Step]:
    """Run a few training steps; return their losses and times, and which parameters and outputs get a gradient."""
    loader, wrapper = runner.train_loop.dataloader, runner.optim_wrapper
    without_gradient: List[str] = []

    def find_unused() -> None:
        without_gradient[:] = parameters_without_gradient(runner.model)

    end = call_before_step(wrapper.optimizer, find_unused) if hasattr(wrapper, 'optimizer') else None
    runner.model.train()
    start = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    load_seconds = time.perf_counter() - start
    times = []
    with watched_outputs(runner.model) as watched:
        for _ in range(STEPS):
            start = time.perf_counter()
            outputs = runner.model.train_step(batch, optim_wrapper=wrapper)
            losses = {name: torch.as_tensor(value).item() for name, value in outputs.items()}
            times.append(time.perf_counter() - start)
    if end is not None:
        end()
    wrong = [f'{name} = {value}' for name, value in losses.items() if not math.isfinite(value)]
    if wrong:
        problems.append(f'after {STEPS} steps {", ".join(wrong)}: lower the learning rate, or check the data')
    taken = dict(
        batch=len(batch['data_samples']), losses=losses, step_seconds=min(times[1:]), load_seconds=load_seconds
    )
    return taken, observed(runner.model, watched, without_gradient, losses)


def validate_once(runner: Runner, cfg: Config, problems: List[str]) -> Tuple[float, List[str]]:
    """Evaluate one validation batch; return the seconds and the names of the metrics."""
    loop = runner._val_loop
    if loop is None:
        return 0.0, []
    runner.model.eval()
    batch = next(iter(loop.dataloader))
    start = time.perf_counter()
    with torch.no_grad():
        outputs = runner.model.val_step(batch)
    loop.evaluator.process(data_samples=outputs, data_batch=batch)
    metrics = list(loop.evaluator.evaluate(len(outputs)))
    seconds = time.perf_counter() - start
    problems += monitor_problems(cfg, metrics)
    return seconds, metrics


def checkpoints_to_come(checkpoint: dict, loop: Any, by_iter: bool) -> int:
    """Return the maximum number of simultaneous checkpoint files: kept ones, best ones, and one being written."""
    length = loop.max_iters if by_iter and not checkpoint.get('by_epoch', True) else loop.max_epochs
    interval = checkpoint.get('interval', -1)
    number = math.ceil(length / interval) if interval > 0 else 1
    keep = checkpoint.get('max_keep_ckpts', -1)
    best = checkpoint.get('save_best')
    bests = 0 if best is None else len(best) if isinstance(best, (list, tuple)) else 1
    return (min(number, keep) if keep > 0 else number) + bests + 1


def peak_memory() -> Tuple[int, str]:
    """Return the peak memory so far, in bytes, and the name of the device or process that it belongs to."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), 'GPU'
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'process, without workers'


def format_trial(found: Trial, num_workers: int) -> str:
    """Return the results as text, one line each."""
    # Workers load while the model computes; without workers, one follows the other.
    load = found.load_seconds / num_workers if num_workers else found.load_seconds
    step = max(found.step_seconds, load) if num_workers else found.step_seconds + load
    training = found.iterations * step
    validating = found.validations * found.val_batches * found.val_seconds
    losses = ', '.join(f'{name} {value:.4g}' for name, value in found.losses.items())
    rows = [
        ('trainable', f'{found.parameters:,} parameters'),
        (
            'one step',
            f'{found.step_seconds:.2f} s for {found.batch} images, {found.load_seconds:.2f} s to load them; {losses}',
        ),
        (
            'memory',
            f'{found.memory / 2**30:.2f} GiB peak in these steps ({found.device}), an estimate: other images may be '
            'larger',
        ),
        ('training', f'{found.iterations} iterations, about {duration(training)}, estimated from one step'),
    ]
    if found.validations:
        rows.append(
            (
                'validation',
                f'{found.validations} times {found.val_batches} batches, about {duration(validating)} in total, '
                f'estimated from one batch; metrics: {", ".join(found.metrics) or NO_METRICS}',
            )
        )
    rows.append(
        (
            'checkpoints',
            f'at most {found.checkpoints} files of {found.checkpoint / 2**20:.1f} MiB at the same time, '
            f'{found.free / 2**30:.1f} GiB free',
        )
    )
    rows += [('warning', text) for text in found.warnings]
    return '\n'.join(f'{name:<12} {text}' for name, text in rows)


def duration(seconds: float) -> str:
    """Return a time as text, in a suitable unit."""
    for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} seconds'
