"""Building the parts of a run without its data, to find unknown arguments, unknown types and missing packages."""

import ast
import contextlib
import copy
import importlib.util
import inspect
import logging
import os.path as osp
import re
from difflib import get_close_matches
from functools import partial
from typing import Any, Callable, Dict, List

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import HOOKS, VISBACKENDS, DefaultScope
from mmengine.runner import Runner
from torch.utils.data import Dataset

from ..engine.config import type_name, walk
from ..engine.run import TRAINING_STEPS
from ..errors import UserError, advice_for, origin
from .contexts import quiet, scratch_folder
from .messages import name_values, short_message

#: Packages of MMEngine's visualizer backends. The backends are not built completely, because that would start a run.
BACKEND_PACKAGES = {
    'AimVisBackend': 'aim',
    'ClearMLVisBackend': 'clearml',
    'DVCLiveVisBackend': 'dvclive',
    'MLflowVisBackend': 'mlflow',
    'NeptuneVisBackend': 'neptune',
    'TensorboardVisBackend': 'tensorboard',
    'WandbVisBackend': 'wandb',
}
#: Pattern of error messages that do not depend on the data.
OF_ARGUMENTS = r'unexpected keyword|required .*argument|multiple values|registry|not callable|must be callable'


class PlaceholderDataset(Dataset):
    """Placeholder for a data set, where only its length is needed."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        return index


def build_problems(cfg: Config) -> List[str]:
    """Build what MMEngine's runner builds when training starts, data sets excepted, and return what fails.

    Args:
        cfg (Config): From :func:`fcvit_mm.engine.config.load_config`; a copy goes through
            :data:`fcvit_mm.engine.run.TRAINING_STEPS`.
    """
    cfg = copy.deepcopy(cfg)
    if 'runner_type' in cfg:  # its parts are built by a strategy, for the processes of the run
        return []
    problems = backend_problems(cfg)
    cfg.launcher, cfg.resume, cfg.load_from = 'none', False, None
    with contextlib.suppress(UserError), quiet(logging.ERROR):
        for step in TRAINING_STEPS:
            step(cfg)
    hooks = [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items() if hook]
    hooks += [(f'custom_hooks[{index}]', hook) for index, hook in enumerate(cfg.get('custom_hooks') or [])]
    cfg.default_hooks, cfg.custom_hooks = {}, []

    def attempt(what: str, build: Callable[[], Any], with_data: bool = False, part: Any = None) -> Any:
        try:
            with quiet(logging.CRITICAL):
                return build()
        except Exception as error:
            # Broad, because the parts may be from any library.
            message = short_message(error) + name_values(error, walk(part))
            if not with_data or re.search(OF_ARGUMENTS, message) or origin(error).package == 'torch':
                end = '' if message.endswith('?') else '.'
                problems.append(f'{what}: {message}{end} {advice_for(error, "Correct the config")}')
            return None

    with scratch_folder() as folder:
        # MMEngine names experiments, and their scopes, by the second.
        cfg.work_dir, cfg.experiment_name = folder, osp.basename(folder)
        replace_backends(cfg, cfg.experiment_name)
        runner = attempt('the runner cannot be built', lambda: runner_from(cfg))
        if runner is None:
            return problems
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            for name, hook in hooks:
                attempt(f'{name} ({type_name(hook)})', partial(build_hook, runner, hook), part=hook)
            for split in ('train', 'val'):
                loader = f'{split}_dataloader'
                if cfg.get(loader) and cfg.get(f'{split}_cfg') is not None:
                    with_none = dict(copy.deepcopy(cfg[loader]), dataset=PlaceholderDataset())
                    built = attempt(loader, partial(runner.build_dataloader, with_none), True)
                    setattr(runner, f'_{loader}', built or runner.build_dataloader(plain_loader()))
            runner._val_evaluator = Evaluator([])
            loop = attempt('train_cfg', lambda: build_loop(runner, 'train'), part=cfg.get('train_cfg'))
            if cfg.get('val_cfg') is not None:
                attempt('val_cfg', lambda: build_loop(runner, 'val'))
            wrapper = attempt(
                'optim_wrapper', lambda: runner.build_optim_wrapper(cfg.optim_wrapper), part=cfg.get('optim_wrapper')
            )
            if wrapper is not None and loop is not None and cfg.get('param_scheduler'):
                runner.optim_wrapper = wrapper
                attempt(
                    'param_scheduler',
                    lambda: runner.build_param_scheduler(cfg.param_scheduler),
                    part=cfg.param_scheduler,
                )
    return problems


def runner_from(cfg: Config) -> Runner:
    """Build MMEngine's runner without formatting the config, which takes seconds for a large one, three times.

    Raises:
        SyntaxError: The config contains a value that cannot be written as Python code, as MMEngine raises it, too.
    """
    object.__setattr__(cfg, '_format_python_code', False)
    ast.parse(cfg.pretty_text)
    return Runner.from_cfg(cfg)


def plain_loader() -> Dict[str, Any]:
    """Return the config of a data loader that can be built."""
    return dict(
        batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=PlaceholderDataset()
    )


def build_hook(runner: Runner, hook: Any) -> None:
    """Build a hook as the runner does, including what the hook builds at the start or at the first checkpoint."""
    before = list(runner.hooks)
    runner.register_hook(copy.deepcopy(hook))
    (built,) = [each for each in runner.hooks if each not in before]
    if isinstance(built, EMAHook):
        built.before_run(runner)
    if isinstance(built, CheckpointHook):
        bind_checkpoint_arguments(built)


def bind_checkpoint_arguments(hook: CheckpointHook) -> None:
    """Check the arguments that a hook passes to ``Runner.save_checkpoint`` when it writes the first checkpoint.

    Raises:
        TypeError: ``Runner.save_checkpoint`` does not have such an argument.
    """
    known = inspect.signature(Runner.save_checkpoint).parameters
    unknown = [name for name in hook.args if name not in known]
    if unknown:
        own = inspect.signature(CheckpointHook.__init__).parameters
        near = get_close_matches(unknown[0], own, 1)
        raise TypeError(
            f'CheckpointHook got an unexpected keyword argument {unknown[0]!r}'
            + (f'; did you mean {near[0]!r}?' if near else '')
        )


def checkpoint_hook_problems(cfg: Config) -> List[str]:
    """Check the arguments of MMEngine's checkpoint hook that nothing reads before the first checkpoint is written."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if type_name(hook) not in ('CheckpointHook', 'AtomicCheckpointHook') or not isinstance(hook, dict):
        return []
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet():
            bind_checkpoint_arguments(HOOKS.build(hook))
    except TypeError as error:
        return [f'default_hooks.checkpoint: {error}: the first checkpoint would end the run. Correct it']
    except Exception:
        # Broad, because the hook is MMEngine's; the runner reports what is wrong with it.
        return []
    return []


