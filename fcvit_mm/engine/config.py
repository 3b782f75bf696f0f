"""Building the config of a runner from a config file and a command line."""

import ast
import importlib.util
import inspect
import logging
import os.path as osp
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Iterator, List, Optional, Set, Tuple

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import with_scheme
from ..dependencies import EXTRAS, require
from ..deprecation import renamed_in
from ..errors import UserError, library_errors
from ..images import allow_large_images
from ..options import check_config
from .imports import circle_of_bases, custom_import_problem, custom_imports, path_instead_of_module

#: Task of each library, by the default scope of its configs.
TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: Registered names of types that have others, too: their classes' and deprecated ones.
REGISTERED_NAMES = {
    'BrokenPictureHook': 'SkipCorruptSamplesHook',
    'MMSyncBN': 'SyncBN',
    'PretrainedInit': 'Pretrained',
    'SyncBatchNorm': 'SyncBN',
    'WholeCheckpointHook': 'AtomicCheckpointHook',
}
#: Keys of a config that are read besides the arguments of a runner: by MMEngine, the libraries' tools and this package.
ALSO_READ = (
    'activation_checkpointing',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'mp_start_method',
    'opencv_num_threads',
    'pretrained',
    'runner_type',
    'static_graph',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
#: What OpenMMLab 1.x called the parts of a config, and what they are now.
OLD_KEYS = {
    'checkpoint_config': 'default_hooks.checkpoint',
    'data': 'train_dataloader, val_dataloader, test_dataloader',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'log_config': 'default_hooks.logger',
    'lr_config': 'param_scheduler',
    'max_epochs': 'train_cfg.max_epochs',
    'max_iters': 'train_cfg.max_iters',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'resume_from': '--resume PATH',
    'runner': 'train_cfg',
    'seed': 'randomness.seed',
    'total_epochs': 'train_cfg.max_epochs',
}


class ConfigError(UserError):
    """A config or command line is invalid."""


def load_config(
    path: str, options: Optional[dict] = None, work_dir: Optional[str] = None, launcher: str = 'none'
) -> Config:
    """Read a config of any OpenMMLab library and merge the command line into it.

    Args:
        path (str): The config file.
        options (dict, optional): ``--cfg-options``. ``pretrained`` sets the checkpoint of the backbone: a file or the
            name of published weights.
        work_dir (str, optional): Folder for the results. Default: the config's, else ``./work_dirs/<config name>``.
        launcher (str): Launcher that started the processes.

    Returns:
        Config: Ready for :func:`adapt_to_machine`.

    Raises:
        ConfigError: The file is missing or is not a config of an installed OpenMMLab library.
        ImportError: The task's library is not installed; the message names the extra that brings it.
    """
    options = dict(options or {})
    try:
        check_config(path)
    except UserError as error:
        raise ConfigError(str(error)) from None
    with library_errors(f'reading {path}', 'Correct the config'):
        try:
            cfg = Config.fromfile(path)
        except RecursionError:
            circle = circle_of_bases(path)
            if not circle:
                raise
            raise ConfigError(
                f'{path} inherits in a circle: {" -> ".join(circle)}. Remove one of these _base_'
            ) from None
        except (TypeError, ValueError) as error:
            problem = unimportable(path)
            if not problem:
                raise
            raise ConfigError(f'{path}: custom_imports: {problem}') from error
        except ImportError as error:
            for package in EXTRAS:
                if package in str(error):
                    require(package)
                    if 'is not installed, please install' in str(error):
                        raise ConfigError(elsewhere(package, path)) from error
            problem = unimportable(path)
            if problem:
                raise ConfigError(f'{path}: custom_imports: {problem}') from error
            # MMEngine's own message lists sys.path; the first error names the module.
            first: BaseException = error
            while first.__cause__ or first.__context__:
                first = first.__cause__ or first.__context__  # type: ignore[assignment]
            raise first from None
    for name in custom_imports(cfg):
        problem = path_instead_of_module(name, path)
        if problem:  # allow_failed_imports=True
            print_log(f'{path}: custom_imports: {problem}', logger='current', level=logging.WARNING)
    check_version(cfg, path)
    warn_of_unread_variables(cfg, path)
    if cfg.get('default_scope') is None:
        cfg.default_scope = library_of(cfg)
    check_scope(cfg, path)
    allow_large_images()  # among the data that the config names
    check_options(cfg, options)
    with library_errors(f'changing {path} by --cfg-options', 'Correct the names of the options'):
        cfg.merge_from_dict(options)
    if 'pretrained' in options:
        set_pretrained(cfg, options['pretrained'])
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(path))[0])
    if isinstance(cfg.work_dir, str):
        cfg.work_dir = osp.expanduser(cfg.work_dir)
    return cfg


