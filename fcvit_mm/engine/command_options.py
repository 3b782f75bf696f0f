"""Options of commands that change a config: ``--amp``, ``--auto-scale-lr``, ``--show``, ``--tta`` and ``--out``."""

import inspect
import os.path as osp
from typing import Optional

from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope

from .config import ConfigError, leaf_datasets, library_of, type_name


def enable_amp(cfg: Config) -> None:
    """Enable mixed precision (``--amp``) in the same way as the libraries' own tools."""
    if not cfg.get('optim_wrapper'):
        raise ConfigError('--amp needs optim_wrapper in the config, which has none: add it, or omit --amp')
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
    scale = cfg.get('auto_scale_lr')
    base = scale.get('base_batch_size') if isinstance(scale, dict) else None
    if not isinstance(base, int) or base < 1:
        given = f', which has {scale!r}' if scale else ''
        raise ConfigError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...), the number of images per step that the '
            f'learning rate is for, in the config{given}: add it, or omit the option'
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
    if cfg.get('visualizer') is None:
        raise ConfigError(
            "--show and --show-dir need visualizer=dict(type='...Visualizer') in the config, with the type of its "
            'library: add it, or omit them'
        )
    # An absolute path, because mmdet creates a relative folder below the previous one for each image.
    show_dir = osp.abspath(show_dir) if show_dir else None
    library = library_of(cfg)
    if library is None:
        draw_by_signature(cfg, hook, show_dir, dict(interval=1, show=show, wait_time=wait_time))
        return
    if library == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=show_dir, show=show, wait_time=wait_time)
        return
    hook.update(draw=True, show=show, wait_time=wait_time)
    if library == 'mmdet':
        hook['test_out_dir'] = show_dir
        return
    # mmseg 1.2 draws every 50th image by default; later versions use the interval in validation only.
    hook['interval'] = 1
    if show_dir:
        cfg.visualizer['save_dir'] = show_dir


def draw_by_signature(cfg: Config, hook: dict, show_dir: Optional[str], options: dict) -> None:
    """Enable a visualization hook of another library, by the names of its arguments.

    Raises:
        ConfigError: The hook is unknown, or has no argument that enables it.
    """
    kind = hook.get('type')
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope(cfg.default_scope), HOOKS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    arguments = inspect.signature(kind).parameters if callable(kind) else {}
    switch = next((name for name in ('enable', 'draw') if name in arguments), None)
    if switch is None:
        raise ConfigError(
            f'--show and --show-dir: default_hooks.visualization ({type_name(hook)}) has no argument enable or draw: '
            f'use the visualization hook of {cfg.default_scope}, or omit these options'
        )
    hook[switch] = True
    hook.update({name: value for name, value in options.items() if name in arguments})
    folder = next((name for name in ('out_dir', 'test_out_dir') if name in arguments), None)
    if folder:
        hook[folder] = show_dir
    elif show_dir:
        cfg.visualizer['save_dir'] = show_dir


def enable_tta(cfg: Config) -> None:
    """Enable the test-time augmentation defined in the config (``--tta``)."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ConfigError(
            '--tta needs tta_model and tta_pipeline in the config: add them, or omit --tta (mmdet merges boxes but '
            'not masks, so configs with masks have none)'
        )
    if library_of(cfg) == 'mmpretrain' and cfg.get('default_hooks', {}).get('visualization', {}).get('enable'):
        raise ConfigError(
            '--tta cannot be combined with --show-dir or --show: mmpretrain draws on the input of the model, which '
            'with --tta is several images per sample. Omit one of them'
        )
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.tta_pipeline
    wrapper = cfg.tta_model.copy()  # not **cfg.tta_model, which would replace names of types by classes
    wrapper['module'] = cfg.model
    cfg.model = wrapper


def dump_predictions(cfg: Config, out: str) -> None:
    """Write the predictions in the format of the task's library (``--out``).

    Args:
        cfg (Config): A config, whose evaluator is changed.
        out (str): A ``.pkl`` file, or for segmentation a folder.
    """
    library = library_of(cfg)
    if library == 'mmseg':
        if osp.splitext(out)[1]:
            raise ConfigError(
                f'--out is {out}, expected a folder for segmentation, where one PNG file per image is written'
            )
    elif not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out is {out}, expected a file name ending in .pkl or .pickle')
    evaluator = cfg.get('test_evaluator')
    # None, one metric, a list of metrics, or an evaluator that contains them.
    nested = isinstance(evaluator, dict) and 'metrics' in evaluator
    metrics = evaluator['metrics'] if nested else evaluator
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics] if metrics else []
    if library == 'mmseg':
        if not metrics:
            raise ConfigError(
                "--out needs test_evaluator=dict(type='IoUMetric') in the config, which writes the files (with "
                'format_only=True if there is no ground truth): add it, or omit --out'
            )
        metrics[0]['output_dir'] = out
    else:
        metrics.append(dict(type='DumpDetResults' if library == 'mmdet' else 'DumpResults', out_file_path=out))
    if nested:
        evaluator['metrics'] = metrics
    else:
        cfg.test_evaluator = metrics
