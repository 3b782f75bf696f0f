"""Checks before training and testing: one error that lists every problem, in seconds instead of hours."""

import os.path as osp
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..engine.config import leaf_datasets, type_name
from ..engine.hooks.corrupt_samples import SkipCorruptSamplesHook
from ..engine.resume_point import is_sharded
from ..errors import UserError
from .batches import batch_problems
from .building import backend_problems, build_problems, checkpoint_hook_problems
from .checkpoints import checkpoint_problems, load_from_problems, resume_model_problems, resume_problems
from .classes import (
    LabelRule,
    class_number_problems,
    class_numbers,
    learned_classes,
    split_problems,
    trained_class_problems,
    zero_label_problems,
)
from .contexts import without_garbage_collection
from .data.dataset import Leaf, build_problem, check_leaf
from .data.pipeline import build_outer, try_pipeline
from .data.random_steps import report_random_steps
from .gradients import gradient_problems
from .ground_truth.evaluator import foreign_metric_problem, ground_truth_problems
from .ground_truth.scores import EVALUATION_SECONDS, Split
from .limits import TimeLimit
from .log import unique
from .loops import NO_VALIDATION, is_by_epoch, loop_problems, sampler_problems
from .metrics import mask_metric_problems, monitor_problems
from .misspelt_arguments import report_misspelt_arguments
from .misspelt_settings import report_misspelt_settings
from .model import (
    channel_problems,
    class_weight_problems,
    one_class_problems,
    optimizer_problems,
    report_order_of_outputs,
    report_replaced_settings,
    report_unsummed_losses,
)
from .overlap import report_overlap, report_shared_annotations, sources_of
from .prediction import prediction_problems
from .pretrained import pretrained_problems, report_frozen_random_weights
from .schedules import report_long_schedules, report_short_schedules
from .settings import setting_problems, type_problems
from .strides import stride_problems
from .switching import switch_problems
from .work_dir import folder_to_write_problems, work_dir_problems

#: Parts of a config that testing reads.
READ_BY_TESTS = ('model', 'data_preprocessor', 'test_dataloader', 'test_evaluator', 'test_cfg')
#: Data loader -> the end of the message for a config without it.
ADVICE_WITHOUT_LOADER = {
    'val_dataloader': NO_VALIDATION,
    'test_dataloader': '. To test on the validation data, set in the config: test_dataloader = val_dataloader, '
    'test_evaluator = val_evaluator, test_cfg = dict()',
}


class Samples(NamedTuple):
    """The samples of a data loader.

    Attributes:
        number (int): Number of samples; samples that wrappers repeat count once.
        paths (list[str]): Paths of their images, each once.
        sources (dict[str, str]): Annotation file or folder of segmentation maps -> folder of the images.
    """

    number: int
    paths: List[str]
    sources: Dict[str, str]


class PreflightError(UserError):
    """All problems that a run would encounter.

    Attributes:
        problems (list[str]): One line each.
    """

    def __init__(self, problems: List[str]) -> None:
        self.problems = list(problems)
        number = '1 problem' if len(problems) == 1 else f'{len(problems)} problems'
        super().__init__('\n  - '.join([f'{number} found before the start:', *problems]))


def check_training(cfg: Config, building: bool = False) -> None:
    """Check the requirements of training: training and validation data, checkpoints, numbers of classes.

    Args:
        cfg (Config): The config, command line merged and resume point chosen
            (:func:`fcvit_mm.engine.resume_point.select_resume_point`).
        building (bool): Also build all parts of the run except the data sets, as the runner does at its start.

    Raises:
        PreflightError: Lists all problems.
    """
    limit = TimeLimit()
    problems = type_problems(cfg)
    if problems:
        raise PreflightError(problems)
    trained: List[str] = []
    if cfg.get('resume') and is_sharded(cfg):
        pass  # only the strategy reads it
    elif cfg.get('resume') and cfg.get('load_from'):
        problems += resume_problems(cfg, trained) or resume_model_problems(cfg)
    else:
        problems += pretrained_problems(cfg)
        report_frozen_random_weights(cfg)
        if cfg.get('load_from') == '':
            problems.append('load_from is empty: give a checkpoint, or load_from=None')
        if cfg.get('load_from'):
            problems += checkpoint_problems(cfg, cfg.load_from, 'load_from') or load_from_problems(cfg)
    validates = cfg.get('val_cfg') is not None
    of_loops = loop_problems(cfg)
    problems += work_dir_problems(cfg) + of_loops + setting_problems(cfg)
    loaders = ['train_dataloader', *(['val_dataloader'] if validates else [])]
    samples: Dict[str, Samples] = {}
    problems += data_problems(cfg, loaders, limit, {cfg.get('load_from'): trained}, samples)
    if not of_loops:
        number = samples['train_dataloader'].number if 'train_dataloader' in samples else None
        report_long_schedules(cfg, is_by_epoch(cfg), number)
        report_short_schedules(cfg, is_by_epoch(cfg), number)
    report_misspelt_arguments(cfg)
    report_misspelt_settings(cfg)
    problems += one_class_problems(cfg) + class_weight_problems(cfg) + optimizer_problems(cfg)
    problems += prediction_problems(cfg) if validates else []
    report_order_of_outputs(cfg)
    report_replaced_settings(cfg)
    report_unsummed_losses(cfg)
    problems += channel_problems(cfg) or stride_problems(cfg) + gradient_problems(cfg)
    if building and not of_loops:
        problems += build_problems(cfg)
    else:
        problems += checkpoint_hook_problems(cfg) + backend_problems(cfg)
    if problems:
        raise PreflightError(unique(problems))
    limit.report()


