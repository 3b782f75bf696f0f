"""Checkpoints that a run starts from, resumes from or tests: whether they can be read, and fit the model."""

import re
from typing import List, Optional

from mmengine.config import Config
from torch.nn import Module

from ..apis.load import meta_of, read_trained
from ..apis.normalization import report_other_normalization
from ..checkpoints import CheckpointError, check_fits, read_checkpoint, surplus_blocks, weights_of
from ..checkpoints.names import some
from ..engine.wrapped import backbone_config
from .log import log_warning
from .model import built_model

#: Values of a backbone that the checkpoint of another task may lack: counters, output norms.
OPTIONAL = re.compile(r'num_batches_tracked$|backbone\.norm\d')


def checkpoint_problems(cfg: Config, path: str, what: str, trained: Optional[List[str]] = None) -> List[str]:
    """Check a checkpoint with :func:`fcvit_mm.apis.load.read_trained`, which never runs code from it.

    A warning is logged if the config normalizes images in another way than those that it was trained on.

    Args:
        cfg (Config): The config.
        path (str): The checkpoint.
        what (str): Name of the checkpoint in messages.
        trained (list, optional): List that gets the names of the classes in the checkpoint.
    """
    try:
        content = read_trained(path)
    except CheckpointError as error:
        return [f'{what}: {error}']
    report_other_normalization(cfg, content, path)
    if trained is not None:
        trained += meta_of(Config(), content).names
    return []


def load_from_problems(cfg: Config) -> List[str]:
    """Check that a checkpoint given by ``load_from`` has weights of the model; MMEngine only warns if it has none."""
    path = cfg.load_from
    built = built_model(cfg)
    if built is None:
        return []
    model = built.state_dict()
    weights = weights_of(read_checkpoint(path), path)
    common = [name for name in model if name in weights]
    fitting = [name for name in common if weights[name].shape == model[name].shape]
    if fitting:
        report_partial_backbone(cfg, list(model), fitting)
        surplus = surplus_blocks(model, weights)
        if surplus:
            log_warning(
                f'load_from: {path} has {len(surplus)} more blocks than the model, which are not loaded '
                f'({some(surplus)}). Is it of another variant?'
            )
        return []
    if not common and type(built)._load_from_state_dict is not Module._load_from_state_dict:
        return []  # it renames what it loads, as mmdet's SoftTeacher does with the weights of a detector
    found = f'their shapes differ ({some(common)})' if common else f'it has {some(weights)}, the model {some(model)}'
    return [
        f'load_from: 0 of {len(model)} values of the model are in {path}: {found}. For weights of a backbone: '
        f'--cfg-options load_from=None pretrained={path}; for other files: tools/convert_checkpoint.py first'
    ]


def report_partial_backbone(cfg: Config, model: List[str], fitting: List[str]) -> None:
    """Log a warning if a checkpoint lacks values of the backbone, as a checkpoint of another variant does."""
    own = [name for name in model if 'backbone.' in name and not OPTIONAL.search(name)]
    missing = [name for name in own if name not in set(fitting)]
    # A checkpoint of heads only may go with a pretrained file of the backbone.
    if missing and not (len(missing) == len(own) and backbone_config(cfg.model).get('init_cfg')):
        log_warning(
            f'load_from: {len(missing)} of {len(own)} values of the backbone are missing in {cfg.load_from} or have '
            f'another shape there, and start at random ({some(missing)}). Is it of another variant?'
        )


def resume_problems(cfg: Config, trained: Optional[List[str]] = None) -> List[str]:
    """Check a checkpoint that training is to resume from; ``trained`` gets the names of the classes in it."""
    path = cfg.load_from
    try:
        content = read_trained(path)
    except CheckpointError as error:
        return [f'--resume: {error}']
    report_other_normalization(cfg, content, path)
    meta = content.get('meta')
    if 'optimizer' not in content or not isinstance(meta, dict) or not {'epoch', 'iter'} <= set(meta):
        return [
            f'--resume: {path} contains weights but no training state. To start a new run from these weights: '
            f'--cfg-options load_from={path}'
        ]
    if 'message_hub' not in content:
        return [
            f'--resume: {path} has no message_hub, which MMEngine resumes from: it was not written by its runner, or '
            f'was changed since. To start a new run from these weights: --cfg-options load_from={path}'
        ]
    if 'config' in meta:
        return [
            f'--resume: {path} contains a config, which MMEngine would execute as Python code: rejected. Resume from '
            'a checkpoint of tools/train.py, which contains none'
        ]
    if trained is not None:
        trained += meta_of(Config(), content).names
    return []


def resume_model_problems(cfg: Config) -> List[str]:
    """Check that a checkpoint to resume from has every value of the model; MMEngine only warns about missing ones."""
    model = built_model(cfg, 'meta')
    if model is None:
        return []
    try:
        check_fits(model, cfg.load_from)
    except CheckpointError as error:
        return [f'--resume: {error}. To start a new run from what fits: --cfg-options load_from={cfg.load_from}']
    return []
