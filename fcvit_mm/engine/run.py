"""Train and test, for all three tasks: checks, then MMEngine's runner."""

import os
from typing import Callable, Optional

import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints import check_fits, read_checkpoint
from .config import adapt_to_machine
from .distributed import LostProcessError, init_cpu_distributed, lost_process
from .hooks.checkpoint import AtomicCheckpointHook
from .hooks.resume import find_resume_point, make_resumable


def select_resume_point(cfg: Config) -> Optional[str]:
    """Find the checkpoint that ``--resume`` continues from, and let the config continue from it.

    With ``cfg.resume`` and no ``cfg.load_from`` that is the last complete checkpoint of the work directory, if there is
    one. When a run continues, the pretrained file of the backbone is not needed.

    Returns:
        str | None: The checkpoint; ``None`` if the run starts anew.
    """
    if not cfg.get('resume'):
        return None
    resume_from = cfg.get('load_from') or find_resume_point(cfg.work_dir)
    if resume_from:
        skip_pretrained(cfg)
        cfg.load_from = resume_from
    else:
        print_log(f'Nothing to resume from in {cfg.work_dir}: starting anew.', logger='current')
    return resume_from


def train(cfg: Config) -> Runner:
    """Train what a config describes, from :func:`fcvit_mm.engine.config.load_config`.

    ``tools/train.py`` calls :func:`fcvit_mm.preflight.check_training` before it.
    """
    adapt_to_machine(cfg)
    resume_from = select_resume_point(cfg)
    if resume_from:
        keep_seed(cfg, resume_from)
    protect(cfg)
    return run(cfg, go_on_training)


def go_on_training(runner: Runner):
    """Train; also where the data loader's workers were told to end together with this process."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
    try:
        return runner.train()
    except RuntimeError as error:
        if 'DataLoader worker' in str(error):
            for hook in hooks:
                hook.save_if_terminated(runner)
        raise
    finally:
        for hook in hooks:
            hook.stop_listening()


def protect(cfg: Config) -> None:
    """What every training run gets, unless its config has it with settings of its own: see the hooks."""
    checkpoint = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint.get('type') == 'CheckpointHook':
        checkpoint['type'] = 'AtomicCheckpointHook'
    make_resumable(cfg)
    add_hooks(cfg, 'ResumableHook', 'NonFiniteHook')


def add_hooks(cfg: Config, *types: str) -> None:
    # A list in the config is kept: other people's hooks run too.
    hooks = list(cfg.get('custom_hooks') or [])
    there = {hook.get('type') if isinstance(hook, dict) else type(hook).__name__ for hook in hooks}
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in types if name not in there)]


def keep_seed(cfg: Config, checkpoint: str) -> None:
    """Go on with the seed that a run without one was given: MMEngine restores it when the data is already shuffled."""
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        seed = read_checkpoint(checkpoint).get('meta', {}).get('seed')
        if seed is not None:
            cfg.randomness = dict(randomness, seed=int(seed))


def test(
    cfg: Config, checkpoint: str, wrap: Optional[Callable] = None, extra_metric: Optional[Callable] = None
) -> dict:
    """Evaluate a checkpoint.

    Args:
        cfg (Config): From :func:`fcvit_mm.engine.config.load_config`.
        checkpoint (str): The file.
        wrap (callable, optional): Changes ``cfg`` after the checks (test-time augmentation).
        extra_metric (callable, optional): Builds one more metric.

    Returns:
        dict: Metrics by name.

    Raises:
        CheckpointError: The checkpoint belongs to another model.
    """
    adapt_to_machine(cfg)
    cfg.load_from = checkpoint
    cfg.resume = False
    if wrap is not None:
        wrap(cfg)

    def go(runner):
        model = getattr(runner.model, 'module', runner.model)
        check_fits(getattr(model, 'module', model), checkpoint)
        if extra_metric is not None:
            runner.test_evaluator.metrics.append(extra_metric())
        return runner.test()

    return run(cfg, go)


def run(cfg: Config, go: Callable):
    """Join the processes, build the runner, and ``go(runner)``."""
    add_hooks(cfg, 'SkipCorruptSamplesHook')
    joined = init_cpu_distributed(cfg, cfg.get('launcher', 'none'))
    try:
        return go(Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg))
    except RuntimeError as error:
        if lost_process(error):
            raise LostProcessError(error) from error
        raise
    finally:
        if joined:
            dist.destroy_process_group()


def skip_pretrained(cfg: Config) -> None:
    backbone = cfg.model.get('backbone') or {}
    if (backbone.get('init_cfg') or {}).get('type') == 'Pretrained':
        backbone['init_cfg'] = None


def is_first_here() -> bool:
    """Whether this process checks the data: one per machine, before the others can pass the rendezvous."""
    for name in ('OMPI_COMM_WORLD_LOCAL_RANK', 'SLURM_LOCALID', 'LOCAL_RANK'):
        if name in os.environ:
            return os.environ[name] == '0'
    return True