def unimportable(path: str) -> str:
    """Describe the first module that a config cannot import; empty if there is none, or the config cannot be read."""
    try:
        return custom_import_problem(path)
    except Exception:
        # Broad, because configs are code; the error that reading it raised is reported.
        return ''


def elsewhere(package: str, path: str) -> str:
    """Describe why MMEngine does not find the configs of an installed package: another distribution has them."""
    spec = importlib.util.find_spec(package)
    folder = osp.join(osp.dirname(str(spec and spec.origin)), '.mim', 'configs')
    return (
        f"{path}: MMEngine finds _base_ = '{package}::...' only with the original distribution of {package}, but the "
        f'installed one has another name. Give the path instead: _base_ = {osp.join(folder, "FOLDER", "NAME.py")!r}'
    )


def check_version(cfg: Config, path: str) -> None:
    """Reject a config of OpenMMLab 1.x, which no runner reads.

    Raises:
        ConfigError: Names its parts and what they are now.
    """
    old = [key for key in ('data', 'runner', 'optimizer', 'lr_config', 'total_epochs') if key in cfg]
    if len(old) > 1 and not any(cfg.get(key) for key in (*LOADERS, 'train_cfg', 'optim_wrapper')):
        now = ', '.join(f'{key} is {OLD_KEYS[key]}' for key in old)
        raise ConfigError(f'{path} is a config of OpenMMLab 1.x, which MMEngine does not read. Today: {now}')


def check_options(cfg: Config, options: dict) -> None:
    """Reject options without effect: keys that no runner reads, and variables of the config file.

    Args:
        cfg (Config): Config as read, before the options are merged.
        options (dict): Dotted name -> value.

    Raises:
        ConfigError: Names the option and, if possible, the one that has an effect.
    """
    read = read_keys()
    for option in options:
        key, _, rest = option.partition('.')
        if key in read:
            continue
        if key not in cfg:
            close = get_close_matches(key, read, 1)
            near = OLD_KEYS.get(key) or (close[0] + f'.{rest}' * bool(rest) if close else '')
            raise ConfigError(
                f'--cfg-options {option} has no effect: {key} is not part of the config'
                + (f'. Use {near}' if near else f', expected one of {", ".join(sorted(read))}')
            )
        places = [f'{place}.{rest}' if rest else place for place in places_of(cfg, cfg[key], read)]
        text = f'--cfg-options {option} has no effect: {key} is a variable, inserted when the file was read'
        if places:
            more = f' and {len(places) - 3} more' if len(places) > 3 else ''
            raise ConfigError(f'{text}. Change what it was inserted into: {", ".join(places[:3])}{more}')
        print_log(f'{text}, unless the code of the config reads it', logger='current', level=logging.WARNING)


