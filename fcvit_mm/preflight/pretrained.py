"""Checking pretrained files of a model before a run: which values the libraries load from them."""

import logging
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from ..apis.normalization import report_other_normalization
from ..checkpoints import CheckpointError, check_finite, read_checkpoint, weights_of
from ..checkpoints.names import some
from ..engine.config import type_name, walk
from ..engine.run import is_overwritten
from ..engine.wrapped import backbone_config, find_inner_model, unwrap_model
from ..errors import UserError, origin
from .contexts import quiet
from .data.kinds import is_url
from .log import log_warning
from .model import built_model

#: Fraction of a module's values; if its pretrained file has fewer, a warning is logged.
FEW = 0.5
#: Advice about a pretrained file of the backbone, and of another component.
OF_BACKBONE = 'Another file: --cfg-options pretrained=PATH; from scratch: --cfg-options pretrained=None'
OF_PART = 'Give another checkpoint, or init_cfg=None for random weights'


class Part(NamedTuple):
    """A module with a pretrained file.

    Attributes:
        name (str): Its dotted name in the config.
        module (nn.Module): The module.
        path (str): Path of the file.
        prefix (str): Prefix of the module's names in the file, from the config.
    """

    name: str
    module: nn.Module
    path: str
    prefix: str


def pretrained_problems(cfg: Config) -> List[str]:
    """Check the pretrained files of model components: that they can be read, and that something in them fits."""
    problems = []
    overwritten = cfg.model.backbone.init_cfg if is_overwritten(cfg) else None
    backbone = backbone_config(find_inner_model(cfg.get('model') or {})[1])
    of_backbone = list(walk(backbone.get('init_cfg')))
    for node in walk(cfg.get('model', {})):
        path = node.get('checkpoint')
        if node is overwritten or type_name(node) != 'Pretrained' or not isinstance(path, str) or is_url(path):
            continue
        try:
            content = read_checkpoint(path)
            check_finite(weights_of(content, path), path)
            report_other_normalization(cfg, content, path)
        except CheckpointError as error:
            advice = OF_BACKBONE if any(node is each for each in of_backbone) else OF_PART
            problems.append(f'pretrained: {error}. {advice}')
    return problems or ([] if overwritten else fit_problems(cfg))


def report_frozen_random_weights(cfg: Config) -> None:
    """Log a warning if stages of the backbone are frozen that no checkpoint gives weights."""
    place, model = find_inner_model(cfg.get('model') or {})
    backbone = backbone_config(model)
    frozen = backbone.get('frozen_stages')
    nodes = [*walk(backbone), *walk(model.get('init_cfg'))]
    given = [model.get('pretrained'), backbone.get('pretrained'), cfg.get('load_from')]
    if any(type_name(node) in ('Pretrained', 'PretrainedInit') for node in nodes) or any(given):
        return
    if isinstance(frozen, int) and (frozen > 0 or frozen == 0 and has_frozen_parameters(cfg)):
        name = f'{place}.backbone.frozen_stages'
        log_warning(
            f'{name} is {frozen}, but the backbone has no pretrained weights, so these parts keep their random '
            f'weights: set pretrained=PATH (init_cfg of the backbone) or load_from, or {name}=-1'
        )


def has_frozen_parameters(cfg: Config) -> bool:
    """Check whether parameters of the backbone are frozen; many backbones freeze none with ``frozen_stages=0``."""
    backbone = getattr(built_model(unwrap_model(cfg)), 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return False
    backbone.train()  # where some backbones freeze parameters
    return not all(each.requires_grad for each in backbone.parameters())


def fit_problems(cfg: Config) -> List[str]:
    """Load the pretrained files into their modules, and check that values were loaded."""
    if not any(type_name(node) == 'Pretrained' for node in walk(cfg.get('model', {}))):
        return []
    model = built_model(cfg)
    if model is None:
        return []
    problems = []
    for part in parts_of(model):
        found: Dict[str, Any] = {}
        advice = OF_BACKBONE if part.name == 'model.backbone.init_cfg' else OF_PART
        try:
            loaded = loaded_values(part.module, found)
        except UserError as error:
            problems.append(f'{part.name}: {error}. {advice}')
            continue
        except Exception as error:
            # Broad, because loading is the module's own.
            names = f': its names are {some(found)}' if found else ''
            problems.append(f'{part.name}: {part.path} cannot be loaded ({origin(error).message}){names}. {advice}')
            continue
        own = [name for name, value in part.module.state_dict().items() if value.is_floating_point()]
        if len(loaded) < FEW * len(own):
            text = (
                f'{part.name}: {len(loaded) or "none"} of the {len(own)} values of {type(part.module).__name__} are in '
                f'{part.path}, whose names are {some(found)}; expected {some(own)}'
            )
            text += prefix_advice(own, found, part)
            if loaded:
                log_warning(text)
            else:
                problems.append(f'{text}. {advice}')
    return problems


def parts_of(model: nn.Module) -> Iterator[Part]:
    """Yield the modules of a model that load a local pretrained file, without the modules inside them."""
    inside: Set[int] = set()
    for name, module in model.named_modules():
        given = getattr(module, 'init_cfg', None)
        for node in given if isinstance(given, (list, tuple)) else [given]:
            if not isinstance(node, dict) or type_name(node) != 'Pretrained':
                continue
            path = node.get('checkpoint')
            known = hasattr(module, 'init_weights') and id(module) not in inside
            if known and isinstance(path, str) and not is_url(path):
                where = '.'.join(filter(None, ['model', name, 'init_cfg']))
                inside.update(id(each) for each in module.modules())
                yield Part(where, module, path, node.get('prefix') or '')


def loaded_values(module: nn.Module, found: Dict[str, Any]) -> Set[str]:
    """Initialize a module as MMEngine does; return the names of the values that it took from a file.

    Args:
        module (nn.Module): The module; it is changed.
        found (dict): Dict that gets the names and values in the file.
    """

    def mark(part: nn.Module) -> Any:
        def before_loading(*args: Any) -> None:  # values that are not loaded stay NaN
            with torch.no_grad():
                for value in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                    if value.is_floating_point():
                        value.fill_(torch.nan)

        return before_loading

    handles = [each._register_load_state_dict_pre_hook(mark(each)) for each in module.modules()]
    try:
        with torch.random.fork_rng(devices=[]), quiet(logging.CRITICAL), safe_reading(found):
            module.init_weights()  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    values = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    # If no names were recorded, the module has its own loader, which rejects files that do not fit.
    return {name for name, value in values.items() if not found or not value.isnan().all()}


@contextmanager
def safe_reading(found: Dict[str, Any]) -> Iterator[None]:
    """Let MMEngine's loader read checkpoints without running code from them, and record the names in them."""
    original = CheckpointLoader.load_checkpoint

    def load_checkpoint(filename: str, map_location: Optional[str] = None, logger: Any = 'current') -> Any:
        content = read_checkpoint(filename)
        weights = content.get('state_dict', content)
        found.update(weights if isinstance(weights, dict) else content)
        return content

    CheckpointLoader.load_checkpoint = load_checkpoint
    try:
        yield
    finally:
        CheckpointLoader.load_checkpoint = original


def prefix_advice(own: List[str], found: Dict[str, Any], part: Part) -> str:
    """Return advice that names the prefix of a module's names in a file; empty if the file has none of them."""
    for name in own:
        for key in found:
            if key != name and key.endswith(f'.{name}') and key[: -len(name)] != part.prefix:
                return f'. Add prefix={key[: -len(name)]!r} to this init_cfg'
    return ''
