"""Reading a config: the file and the command line merged and checked; task, types and data sets of a config."""

import ast
import importlib
import importlib.util
import inspect
import logging
import os
import os.path as osp
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Iterator, List, Optional, Set, Tuple

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import with_scheme
from ..dependencies import EXTRAS, require
from ..deprecation import renamed_in
from ..errors import UserError, library_errors, origin
from ..images import allow_large_images
from ..options import check_config
from .imports import (
    circle_of_bases,
    custom_import_problem,
    custom_imports,
    deferred_import_problem,
    path_instead_of_module,
    place_in_configs,
)
from .structure import replace_none_by_dict, structure_problems
from .wrapped import backbone_config, find_inner_model

#: Task of each library, by the default scope of its configs.
TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
#: Commands for models of any library that is built on MMEngine.
FOR_ANY_MODEL = (
    'tools/train.py, test.py, check.py, replace_backbone.py, get_flops.py, publish_model.py, and export.py with --part '
    'backbone or neck'
)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: Other names of a type (name of its class, deprecated name) -> registered name.
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
#: Versions whose configs MMEngine does not read.
OLD_VERSIONS = 'OpenMMLab 1.x (MMDetection 2.x, MMSegmentation 0.x, MMClassification 0.x)'
#: Keys of their configs, and the present names.
OLD_KEYS = {
    'auto_resume': '--resume',
    'checkpoint_config': 'default_hooks.checkpoint',
    'data': 'train_dataloader, val_dataloader, test_dataloader',
    'dist_params': 'env_cfg.dist_cfg',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'fp16': '--amp, or optim_wrapper.type="AmpOptimWrapper"',
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
        options (dict, optional): Options as from ``--cfg-options``. ``pretrained`` sets the checkpoint of the backbone:
            a file or the name of published weights.
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
    cfg = read_config(path)
    warn_of_unread_variables(cfg, path)
    check_scope(cfg, path)
    allow_large_images()  # the data set may contain some
    check_options(cfg, options)
    replace_none_by_dict(cfg, options)
    with library_errors(f'changing {path} by --cfg-options', 'Correct the names of the options'):
        cfg.merge_from_dict(options)
    for problem in structure_problems(cfg):
        raise ConfigError(f'{path}: {problem}')
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


def read_config(path: str) -> Config:
    """Read a config file of any library; its ``default_scope`` is that of its model if it has none.

    Raises:
        ConfigError: The file, one that it inherits from, or a module that it imports cannot be read, or it is a config
            of OpenMMLab 1.x.
        LibraryError: Another error of the config's code.
    """
    with reading_errors(path):
        try:
            cfg = read_file(path)
        except RecursionError:
            circle = circle_of_bases(path)
            if not circle:
                raise
            raise ConfigError(
                f'{path} inherits in a circle: {" -> ".join(circle)}. Remove one of these _base_'
            ) from None
        except FileNotFoundError as error:
            if origin(error).package != 'mmengine':  # code of the config opens a file of its own
                raise
            missing = str(error.filename)
            folder = osp.dirname(missing) or '.'
            near = get_close_matches(osp.basename(missing), os.listdir(folder) if osp.isdir(folder) else [], 1)
            way_out = 'Correct _base_, whose paths are relative to the folder of the config'
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ConfigError(f'{path} inherits from {missing}, which does not exist{hint or "."} {way_out}') from error
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
                        raise ConfigError(distribution_name_problem(package, path)) from error
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
    if cfg.get('default_scope') is None:
        cfg.default_scope = library_of(cfg)
    return cfg


def read_file(path: str) -> Config:
    """Read a config file, as MMEngine does.

    Modules and functions of pure-Python configs are removed, as MMEngine removes them from others: no runner reads
    them, and such a config could not be written. Types of such configs that a run wrote are restored.

    Raises:
        ConfigError: A pure-Python config computes with an imported name.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        # Broad, because configs are code.
        problem = deferred_import_problem(error)
        if not problem:
            raise
        raise ConfigError(problem) from error
    entries = dict.copy(cfg._cfg_dict)  # not read through Config, which would import lazy objects
    for name, value in entries.items():
        if isinstance(value, (FunctionType, ModuleType)):
            cfg.pop(name)
    if not Config._is_lazy_import(cfg.filename):
        restore_types(cfg._cfg_dict)
    return cfg


def restore_types(node: Any) -> None:
    """Restore the classes and functions of a pure-Python config, which MMEngine writes as ``'mmcv.ops.RoIAlign'``.

    The libraries cannot find all of them: mmdet looks for ``RoIAlign`` in mmcv.ops only, and MMEngine for
    ``mmdet.models.losses.smooth_l1_loss.L1Loss`` in a function, which has the name of its module.

    Args:
        node (dict | list | ...): A tree of dicts and lists; dicts are changed.
    """
    for each in walk(node):
        module, _, name = str(each.get('type')).rpartition('.')
        if '.' not in module:  # a registered name, perhaps with its library
            continue
        with suppress(Exception):  # MMEngine reports a type that cannot be imported
            if hasattr(importlib.import_module(module), name):
                each['type'] = LazyObject(module, name)


@contextmanager
def reading_errors(path: str) -> Iterator[None]:
    """Convert errors of reading a config to errors for users, with the file and the line."""
    try:
        yield
    except Exception as error:
        with library_errors(f'reading {path}{place_in_configs(error, path)}', 'Correct the config'):
            raise


def unimportable(path: str) -> str:
    """Describe the first module that a config cannot import; empty if there is none, or the config cannot be read."""
    try:
        return custom_import_problem(path)
    except Exception:
        # Broad, because configs are code; the error that reading it raised is reported.
        return ''


def distribution_name_problem(package: str, path: str) -> str:
    """Describe why MMEngine does not find the configs of an installed package: its distribution has another name."""
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
    if len(old) > 1 and not any(cfg.get(key) for key in (*LOADERS, 'optim_wrapper')):
        now = present_names([key for key in OLD_KEYS if key in cfg])
        raise ConfigError(
            f'{path} is a config of {OLD_VERSIONS}, which MMEngine does not read. Today: {now}. The migration guide of '
            'the library describes the rest, such as the steps of pipelines'
        )


def present_names(old: List[str]) -> str:
    """Describe the present names of keys of :data:`OLD_KEYS`."""
    return ', '.join(f'{key} is {OLD_KEYS[key]}' for key in old)


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
    """Warn about variables that a config file sets and nothing reads, such as ``data_root`` of an inherited file.

    A file inserts its variables when it is read, so a file that inherits from it cannot change them. Keys of older
    versions and variables without a similar setting are listed in one warning each.

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
    texts, old, others = [], [], []
    for name in sorted(assigned - used - read):
        places = [INSERTED_INTO[name]] if name in INSERTED_INTO else list(names_ending_in(cfg, name, read))
        near = get_close_matches(name, read, 1, MISSPELT)
        values = [value_at(cfg, place) for each in places for place in each.split(', ')]
        existing = [value for value in values if value is not None] or values
        if existing and all(value == cfg.get(name) for value in existing):
            continue  # the value is in use everywhere, inherited or written out
        if places:
            texts.append(
                f'sets {name}, which nothing reads: inherited files inserted their variables when they were read. Set '
                f'{", ".join(places[:3])} instead'
            )
        elif name in OLD_KEYS:
            old.append(name)
        elif near:
            texts.append(f'sets {name}, which nothing reads. Did you mean {near[0]}?')
        else:
            others.append(name)
    if old:
        texts.append(f'sets keys of {OLD_VERSIONS}, which nothing reads. Today: {present_names(old)}')
    if others:
        texts.append(f'sets {", ".join(others)}, which nothing reads')
    for text in texts:
        print_log(f'{path} {text}', logger='current', level=logging.WARNING)


#: Minimum similarity at which a variable counts as a misspelt key.
MISSPELT = 0.85
#: Variables of configs, and what they are inserted into under another name.
INSERTED_INTO = {
    'dataset_type': 'train_dataloader.dataset.type, val_dataloader.dataset.type',
    'pretrained': 'model.backbone.init_cfg',
    'test_pipeline': 'test_dataloader.dataset.pipeline',
    'train_pipeline': 'train_dataloader.dataset.pipeline',
    'val_pipeline': 'val_dataloader.dataset.pipeline',
}


def read_keys() -> Set[str]:
    """Return the keys of a config that a runner, MMEngine, the libraries' tools or this package read."""
    return {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters, *ALSO_READ} - {'cfg'}


def value_at(cfg: Config, name: str) -> Any:
    """Return the value at a dotted name of a config; ``None`` if there is none."""
    first, *parts = name.split('.')
    node = cfg.get(first)
    for part in parts:
        if isinstance(node, (list, tuple)):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node


def names_ending_in(cfg: Config, key: str, parts: Set[str]) -> Iterator[str]:
    """Yield the dotted names, below some keys of a config, that end in ``key``."""

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
    """Return the dotted names, below some keys of a config, whose value is ``value`` or text that begins with it."""

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
    """Check that the library of a config is installed: one of ``TASKS``, or another one that is built on MMEngine.

    Raises:
        ConfigError: The config names no library, or one that is not installed.
        ImportError: One of ``TASKS`` is not installed; the message names the extra that brings it.
    """
    scope = cfg.get('default_scope')
    if scope in TASKS:
        require(scope)
    elif not isinstance(scope, str) or not (scope in MODELS.children or importlib.util.find_spec(scope)):
        replaced = scope is None and isinstance(cfg.get('model'), dict) and 'type' not in cfg.model
        raise ConfigError(
            f'{path} has default_scope={scope!r}, expected one of {list(TASKS)} or an installed library that is built '
            'on them'
            + '. Its model has no type: in a pure-Python config (read_base), model = dict(...) replaces the inherited '
            'model, model.update(dict(...)) changes it' * replaced
        )


def library_of(cfg: Config) -> Optional[str]:
    """Return the library of a config's model: a key of ``TASKS``.

    Libraries that are built on these, such as MMYOLO and MMRotate, have a ``default_scope`` of their own: for them it
    is the library whose class the model inherits from. A model with its own format of predictions, such as the 3D
    detectors of MMDetection3D, counts as one of another library.

    Args:
        cfg (Config): A config.

    Returns:
        str | None: ``None`` if the model is none of a classifier, a detector and a segmentor, or cannot be found.
    """
    scope, model = scope_of_model(cfg), cfg.get('model')
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
    format_predictions = getattr(kind, 'add_pred_to_datasample', None)
    if format_predictions is not None and format_predictions.__module__.partition('.')[0] not in TASKS:
        return None
    return next((package for package in packages if package in TASKS), None)


def scope_of_model(cfg: Config) -> Optional[str]:
    """Return the scope of a config's model: one that it names itself (MMRazor's configs), or ``default_scope``."""
    default, model = cfg.get('default_scope'), cfg.get('model')
    if not isinstance(model, dict):
        return default
    kind = model.get('type')
    own = model.get('_scope_') or (kind.rpartition('.')[0] if isinstance(kind, str) else None)
    # Models of the three libraries are used with the data sets and metrics of the default scope.
    return default if not own or own in TASKS and default in TASKS else own


def task_of(cfg: Config, path: str = '') -> str:
    """Return the task that a config is for: a value of ``TASKS``.

    Args:
        cfg (Config): A config.
        path (str): File of the config, for the message. Default: the one that it was read from.

    Raises:
        ConfigError: The model is none of a classifier, a detector and a segmentor.
    """
    library = library_of(cfg)
    if library is None:
        path = path or cfg.filename or 'the config'
        scope, kind = scope_of_model(cfg), type_name(cfg.get('model') or {})
        if not kind:
            raise ConfigError(f'{path} has default_scope={scope!r}, expected one of {list(TASKS)}')
        raise ConfigError(
            f'{path}: the model {kind} of {scope} does not predict as a classifier, detector or '
            f'segmentor of {", ".join(TASKS)}, which this needs: use the tools of {scope}. Supported for it: '
            f'{FOR_ANY_MODEL}'
        )
    return TASKS[library]


def task_or_library(cfg: Config) -> str:
    """Return the task that a config is for or, for a model of another library, its scope.

    Raises:
        ConfigError: The config has no model.
    """
    if library_of(cfg) is None and type_name(cfg.get('model') or {}):
        return str(scope_of_model(cfg))
    return task_of(cfg)


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
    afterwards would change nothing. The backbone may be that of a model inside another one
    (:func:`~fcvit_mm.engine.wrapped.find_inner_model`).
    """
    backbone = backbone_config(find_inner_model(cfg.get('model') or {})[1])
    if not backbone:
        raise ConfigError(
            'pretrained sets the checkpoint of model.backbone, but the config has no model.backbone with a type: omit '
            'pretrained'
        )
    checkpoint = with_scheme(checkpoint) if isinstance(checkpoint, str) else checkpoint
    backbone.init_cfg = None if checkpoint is None else dict(type='Pretrained', checkpoint=checkpoint)
    cfg.pretrained = checkpoint


__getattr__ = renamed_in(__name__)