def warn_of_unread_variables(cfg: Config, path: str) -> None:
    """Warn of variables that a config file sets and nothing reads, such as ``data_root`` of an inherited file.

    A file inserts its variables when it is read, so a file that inherits from it cannot change them.

    Args:
        cfg (Config): Config as read.
        path (str): File of the config.
    """
    if not str(path).endswith('.py'):
        return
    try:
        tree = ast.parse(Path(path).read_text(encoding='utf-8'))
    except SyntaxError:  # with MMEngine's templates, which are replaced before
        return
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assigned = {target.id for target in targets if isinstance(target, ast.Name)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if '_base_' not in assigned:  # variables of a file that others inherit from, or pure Python
        return
    read = read_keys() - {'pretrained'} | {'_base_', 'custom_imports'}
    for name in sorted(assigned - used - read):
        places = [INSERTED_INTO[name]] if name in INSERTED_INTO else list(names_ending_in(cfg, name, read))
        way_out = f'. Set {", ".join(places[:3])} instead' if places else ''
        near = OLD_KEYS.get(name) or next(iter(get_close_matches(name, read, 1, MISSPELT)), '')
        if near and not places:
            way_out = f'. Did you mean {near}?'
        print_log(
            f'{path} sets {name}, which nothing reads: inherited files inserted their variables when they were '
            f'read{way_out}',
            logger='current',
            level=logging.WARNING,
        )


#: Similarity to a key from which on a variable is a misspelling of it.
MISSPELT = 0.85
#: Variables of configs, and what they are inserted into under another name.
INSERTED_INTO = {
    'pretrained': 'model.backbone.init_cfg',
    'test_pipeline': 'test_dataloader.dataset.pipeline',
    'train_pipeline': 'train_dataloader.dataset.pipeline',
    'val_pipeline': 'val_dataloader.dataset.pipeline',
}


def read_keys() -> Set[str]:
    """Return the keys of a config that a runner, MMEngine, the libraries' tools or this package read."""
    return {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters, *ALSO_READ} - {'cfg'}


def names_ending_in(cfg: Config, key: str, parts: Set[str]) -> Iterator[str]:
    """Yield the dotted names that end in a key, below some keys of a config."""

    def visit(node: Any, name: str) -> Iterator[str]:
        children = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        )
        for child_key, child in children:
            if child_key == key:
                yield f'{name}.{key}'
            yield from visit(child, f'{name}.{child_key}')

    for part in cfg:
        if part in parts:
            yield from visit(cfg[part], part)


def places_of(cfg: Config, value: Any, keys: Any) -> List[str]:
    """Return the dotted names below some keys of a config that have a value, or begin with it, if that is text."""

    def visit(node: Any, name: str) -> Iterator[Tuple[str, bool]]:
        if type(node) is type(value) and node == value:
            yield name, True
        elif isinstance(value, str) and isinstance(node, str) and node.startswith(value):
            yield name, False
        elif isinstance(node, dict):
            for key, child in node.items():
                yield from visit(child, f'{name}.{key}')
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                yield from visit(child, f'{name}.{index}')

    if value is None or value == '' or isinstance(value, bool):
        return []
    found = [each for key in cfg if key in keys for each in visit(cfg[key], key)]
    return [name for name, equal in sorted(found, key=lambda each: not each[1])]


def check_scope(cfg: Config, path: str) -> None:
    """Check that the library of a config is installed: one of ``TASKS``, or one that is built on MMEngine as they are.

    Raises:
        ConfigError: The config names no library, or one that is not installed.
        ImportError: One of ``TASKS`` is not installed; the message names the extra that brings it.
    """
    scope = cfg.get('default_scope')
    if scope in TASKS:
        require(scope)
    elif not isinstance(scope, str) or not (scope in MODELS.children or importlib.util.find_spec(scope)):
        raise ConfigError(
            f'{path} has default_scope={scope!r}, expected one of {list(TASKS)} or an installed library that is built '
            'on them'
        )


def library_of(cfg: Config) -> Optional[str]:
    """Return the library of a config's model: a key of ``TASKS``.

    Libraries that are built on these, such as MMYOLO and MMRotate, have a ``default_scope`` of their own: the class of
    the model then decides, by the class that it inherits from.

    Args:
        cfg (Config): A config.

    Returns:
        str | None: ``None`` if the model is none of a classifier, a detector and a segmentor, or cannot be found.
    """
    scope, model = cfg.get('default_scope'), cfg.get('model')
    if scope in TASKS:
        return str(scope)
    kind = model.get('type') if isinstance(model, dict) else None
    if isinstance(kind, (LazyObject, LazyAttr)):
        kind = kind.build()
    if isinstance(kind, str) and scope is not None:
        errors = library_errors(f'importing {scope}', f'Install the versions that {scope} needs')
        with errors, DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    packages = [base.__module__.partition('.')[0] for base in getattr(kind, '__mro__', ())]
    return next((package for package in packages if package in TASKS), None)