def build_loop(runner: Runner, split: str) -> Any:
    """Build the loop of a split, on a data loader without the data."""
    if split == 'train':
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        return runner._train_loop
    return runner.build_val_loop(runner._val_loop)


def backend_problems(cfg: Config) -> List[str]:
    """Build a visualizer's backends, which starts none of MMEngine's, and check that their packages are installed."""
    problems = []
    for node in walk((cfg.get('visualizer') or {}).get('vis_backends')):
        kind, name = node.get('type'), type_name(node)
        if not name:
            continue  # an argument of a backend
        try:
            known = kind if inspect.isclass(kind) else VISBACKENDS.get(name)
            if known is not None and not known.__module__.startswith('mmengine.'):
                continue  # its constructor may start it
            with scratch_folder() as folder, quiet():
                backend = VISBACKENDS.build({**node, 'save_dir': folder})
                package = BACKEND_PACKAGES.get(name)
                if package is not None and importlib.util.find_spec(package) is None:
                    backend._init_env()
        except ImportError as error:  # it names the packages to install
            problems.append(
                f'visualizer.vis_backends: {name} needs a package that is missing: {error}, or remove the backend'
            )
        except Exception as error:
            # Broad, because some constructors check their arguments with assert.
            message = short_message(error)
            end = '' if message.endswith('?') else '.'
            problems.append(f'visualizer.vis_backends: {message}{end} {advice_for(error, "Correct the config")}')
    return problems


def replace_backends(cfg: Config, name: str) -> None:
    """Give a visualizer a backend that starts nothing, and a unique name, because MMEngine reuses one of the same name.

    Args:
        cfg (Config): It is changed.
        name (str): Name that no other visualizer of this process has.
    """
    visualizer = cfg.get('visualizer') or {}
    if visualizer.get('vis_backends'):
        visualizer['vis_backends'] = [dict(type='LocalVisBackend')]
    if visualizer:
        visualizer['name'] = name