def check_testing(cfg: Config, checkpoint: str) -> None:
    """Check the requirements of testing: test data, checkpoint, numbers of classes.

    Raises:
        PreflightError: Lists all problems.
    """
    limit = TimeLimit()
    problems = type_problems(Config({key: cfg[key] for key in READ_BY_TESTS if key in cfg}))
    if problems:
        raise PreflightError(problems)
    trained: List[str] = []
    problems = checkpoint_problems(cfg, checkpoint, 'the checkpoint', trained) + folder_to_write_problems(cfg)
    problems += prediction_problems(cfg) + data_problems(cfg, ['test_dataloader'], limit, {checkpoint: trained})
    report_misspelt_arguments(cfg)
    report_misspelt_settings(cfg)
    if problems:
        raise PreflightError(problems)
    limit.report()


def allowed_part(cfg: Config, loader: str) -> float:
    """Return the fraction of files of a data loader that may be corrupt."""
    if loader != 'train_dataloader':
        return 0.0
    hook: Any = SkipCorruptSamplesHook()
    for configured in cfg.get('custom_hooks') or []:
        if type_name(configured) == 'SkipCorruptSamplesHook':
            hook = configured
            if isinstance(configured, dict):
                options = {key: configured[key] for key in ('limit', 'skip') if key in configured}
                hook = SkipCorruptSamplesHook(**options)
    return hook.limit if hook.skip else 0.0


def data_problems(
    cfg: Config,
    loaders: List[str],
    limit: Optional[TimeLimit] = None,
    trained: Optional[Dict[str, Sequence[str]]] = None,
    samples: Optional[Dict[str, Samples]] = None,
) -> List[str]:
    """Check the data sets of some data loaders, their heads and their evaluators.

    Args:
        cfg (Config): The config; its data sets and evaluators are built in its scope.
        loaders (list[str]): Names of data loaders.
        limit (TimeLimit, optional): Time limit of all checks. Default: a new one.
        trained (dict, optional): Checkpoint that is tested or resumed -> names of its classes, if it has any.
        samples (dict, optional): Dict that gets the samples of each data loader without problems.
    """
    limit = limit or TimeLimit()
    samples = {} if samples is None else samples
    problems: List[str] = []
    seen: List[Tuple[str, Sequence[str], dict]] = []
    splits: Dict[str, Sequence[str]] = {}
    rules: Dict[str, LabelRule] = {}
    numbers = list(class_numbers(cfg))
    for number, name in enumerate(loaders):
        if not cfg.get(name):
            problems.append(f'the config has no {name}{ADVICE_WITHOUT_LOADER.get(name, "")}')
            continue
        part = limit.share(len(loaders) - number)
        with DefaultScope.overwrite_default_scope(cfg.default_scope), without_garbage_collection():
            leaves: List[Leaf] = []
            problems += loader_problems(cfg, name, learned_classes(numbers), part, seen, splits, rules, leaves, samples)
            with part.pause():
                leaves.clear()  # freeing millions of objects takes as long as a check
        limit.take(part)
    if 'train_dataloader' in samples and 'val_dataloader' in samples:
        train, val = samples['train_dataloader'], samples['val_dataloader']
        report_shared_annotations(train.sources, val.sources, 'val_dataloader')
        report_overlap(train.paths, val.paths, 'val_dataloader', limit)
    differing = split_problems(splits)
    trained = trained or {}
    problems += differing or zero_label_problems(rules) or trained_class_problems(trained, splits)
    places: Dict[str, Dict[str, None]] = {}  # problem -> data loaders that have it, in order
    for name, names, metainfo in seen:
        if differing and list(names) != list(next(iter(splits.values()))):
            continue  # reported already, with the classes to compare the heads with
        for problem in class_number_problems(names, metainfo, numbers, trained):
            places.setdefault(problem, {})[name] = None
    problems += [f'{", ".join(loaders)}: {problem}' for problem, loaders in places.items()]
    return unique(problems)