def task_of(cfg: Config, path: str = 'the config') -> str:
    """Return the task that a config is for: a value of ``TASKS``.

    Args:
        cfg (Config): A config.
        path (str): File of the config, for the message.

    Raises:
        ConfigError: The model is none of a classifier, a detector and a segmentor.
    """
    library = library_of(cfg)
    if library is None:
        scope, kind = cfg.get('default_scope'), type_name(cfg.get('model') or {})
        raise ConfigError(
            f'{path} has default_scope={scope!r}, expected one of {list(TASKS)}'
            + f', and its model {kind} does not inherit from a classifier, detector or segmentor of these' * bool(kind)
        )
    return TASKS[library]


def type_name(node: Any) -> str:
    """Return the registered name of a type, however a config gives it.

    Args:
        node (dict | str | type | object): A config with ``type``, or the type itself: a registered name with or without
            its library (``'mmdet.CocoDataset'``), a class or function (pure-Python configs), or an object of it.

    Returns:
        str: The name without its library, the current one of several (:data:`REGISTERED_NAMES`); empty without a type.
    """
    kind = node.get('type') if isinstance(node, dict) else node
    if isinstance(kind, (LazyObject, LazyAttr)):
        kind = kind.build()
    if kind is None:
        return ''
    name = kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', type(kind).__name__)
    return REGISTERED_NAMES.get(name, name)


