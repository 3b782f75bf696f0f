"""The structure of a config: which parts must be dicts, lists or text."""

import os
from typing import Any, Dict, Iterator, Tuple

from mmengine.config import Config, ConfigDict

#: Parts of a config that must be dicts, lists, or text.
DICTS = (
    'model',
    'model.data_preprocessor',
    'model.test_cfg',
    'model.train_cfg',
    'data_preprocessor',
    'default_hooks',
    'env_cfg',
    'env_cfg.dist_cfg',
    'env_cfg.mp_cfg',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'optim_wrapper.paramwise_cfg',
    'randomness',
    'train_cfg',
    'val_cfg',
    'test_cfg',
    'visualizer',
    *(f'{split}_dataloader' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.{part}' for split in ('train', 'val', 'test') for part in ('sampler', 'batch_sampler')),
)
LISTS = ('custom_hooks',)
TEXTS = ('load_from', 'work_dir')
#: Parts that consist of dicts or objects.
SEVERAL = ('custom_hooks', 'default_hooks', 'val_evaluator', 'test_evaluator')


def replace_none_by_dict(cfg: Config, options: Dict[str, Any]) -> None:
    """Replace ``None`` by an empty dict, and tuples by lists, where dotted options set values in them.

    MMEngine refuses such options.
    """
    for option in options:
        node: Any = cfg
        for name in option.split('.')[:-1]:
            key: Any = int(name) if isinstance(node, list) and name.isdigit() else name
            try:
                value = node[key]
            except (LookupError, TypeError):  # a new name, or a value without parts
                break
            if value is None or isinstance(value, tuple):
                node[key] = ConfigDict() if value is None else list(value)
            node = node[key]


def structure_problems(cfg: Config) -> Iterator[str]:
    """Yield a message for each part that is not the required dict, list or text, and for each empty type."""
    kinds: Any
    for names, kinds, expected in (
        (DICTS, dict, 'a dict'),
        (LISTS, (list, tuple), 'a list'),
        (TEXTS, (str, os.PathLike), 'a path'),
        (('val_evaluator', 'test_evaluator'), (dict, list, tuple), 'a dict or a list of dicts'),
    ):
        for name in names:
            found, value = find_part(cfg, name)
            if not found or value is None or isinstance(value, kinds):
                continue
            yield _wrong_type(name, value, expected)
    for name in SEVERAL:
        part = cfg.get(name)
        hooks = name == 'default_hooks' and isinstance(part, dict)
        for key, each in part.items() if hooks else enumerate(part) if isinstance(part, (list, tuple)) else ():
            if isinstance(each, (str, int, float, list, tuple)) or each is None and not hooks:
                yield _wrong_type(f'{name}.{key}', each, 'a dict')
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if isinstance(loader, dict) and loader.get('dataset') is not None:
            yield from _dataset_problems(loader['dataset'], f'{name}.dataset')
    for name in _empty_types(cfg, ''):
        yield f'{name} is empty, expected the name of a class'


def _wrong_type(name: str, value: Any, expected: str) -> str:
    is_type = expected == 'a dict' and isinstance(value, str)
    example = f', such as dict(type={value!r}); on the command line {name}.type={value}' if is_type else ''
    return f'{name} is {str(value)[:80]!r}, expected {expected}{example}'


def _dataset_problems(dataset: Any, name: str) -> Iterator[str]:
    """Yield a message for each data set, also inside wrappers, that is no dict, and each pipeline that is no list."""
    if not isinstance(dataset, dict):
        yield _wrong_type(name, dataset, 'a dict')
        return
    for key in ('pipeline', 'datasets'):
        if dataset.get(key) is not None and not isinstance(dataset[key], (list, tuple)):
            yield _wrong_type(f'{name}.{key}', dataset[key], 'a list')
            return
    inner = [(f'{name}.dataset', dataset['dataset'])] if dataset.get('dataset') is not None else []
    inner += [(f'{name}.datasets.{number}', each) for number, each in enumerate(dataset.get('datasets') or ())]
    for place, each in inner:
        yield from _dataset_problems(each, place)


def _empty_types(node: Any, place: str) -> Iterator[str]:
    children = node.items() if isinstance(node, (dict, Config)) else ()
    for key, child in enumerate(node) if isinstance(node, (list, tuple)) else children:
        if key == 'type' and child == '':
            yield f'{place}type'
        yield from _empty_types(child, f'{place}{key}.')


def find_part(cfg: Config, name: str) -> Tuple[bool, Any]:
    """Return whether a config has a part, and the part, by its dotted name."""
    node: Any = cfg
    for key in name.split('.'):
        if not isinstance(node, (dict, Config)) or key not in node:
            return False, None
        node = node[key]
    return True, node
