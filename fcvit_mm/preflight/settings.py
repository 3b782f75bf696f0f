"""Checking settings for whose wrong values MMEngine raises an error that does not name the setting."""

import importlib.util
import logging
import multiprocessing
import re
from typing import Any, Iterator, List, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIMIZERS, DefaultScope
from mmengine.runner import Priority, get_priority

from ..engine.config import type_name, walk
from ..engine.structure import find_part
from ..engine.wrapped import find_inner_model
from .log import log_warning, unique
from .messages import near_registered

#: Names of levels that MMEngine's logger accepts, the common ones.
LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR')
#: Patterns for names of optimizers that MMEngine registers if a package is installed, and the package.
PACKAGES = (
    ('Lion', 'lion_pytorch'),
    ('DAdapt(AdaGrad|Adam|SGD)', 'dadaptation'),
    (r'bnb_\w+|\w+(8|32)bit', 'bitsandbytes'),
)
#: Parts of a config whose values are numbers, names or dicts, but never text that looks like a number.
NUMERIC_PARTS = (
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'val_cfg',
    'test_cfg',
    'auto_scale_lr',
    'default_hooks',
)
SPLITS = ('train', 'val', 'test')
#: Settings of a data loader that are integers, and the smallest.
LOADER_INTEGERS = {'batch_size': 1, 'num_workers': 0, 'prefetch_factor': 1}
#: Other settings that are integers; of a loop and as milestones, numbers such as 1e5 are accepted, too.
INTEGERS = (
    *(f'train_cfg.{name}' for name in ('max_epochs', 'max_iters', 'val_interval', 'val_begin')),
    'optim_wrapper.accumulative_counts',
    'default_hooks.checkpoint.max_keep_ckpts',
)
#: Settings that are integers wherever they are.
INTEGERS_ANYWHERE = ('num_classes', 'ignore_index')
#: Pattern of numbers.
NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


def setting_problems(cfg: Config) -> List[str]:
    """Check the logging level, seed, start method of processes, learning rate, optimizer, and priorities of hooks."""
    problems = []
    level = cfg.get('log_level')
    if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):
        problems.append(f'log_level is {level!r}, expected one of {", ".join(LEVELS)}')
    seed = (cfg.get('randomness') or {}).get('seed')
    try:
        np.random.RandomState(seed)
    except (TypeError, ValueError):
        problems.append(
            f'randomness.seed is {seed!r}, expected an integer from 0 to {2**32 - 1}, or None for a different '
            'one in each run'
        )
    method = ((cfg.get('env_cfg') or {}).get('mp_cfg') or {}).get('mp_start_method')
    methods = multiprocessing.get_all_start_methods()
    if method is not None and method not in methods:
        problems.append(f'env_cfg.mp_cfg.mp_start_method is {method!r}, expected one of {", ".join(methods)}')
    if cfg.get('sync_bn') not in (None, 'torch', 'mmcv'):
        problems.append(f"sync_bn is {cfg.sync_bn!r}, expected 'torch', 'mmcv' or None")
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    interval = checkpoint.get('interval') if isinstance(checkpoint, dict) else None
    if not isinstance(interval, (int, float, type(None))):
        problems.append(f'default_hooks.checkpoint.interval is {interval!r}, expected an integer')
    report_no_learning_rate(cfg)
    report_uncounted_batches(cfg)
    problems += mixed_precision_problems(cfg) + priority_problems(cfg)
    return problems + clipping_problems(cfg) + optimizer_type_problems(cfg)


def type_problems(cfg: Config) -> List[str]:
    """Check the types of settings that other checks compute with; they must not run before these are correct."""
    truths = [
        f'{key} of {type_name(node) or part} is the text {value!r}, which counts as true: write True or False without '
        'quotation marks'
        for part, tree in cfg.items()
        if part != 'visualizer'  # the values of tags are text
        for node in walk(tree)
        for key, value in node.items()
        if isinstance(value, str) and value in ('True', 'False', 'true', 'false')
    ]
    wrong = [f'{name} is {value!r}, expected {words}' for name, value, words in wrong_types(cfg)]
    return unique([*text_problems(cfg), *truths, *wrong])  # pipelines occur in variables, too


def wrong_types(cfg: Config) -> Iterator[Tuple[str, Any, str]]:
    """Yield name, value and expected value of settings that are not numbers; :func:`text_problems` reports texts."""
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        for key, least in LOADER_INTEGERS.items():
            value = loader.get(key, least)
            unset = value is None and key == 'prefetch_factor'
            if not unset and not (is_integer(value) and value >= least):
                yield f'{split}_dataloader.{key}', value, f'an integer, {least} or more'
    for place in INTEGERS:
        _, value = find_part(cfg, place)
        fits = is_whole(value) if place.startswith('train_cfg') else is_integer(value)
        if not (value is None or fits or is_number_text(value)):
            yield place, value, 'an integer'
    for node in walk(cfg.get('param_scheduler')):
        times = node.get('milestones', ())
        listed = isinstance(times, (list, tuple)) and all(is_whole(each) or is_number_text(each) for each in times)
        if not listed and not is_number_text(times):
            yield f'param_scheduler: milestones of {type_name(node)}', times, 'a list of integers'
    place, model = find_inner_model(cfg.get('model') or {})
    for name, node in (('data_preprocessor', cfg), (f'{place}.data_preprocessor', model)):
        for key, value in (node.get('data_preprocessor') or {}).items():
            values = value if isinstance(value, (list, tuple)) else [value]
            if 'pad_val' in key and not isinstance(value, (int, float, type(None))):
                yield f'{name}.{key}', value, 'a number'
            elif key in ('mean', 'std') and value is not None and not all(isinstance(x, (int, float)) for x in values):
                yield f'{name}.{key}', value, 'a list of numbers'
            elif key == 'std' and 0 in values:
                yield f'{name}.{key}', value, 'numbers above 0, by which the pixels are divided'
    for part, value in cfg.items():
        for node in walk(value):
            for key in INTEGERS_ANYWHERE:
                if node.get(key) is not None and not is_integer(node[key]):
                    yield f'{key} of {type_name(node) or part}', node[key], 'an integer'