def loader_problems(
    cfg: Config,
    name: str,
    num_classes: Optional[int],
    limit: TimeLimit,
    seen: List[Tuple[str, Sequence[str], dict]],
    splits: Dict[str, Sequence[str]],
    rules: Dict[str, LabelRule],
    leaves: List[Leaf],
    samples: Dict[str, Samples],
) -> List[str]:
    """Check a data loader: its data sets, a few samples, and its evaluator.

    Args:
        cfg (Config): The config.
        name (str): Name of the data loader.
        num_classes (int, optional): Maximum number of classes of a head.
        limit (TimeLimit): Time limit of all checks.
        seen (list): List that gets name, classes and ``metainfo`` of each data set.
        splits (dict): Dict that gets the classes of data sets without problems.
        rules (dict): Dict that gets the :class:`LabelRule` of these data sets.
        leaves (list): List that gets the data sets; emptying it frees them.
        samples (dict): Dict that gets the samples if there are no problems.
    """
    dataset_cfg, split = cfg[name].get('dataset'), name.partition('_')[0]
    leaf_cfgs = list(leaf_datasets(dataset_cfg))
    for leaf_cfg in leaf_cfgs:
        leaf = check_leaf(leaf_cfg, num_classes, allowed_part(cfg, name), limit)
        leaves.append(leaf)
        if leaf.classes is not None:
            seen.append((name, leaf.classes, getattr(leaf.dataset, 'metainfo', None) or {}))
            if not leaf.problems:
                where = f'{name} ({folder_of(leaf_cfg)})'
                splits[where] = leaf.classes
                if leaf.raw:
                    shifted = bool(leaf.dataset.reduce_zero_label)
                    rules[where] = LabelRule(shifted, str(leaf.dataset.data_root), len(leaf.classes) in leaf.raw)
    problems = [f'{name}: {problem}' for leaf in leaves for problem in leaf.problems]
    if problems or any(leaf.dataset is None for leaf in leaves):
        return problems
    datasets = [leaf.dataset for leaf in leaves]
    outer = datasets[0]
    if leaf_cfgs[0] is not dataset_cfg:
        try:
            outer = build_outer(dataset_cfg, iter(datasets), limit)
            len(outer)  # RepeatDataset and others compute it with their settings
        except Exception as error:
            # Broad, because wrappers have their own checks.
            return [f'{name}: {build_problem(dataset_cfg, error)}']
    problems += [f'{name}{problem}' for problem in sampler_problems(cfg, name, outer)]
    found, packed = try_pipeline(outer, datasets, limit, name)
    found = found or batch_problems(cfg, name, len(outer), packed, leaves)
    problems += [f'{name}: {problem}' for problem in found]
    if not problems and split != 'train':
        report_random_steps(datasets, name)
    if not problems and split == 'train':
        problems += switch_problems(cfg, outer, leaves, limit)
    evaluator = cfg.get(f'{split}_evaluator')
    if not problems and split != 'train' and evaluator:
        problems += foreign_metric_problem(evaluator, model_class(cfg), f'{split}_evaluator')
    if not problems and split != 'train' and evaluator and hasattr(outer, 'metainfo'):
        limit.reserve(EVALUATION_SECONDS)  # for the check of the ground truth, which comes last and finds most problems
        data = Split(outer, datasets, packed, limit)
        problems += ground_truth_problems(evaluator, data, f'{split}_evaluator')
        problems += mask_metric_problems(cfg, f'{split}_evaluator')
        if split == 'val':
            problems += monitor_problems(cfg, data.score_names or [])
    if not problems:
        samples[name] = samples_of(leaves, outer)
    return problems


def samples_of(leaves: Sequence[Leaf], outer: Any) -> Samples:
    """Return the samples of the data sets of a data loader; ``outer`` is the data set with its wrappers."""
    infos = [info for leaf in leaves for info in getattr(leaf.dataset, 'data_list', None) or ()]
    number = sum(len(leaf.dataset) for leaf in leaves if leaf.dataset is not None)
    if len(outer) < number and hasattr(outer, 'get_data_info'):  # a wrapper selects samples, as KFoldDataset does
        number = len(outer)
        infos = [outer.get_data_info(index) for index in range(number)]
    paths = [info['img_path'] for info in infos if isinstance(info, dict) and isinstance(info.get('img_path'), str)]
    return Samples(number, unique(paths), sources_of(leaf.dataset for leaf in leaves))


def model_class(cfg: Config) -> Any:
    """Return the class of a config's model; ``None`` if it is unknown."""
    kind = (cfg.get('model') or {}).get('type')
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            return registry.get(kind)
    return kind


def folder_of(dataset_cfg: dict) -> str:
    """Return the location of a data set in its config."""
    prefix = dataset_cfg.get('data_prefix') or ''
    parts = [dataset_cfg.get('data_root'), dataset_cfg.get('ann_file'), prefix if isinstance(prefix, str) else '']
    return osp.join('', *filter(None, parts))