def leaf_datasets(node: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers that repeat, balance or concatenate.

    Args:
        node (dict | Dataset): The config of a data set, or one that is built.
    """

    def get(key: str) -> Any:
        return node.get(key) if isinstance(node, dict) else getattr(node, key, None)

    inner = [each for each in [get('dataset'), get('_dataset'), *(get('datasets') or ())] if each is not None]
    if not inner:
        yield node
    for each in inner:
        yield from leaf_datasets(each)


def walk(node: Any) -> Iterator[dict]:
    """Yield all dicts in a tree of dicts and lists, from the outside in."""
    if isinstance(node, dict):
        yield node
        children = list(node.values())
    elif isinstance(node, (list, tuple)):
        children = list(node)
    else:
        return
    for child in children:
        yield from walk(child)


def set_pretrained(cfg: Config, checkpoint: Optional[str]) -> None:
    """Initialize the backbone from ``checkpoint``: a file, a name of published weights, or ``None`` for random weights.

    In the config files the variable ``pretrained`` was put into the model when they were read; changing the variable
    afterwards would change nothing.
    """
    backbone = cfg.get('model', {}).get('backbone')
    if backbone is None:
        raise ConfigError(
            'pretrained sets the checkpoint of model.backbone, but the config has no model.backbone: omit pretrained'
        )
    checkpoint = with_scheme(checkpoint) if isinstance(checkpoint, str) else checkpoint
    backbone.init_cfg = None if checkpoint is None else dict(type='Pretrained', checkpoint=checkpoint)
    cfg.pretrained = checkpoint


def replace_sync_bn(model: Any, kind: str) -> int:
    """Make each SyncBN and MMSyncBN of a model's config another kind of norm, without their own settings.

    Args:
        model (dict): It is changed.
        kind (str): Name of the norm that takes their place.

    Returns:
        int: Number of replaced norms.
    """
    found = [node for node in walk(model) if type_name(node) == 'SyncBN']
    for node in found:
        node['type'] = kind
        for key in ('group', 'process_group', 'stats_mode'):
            node.pop(key, None)
    return len(found)


def train_in_float32_on_cpus(cfg: Config) -> None:
    """Disable mixed precision in training on a CPU, with a message: MMEngine's wrapper refuses it on CPUs."""
    wrapper = cfg.get('optim_wrapper')
    if get_device() == 'cpu' and wrapper and type_name(wrapper) == 'AmpOptimWrapper':
        wrapper['type'] = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        print_log('No accelerator: AmpOptimWrapper becomes OptimWrapper, training runs in float32.', logger='current')


def adapt_to_machine(cfg: Config) -> None:
    """Replace settings that the machine does not support, with a message; add the defaults of the libraries' tools.

    On a CPU SyncBN becomes BatchNorm (SyncBN trains on GPUs only; the statistics are then each process's own).
    """
    if get_device() == 'cpu':
        found = replace_sync_bn(cfg.get('model', {}), 'BN')
        if found or cfg.get('sync_bn'):
            cfg.sync_bn = None
            print_log('No accelerator: SyncBN in the model becomes BN.', logger='current')
    for name in LOADERS:
        loader = cfg.get(name)
        if not loader:
            continue
        if loader.get('num_workers', 0) == 0:
            # torch refuses these without workers.
            loader.pop('prefetch_factor', None)
            loader['persistent_workers'] = False
        if library_of(cfg) == 'mmpretrain':
            # As mmpretrain's own tools do; its configs rely on it.
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', get_device() != 'cpu')


def enable_amp(cfg: Config) -> None:
    """Enable mixed precision (``--amp``) in the same way as the libraries' own tools."""
    kind = type_name(cfg.optim_wrapper) or 'OptimWrapper'
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(
            f'--amp needs optim_wrapper.type OptimWrapper or AmpOptimWrapper, but the config has {kind}: omit --amp '
            'or change the type'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the batch size over the base batch size of the config (``--auto-scale-lr``)."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ConfigError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: add it, or omit the option'
        )
    cfg.auto_scale_lr.enable = True


def enable_visualization(cfg: Config, show_dir: Optional[str], show: bool = False, wait_time: float = 2) -> None:
    """Draw predictions with the hook and visualizer of the task's library (``--show-dir``, ``--show``)."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(
            "--show and --show-dir need default_hooks=dict(visualization=dict(type='...Hook')) in the "
            'config, with the hook of its library: add it, or omit them'
        )
    # mmdet puts a relative folder below that of the first image, then of the second, ...
    show_dir = osp.abspath(show_dir) if show_dir else None
    task = task_of(cfg)
    if task == 'classification':
        hook.update(enable=True, interval=1, out_dir=show_dir, show=show, wait_time=wait_time)
        return
    hook.update(draw=True, show=show, wait_time=wait_time)
    if task == 'detection':
        hook['test_out_dir'] = show_dir
        return
    # mmseg 1.2 draws every 50th image unless told otherwise; later versions heed this in validation only.
    hook['interval'] = 1
    if show_dir:
        cfg.visualizer['save_dir'] = show_dir


def enable_tta(cfg: Config) -> None:
    """Enable the test-time augmentation defined in the config (``--tta``)."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ConfigError(
            '--tta needs tta_model and tta_pipeline in the config: add them, or omit --tta (mmdet merges boxes but '
            'not masks, so configs with masks have none)'
        )
    if task_of(cfg) == 'classification' and cfg.get('default_hooks', {}).get('visualization', {}).get('enable'):
        raise ConfigError(
            '--tta cannot be combined with --show-dir or --show: mmpretrain draws on the input of the model, which '
            'with --tta is several images per sample. Omit one of them'
        )
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.tta_pipeline
    wrapper = cfg.tta_model.copy()  # not **cfg.tta_model, which would put classes where the config dumps names
    wrapper['module'] = cfg.model
    cfg.model = wrapper


def dump_predictions(cfg: Config, out: str) -> None:
    """Write the predictions in the format of the task's library (``--out``).

    Args:
        cfg (Config): A config, whose evaluator is changed.
        out (str): A ``.pkl`` file, or for segmentation a folder.
    """
    task = task_of(cfg)
    if task == 'segmentation':
        if osp.splitext(out)[1]:
            raise ConfigError(
                f'--out is {out}, expected a folder for segmentation, where one PNG file per image is written'
            )
    elif not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out is {out}, expected a file name ending in .pkl or .pickle for {task}')
    evaluator = cfg.test_evaluator
    # One metric, a list of them, or an evaluator that has them.
    nested = isinstance(evaluator, dict) and 'metrics' in evaluator
    metrics = evaluator['metrics'] if nested else evaluator
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    if task == 'segmentation':
        metrics[0]['output_dir'] = out
    else:
        metrics.append(dict(type='DumpDetResults' if task == 'detection' else 'DumpResults', out_file_path=out))
    if nested:
        evaluator['metrics'] = metrics
    else:
        cfg.test_evaluator = metrics


__getattr__ = renamed_in(__name__)