def is_integer(value: Any) -> bool:
    """Check whether a value is an integer; ``True`` and ``False`` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Check whether a value is an integer, or a number such as 1e5 that equals one."""
    return is_integer(value) or isinstance(value, float) and value.is_integer()


def is_number_text(value: Any) -> bool:
    """Check whether a value is a number given as text."""
    return isinstance(value, str) and NUMBER.fullmatch(value) is not None


def mixed_precision_problems(cfg: Config) -> List[str]:
    """Check the type of mixed precision, which MMEngine does not read on a machine without accelerator."""
    wrapper = cfg.get('optim_wrapper') or {}
    dtype = wrapper.get('dtype')
    if type_name(wrapper) != 'AmpOptimWrapper' or not isinstance(dtype, str) or dtype in AmpOptimWrapper.valid_dtypes:
        return []
    return [f'optim_wrapper.dtype is {dtype!r}, expected one of {", ".join(map(str, AmpOptimWrapper.valid_dtypes))}']


def priority_problems(cfg: Config) -> List[str]:
    """Check that the priorities of hooks exist."""
    problems = []
    hooks = [(f'default_hooks.{name}', node) for name, node in (cfg.get('default_hooks') or {}).items()]
    hooks += [(f'custom_hooks.{number}', node) for number, node in enumerate(cfg.get('custom_hooks') or ())]
    for name, node in hooks:
        if isinstance(node, dict) and node.get('priority') is not None:
            try:
                get_priority(node['priority'])
            except (KeyError, TypeError, ValueError):
                problems.append(
                    f'{name}.priority is {node["priority"]!r}, expected an integer from 0 to 100 or one of '
                    f'{", ".join(each.name for each in Priority)}'
                )
    return problems


def text_problems(cfg: Config) -> List[str]:
    """Check that numbers are not given as text, as YAML reads ``1e-3``."""
    place, model = find_inner_model(cfg.get('model') or {})
    parts = [(name, cfg.get(name)) for name in NUMERIC_PARTS]
    parts += [(f'{place}.{name}', model.get(name)) for name in ('train_cfg', 'test_cfg')]
    return [
        f'{name} is the text {value!r}, expected a number: write it without quotation marks (YAML reads 1e-3 as text: '
        '0.001)'
        for part, node in parts
        for name, value in texts_of(node, part)
        if is_number_text(value)
    ]


def texts_of(node: Any, place: str) -> Iterator[Tuple[str, str]]:
    """Yield dotted name and value of each text in a part of a config."""
    if isinstance(node, str):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in items:
        yield from texts_of(child, f'{place}.{key}')


def report_no_learning_rate(cfg: Config) -> None:
    """Report that the learning rate is 0."""
    if ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr') == 0:
        log_warning(
            'optim_wrapper.optimizer.lr is 0, so no weight changes: set a learning rate, unless this is intended'
        )


def report_uncounted_batches(cfg: Config) -> None:
    """Report that the learning rate is scaled for single batches where a step accumulates the gradients of several."""
    number = (cfg.get('optim_wrapper') or {}).get('accumulative_counts')
    if (cfg.get('auto_scale_lr') or {}).get('enable') and isinstance(number, int) and number > 1:
        log_warning(
            'the learning rate is scaled for the images of one batch (--auto-scale-lr, auto_scale_lr.enable), but a '
            f'step takes {number} (optim_wrapper.accumulative_counts): multiply optim_wrapper.optimizer.lr by {number} '
            'unless this is intended'
        )


def clipping_problems(cfg: Config) -> List[str]:
    """Check that the limit of gradient clipping is above 0."""
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad')
    limits = clip if isinstance(clip, dict) else {}
    return [
        f'optim_wrapper.clip_grad.{name} is {limits[name]}, which makes every gradient 0: for no limit omit clip_grad'
        for name in ('max_norm', 'clip_value')
        if isinstance(limits.get(name), (int, float)) and limits[name] <= 0
    ]


def optimizer_type_problems(cfg: Config) -> List[str]:
    """Check that the type of the optimizer is registered: MMEngine treats an unknown name as a class."""
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if not isinstance(kind, str):
        return []
    with DefaultScope.overwrite_default_scope(cfg.default_scope), OPTIMIZERS.switch_scope_and_registry(None) as found:
        if found.get(kind) is not None:
            return []
    package = next((name for pattern, name in PACKAGES if re.fullmatch(pattern, kind)), '')
    if package and importlib.util.find_spec(package) is None:
        pip = f'pip install {package.replace("_", "-")}'
        return [f'optim_wrapper.optimizer.type is {kind!r}, which MMEngine takes from {package}, not installed: {pip}']
    near = near_registered(kind, 'optimizer') or '.'
    return [
        f'optim_wrapper.optimizer.type is {kind!r}, which is no registered optimizer{near} Correct it, or let the '
        "config import the module that registers it: custom_imports=dict(imports=['MODULE'])"
    ]
