"""Training and testing for all three tasks: the steps applied to a config, then MMEngine's runner.

:data:`TRAINING_STEPS` and :data:`TESTING_STEPS` are all steps applied to a config before the runner is built.
"""

import logging
import os
from typing import Any, Callable, Dict, Tuple, TypeVar

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..checkpoints import CheckpointError, check_fits, fetch_checkpoint, is_published, read_checkpoint, weights_of
from ..deprecation import renamed_in
from ..errors import library_errors
from ..files import atomic_local_writes, named_writes
from .config import type_name
from .distributed import joined_processes, wrap_model_for_cpus
from .hooks.checkpoint import AtomicCheckpointHook
from .hooks.defaults import add_training_hooks, skip_corrupt_samples, write_checkpoints_atomically
from .hooks.foreign_checkpoints import find_weights
from .hooks.resume import make_resumable
from .machine import adapt_to_machine, train_in_float32_on_cpus
from .outputs import keep_every_result
from .resume_point import is_sharded, select_resume_point
from .wrapped import backbone_config

Result = TypeVar('Result')
Step = Callable[[Config], None]


def fetch_load_from(cfg: Config) -> None:
    """Download the checkpoint given by ``load_from`` if it is a URL; MMEngine would run code from it."""
    if isinstance(cfg.get('load_from'), str):
        cfg.load_from = fetch_checkpoint(cfg.load_from)


def keep_seed(cfg: Config) -> None:
    """Resume with the original seed of the run, which MMEngine restores only after shuffling the data."""
    randomness = cfg.get('randomness') or {}
    path, own = cfg.get('load_from'), randomness.get('seed')
    if not cfg.get('resume') or not path or own is not None and '://' in path:
        return
    if is_sharded(cfg):
        if own is None:
            print_log(
                f'Resuming: {path} is a folder, whose seed only its strategy reads, after it shuffled the data. Set '
                'randomness.seed to continue in the same order.',
                logger='current',
                level=logging.WARNING,
            )
        return
    seed = read_checkpoint(path).get('meta', {}).get('seed')
    if seed is None or seed == own:
        return
    if own is not None:
        print_log(
            f'Resuming: randomness.seed={own} is ignored; the run continues with its original seed, {seed}.',
            logger='current',
            level=logging.WARNING,
        )
    cfg.randomness = dict(randomness, seed=int(seed))


def is_overwritten(cfg: Config) -> bool:
    """Check whether the backbone's pretrained file is missing, but ``load_from`` contains weights of the backbone."""
    init_cfg = backbone_config(cfg.get('model')).get('init_cfg') or {}
    path = init_cfg.get('checkpoint') if type_name(init_cfg) == 'Pretrained' else None
    if cfg.get('resume') or not cfg.get('load_from') or not isinstance(path, str):
        return False
    if '://' in path or is_published(path) or os.path.exists(path):
        return False
    try:
        weights = weights_of(read_checkpoint(cfg.load_from), cfg.load_from)
    except CheckpointError:
        return False  # the error is reported when the file is loaded
    return any(name.startswith('backbone.') for name in weights)


def omit_overwritten_weights(cfg: Config) -> None:
    """Omit the backbone's pretrained file if it is missing and ``load_from`` contains the backbone's weights."""
    if is_overwritten(cfg):
        print_log(
            f'{cfg.model.backbone.init_cfg.checkpoint} does not exist and is not needed: load_from={cfg.load_from} '
            'contains the weights of the backbone.',
            logger='current',
        )
        cfg.model.backbone.init_cfg = None


#: Functions applied to a config before training, in this order.
TRAINING_STEPS: Tuple[Step, ...] = (
    adapt_to_machine,
    train_in_float32_on_cpus,
    wrap_model_for_cpus,
    select_resume_point,
    fetch_load_from,
    omit_overwritten_weights,
    keep_seed,
    write_checkpoints_atomically,
    make_resumable,
    add_training_hooks,
    skip_corrupt_samples,
)
#: Functions applied to a config before testing, in this order.
TESTING_STEPS: Tuple[Step, ...] = (adapt_to_machine, wrap_model_for_cpus, skip_corrupt_samples)


def train(cfg: Config) -> nn.Module:
    """Train the model of a config.

    ``tools/train.py`` calls :func:`fcvit_mm.preflight.checks.check_training` before, which lists all problems at once.

    Args:
        cfg (Config): Result of :func:`fcvit_mm.engine.config.load_config`; goes through :data:`TRAINING_STEPS`.

    Returns:
        nn.Module: The trained model.

    Raises:
        UserError: Training ended by an error the user can fix, such as a :class:`LibraryError`.
    """
    for step in TRAINING_STEPS:
        step(cfg)
    return run(cfg, 'training', run_training_loop)


def test(cfg: Config, checkpoint: str) -> Dict[str, float]:
    """Evaluate a checkpoint.

    Args:
        cfg (Config): Result of :func:`fcvit_mm.engine.config.load_config`; goes through :data:`TESTING_STEPS`.
        checkpoint (str): The file, ``published:NAME``, or a URL.

    Returns:
        dict[str, float]: Metrics by name.

    Raises:
        CheckpointError: The checkpoint belongs to another model.
        UserError: See :func:`train`.
    """
    checkpoint = fetch_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    for step in TESTING_STEPS:
        step(cfg)

    def evaluate(runner: Runner) -> Dict[str, float]:
        model = getattr(runner.model, 'module', runner.model)  # of several processes
        check_fits(getattr(model, 'module', model), checkpoint)  # of test-time augmentation
        find_weights(runner)
        keep_every_result(runner)
        return runner.test()

    # The config in the work directory is that of the training: with that of a test (--tta, --cfg-options), it could
    # be neither resumed nor published. The test's own is beside its log.
    config = os.path.join(cfg.work_dir, os.path.basename(cfg.filename or ''))
    return run(cfg, f'testing {checkpoint}', evaluate, unwritten=config)


def run(cfg: Config, doing: str, action: Callable[[Runner], Result], unwritten: str = '') -> Result:
    """Join the processes, build the runner, and run an action with it.

    Args:
        cfg (Config): Config of the runner.
        doing (str): Name of the action, for messages.
        action (callable): Called as ``action(runner)``.
        unwritten (str): Path of a config that MMEngine's runner must not write.
    """
    advice = 'Check the data, the model and the evaluators in the config'
    errors = library_errors(f'{doing} with {cfg.filename or "the config"}', advice)
    with errors, named_writes(), joined_processes(cfg), atomic_local_writes(unwritten):
        return action(RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg))


def run_training_loop(runner: Runner) -> nn.Module:
    """Train; handle data loader workers that are terminated together with this process."""
    find_weights(runner)
    if runner.cfg.get('compile'):
        keep_preprocessor_eager(runner.model)
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


def is_first_here() -> bool:
    """Check whether this process is the first of its machine, which checks the data before the processes join."""
    for name in ('OMPI_COMM_WORLD_LOCAL_RANK', 'SLURM_LOCALID', 'LOCAL_RANK'):
        if name in os.environ:
            return os.environ[name] == '0'
    return True


__getattr__ = renamed_in(__name__)


def keep_preprocessor_eager(model: nn.Module) -> None:
    """Exclude the data preprocessor from the ``compile`` option of MMEngine, which compiles complete training steps.

    Compiling it gains little, and torch 2.11 cannot compile mmpretrain's Mixup (images in the order of ``randperm``).
    """
    preprocessor: Any = getattr(getattr(model, 'module', model), 'data_preprocessor', None)
    if preprocessor is not None:
        preprocessor.forward = torch.compiler.disable(preprocessor.forward)
