"""The model card and metafile entry of a published model, from its config, its run's logs and the code.

Nothing is guessed. Unknown values are "not known" in the card and absent from the entry.
"""

import json
import os.path as osp
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mmengine.config import Config

from ..apis.count import Complexity
from ..checkpoints import CheckpointError, recognize
from ..engine.config import TASKS, leaf_datasets, task_or_library, type_name
from ..models.variants import collection_of
from ..version import __version__
from .weights import Stripped, digest

NOT_KNOWN = 'not known'
#: Metric of the three libraries -> task and name in metafiles, and the factor that converts its value to percent.
METRICS = {
    'accuracy/top1': ('Image Classification', 'Top 1 Accuracy', 1),
    'accuracy/top5': ('Image Classification', 'Top 5 Accuracy', 1),
    'coco/bbox_mAP': ('Object Detection', 'box AP', 100),
    'coco/bbox_mAP_50': ('Object Detection', 'box AP50', 100),
    'coco/bbox_mAP_75': ('Object Detection', 'box AP75', 100),
    'coco/segm_mAP': ('Instance Segmentation', 'mask AP', 100),
    'coco/segm_mAP_50': ('Instance Segmentation', 'mask AP50', 100),
    'coco/segm_mAP_75': ('Instance Segmentation', 'mask AP75', 100),
    'mIoU': ('Semantic Segmentation', 'mIoU', 1),
    'mAcc': ('Semantic Segmentation', 'mAcc', 1),
    'aAcc': ('Semantic Segmentation', 'aAcc', 1),
}
#: Folder in the libraries' configs -> name and number of classes of a data set. Data with other classes, or in another
#: folder, are named after their folder.
DATASETS = {'imagenet': ('ImageNet-1k', 1000), 'coco': ('COCO', 80), 'ADEChallengeData2016': ('ADE20K', 150)}
#: Task -> code that predicts with a config and a checkpoint, with its library.
USAGE = {
    'classification': (
        'from mmpretrain import ImageClassificationInferencer',
        "ImageClassificationInferencer('{config}', pretrained='{checkpoint}')('image.jpg')",
    ),
    'detection': (
        'from mmdet.apis import DetInferencer',
        "DetInferencer('{config}', '{checkpoint}'{scope})('image.jpg', out_dir='drawn')",
    ),
    'segmentation': (
        'from mmseg.apis import MMSegInferencer',
        "inferencer = MMSegInferencer('{config}', '{checkpoint}')\n"
        '# Without this line, the first 19 classes are drawn with the names and colors of Cityscapes, the others not.\n'
        'inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta\n'
        "inferencer('image.jpg', out_dir='drawn')",
    ),
}


class Run(NamedTuple):
    """The logs of the run that wrote a checkpoint.

    Attributes:
        metrics (dict[str, float]): Metrics of the validation at the checkpoint's epoch or iteration, as logged; empty
            if there was none.
        source (str, optional): The log they are from.
        by_epoch (bool, optional): Whether the run counted epochs, or iterations only.
        processes (int, optional): Number of processes of the run.
    """

    metrics: Dict[str, float]
    source: Optional[str]
    by_epoch: Optional[bool]
    processes: Optional[int]


class Model(NamedTuple):
    """A published model and its known properties; ``None`` if unknown.

    Attributes:
        stripped (Stripped): The weights and their meta.
        network (str): Network and variant as text, by the names of the weights.
        collection (str): The collection of its network in metafiles, without the task.
        task (str): ``'classification'``, ``'detection'`` or ``'segmentation'``.
        config (str): Path of the config, from ``configs/`` on if it is in such a folder.
        training_data (str), validation_data (str): Data set and split as text.
        dataset (str): The name of the validation's data set for metafiles.
        batch_size (int): Images per step, of all processes.
        complexity (Complexity): Parameters and multiply-adds.
        trained_at (str), published_at (str): Commits of this project.
        run (Run): Facts from the logs.
        scope (str): The ``default_scope`` of the config, if it is that of another library than the task's.
    """

    stripped: Stripped
    network: Optional[str]
    collection: Optional[str]
    task: Optional[str]
    config: Optional[str]
    training_data: Optional[str]
    validation_data: Optional[str]
    dataset: Optional[str]
    batch_size: Optional[int]
    complexity: Optional[Complexity]
    trained_at: Optional[str]
    published_at: Optional[str]
    run: Run
    scope: Optional[str] = None


def describe(
    stripped: Stripped,
    source: str,
    work_dir: Optional[str] = None,
    cfg: Optional[Config] = None,
    complexity: Optional[Complexity] = None,
) -> Model:
    """Collect the known properties of a model.

    Args:
        stripped (Stripped): Content of ``source`` for publication.
        source (str): The checkpoint.
        work_dir (str, optional): Work directory of the run, with its logs. Default: the folder of ``source``.
        cfg (Config, optional): The training config, with ``filename``.
        complexity (Complexity, optional): Complexity of the model of ``cfg``.
    """
    run = read_run(work_dir or osp.dirname(source) or '.', stripped.meta)
    if not stripped.validated:
        run = run._replace(metrics={}, source=None)
    network = collection = None
    try:
        found = recognize({'state_dict': stripped.state_dict}, source)
        collection, network = collection_of(found.network), f'{found.network.__name__} {found.arch}'
    except CheckpointError:  # a network of the libraries
        if cfg is not None:
            network = type_name(cfg.model.get('backbone', cfg.model))
    train, validation = (_dataset(cfg, name) for name in ('train_dataloader', 'val_dataloader'))
    classes = _classes(stripped.meta)
    return Model(
        stripped,
        network,
        collection,
        None if cfg is None else task_or_library(cfg),
        None if cfg is None else _config_path(cfg.filename),
        _as_text(train, classes),
        _as_text(validation, classes),
        _name(validation, classes),
        _batch_size(cfg, run),
        complexity,
        _trained_at(stripped.meta),
        _published_at(),
        run,
        None if cfg is None or cfg.default_scope in TASKS else cfg.default_scope,
    )


def read_run(folder: str, meta: dict) -> Run:
    """Read the logs that MMEngine wrote in a work directory, for the run that wrote a checkpoint.

    Args:
        folder (str): The work directory.
        meta (dict): ``meta`` of the checkpoint: ``experiment_name`` ends in the name of the run's own folder, and
            ``epoch`` and ``iter`` tell when the checkpoint was written.
    """
    unknown = Run({}, None, None, None)
    stamp = re.search(r'\d{8}_\d{6}$', str(meta.get('experiment_name', '')))
    if stamp is None:
        return unknown
    logs = Path(folder) / stamp.group()
    scalars = logs / 'vis_data' / 'scalars.json'
    if not scalars.is_file():
        return unknown
    rows = []
    for line in scalars.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a run that was killed may leave half a line
        if isinstance(row, dict):
            rows.append(row)
    training = [row for row in rows if 'iter' in row]
    by_epoch = any('epoch' in row for row in training) if training else None
    metrics: Dict[str, float] = {}
    iteration = meta.get('iter') if isinstance(meta.get('iter'), int) else 0
    for row in rows:
        if metrics and by_epoch and 'iter' in row and row['iter'] <= iteration:
            metrics = {}  # training continued before the checkpoint was written, within the next epoch
        elif (
            'iter' not in row and by_epoch is not None and row.get('step') == meta.get('epoch' if by_epoch else 'iter')
        ):
            metrics = {
                key: value
                for key, value in row.items()
                if key not in ('step', 'time', 'data_time') and isinstance(value, (int, float))
            }
    return Run(
        metrics,
        f'{logs.name}/vis_data/scalars.json' if metrics else None,
        by_epoch,
        _processes(logs / f'{logs.name}.log'),
    )


def _processes(log: Path) -> Optional[int]:
    """Return the number of processes of a run, which MMEngine's log calls the number of GPUs, even on a CPU."""
    text = log.read_text(encoding='utf-8', errors='replace') if log.is_file() else ''
    count = re.search(r'GPU number: (\d+)', text)
    return int(count.group(1)) if count else None


def _dataset(cfg: Optional[Config], loader: str) -> Optional[dict]:
    """Return the only data set behind a loader; ``None`` for none, or several."""
    dataset = ((cfg or {}).get(loader) or {}).get('dataset')
    found = list(leaf_datasets(dataset)) if dataset else []
    return found[0] if len(found) == 1 and found[0].get('data_root') else None


def _classes(meta: dict) -> Optional[Sequence[Any]]:
    """Return the names of the classes in a checkpoint; ``None`` if it does not contain them."""
    dataset = meta.get('dataset_meta')
    found = dataset.get('classes') if isinstance(dataset, dict) else meta.get('CLASSES')
    return found if isinstance(found, (list, tuple)) else None


def _name(dataset: Optional[dict], trained: Optional[Sequence[Any]] = None) -> Optional[str]:
    """Return a data set's name for metafiles; ``trained``: the checkpoint's classes, for data sets that find theirs."""
    if dataset is None:
        return None
    folder = osp.basename(osp.normpath(dataset['data_root']))
    if folder not in DATASETS:
        return folder
    name, number = DATASETS[folder]
    classes = (dataset.get('metainfo') or {}).get('classes') or trained
    if classes is None or not isinstance(classes, str) and len(classes) == number:
        return name
    return f'{folder} with own classes' if isinstance(classes, str) else f'{folder} with {len(classes)} classes'


def _as_text(dataset: Optional[dict], trained: Optional[Sequence[Any]] = None) -> Optional[str]:
    """Return a data set's name (see :func:`_name`), type and split as text."""
    if dataset is None:
        return None
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = (
        type_name(dataset),
        _within(dataset.get('ann_file'), dataset['data_root']),
        ', '.join(filter(None, (_within(each, dataset['data_root']) for each in prefixes))),
    )
    return f'{_name(dataset, trained)} ({"; ".join(filter(None, parts))})'


def _within(path: Any, root: str) -> str:
    """Return a path relative to the data set, or only its last part: paths on this machine must not be published."""
    path = str(path or '')
    if not osp.isabs(path):
        return path
    relative = osp.relpath(path, root)
    return osp.basename(osp.normpath(path)) if relative.startswith(osp.pardir) else relative


def _config_path(path: str) -> str:
    parts = Path(path).resolve().parts
    return '/'.join(parts[len(parts) - 1 - parts[::-1].index('configs') :]) if 'configs' in parts else parts[-1]


def _batch_size(cfg: Optional[Config], run: Run) -> Optional[int]:
    if cfg is None or run.processes is None or not cfg.get('train_dataloader'):
        return None
    each = cfg.train_dataloader.get('batch_size')
    return each and each * run.processes * cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)


def _git(*arguments: str) -> Optional[str]:
    """Return git's answer about the checkout that this package is in; ``None`` if it is in none."""
    package = Path(__file__).parents[1]
    try:
        # An installed package may be an untracked folder inside another repository.
        for command in (['ls-files', '--error-unmatch', 'version.py'], arguments):
            done = subprocess.run(['git', '-C', str(package), *command], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(meta: dict) -> Optional[str]:
    """Return MMEngine's version, without the commit that it adds."""
    return re.sub(r'([0-9a-f]{40}|unknown)$', '', str(meta.get('mmengine_version', ''))) or None


def _trained_at(meta: dict) -> Optional[str]:
    """Return the commit of the directory that MMEngine ran in, from its version, if this project contains it."""
    found = re.search(r'[0-9a-f]{40}$', str(meta.get('mmengine_version', '')))
    return found.group() if found and _git('cat-file', '-e', f'{found.group()}^{{commit}}') is not None else None


def _published_at() -> Optional[str]:
    commit = _git('rev-parse', 'HEAD')
    return commit and commit + (' with changes' if _git('status', '--porcelain', '--untracked-files=no') else '')


def results(model: Model) -> List[dict]:
    """Return the metrics in percent, as metafiles have them: a dict for each task."""
    tasks: Dict[str, Dict[str, float]] = {}
    for key, (task, name, factor) in METRICS.items():
        value = model.run.metrics.get(key, -1)
        if value >= 0:
            tasks.setdefault(task, {})[name] = round(value * factor, 2)
    return [
        {'Task': task, 'Dataset': model.dataset or NOT_KNOWN, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


def write_entry(model: Model) -> str:
    """Return the model's entry for the ``metafile.yml`` of its config's folder, without a link to a download.

    ``model.config`` must be known.
    """
    import yaml

    assert model.config is not None

    class Indented(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
            return super().increase_indent(flow, False)

    entry: Dict[str, Any] = {'Name': osp.splitext(osp.basename(model.config))[0]}
    if model.collection:
        suffix = '' if model.task == 'classification' else f' ({model.task})'
        entry['In Collection'] = model.collection + suffix
    entry['Config'] = model.config
    length = _length(model)
    metadata = {
        'Epochs': length.get('epoch'),
        'Iterations': None if 'epoch' in length else length.get('iteration'),
        'Batch Size': model.batch_size,
        'Parameters': model.complexity and model.complexity.params,
        'FLOPs': model.complexity and model.complexity.flops,
    }
    entry['Metadata'] = {key: value for key, value in metadata.items() if value is not None}
    if results(model):
        entry['Results'] = results(model)
    text = yaml.dump([entry], Dumper=Indented, sort_keys=False, allow_unicode=True)
    return textwrap.indent(text, '  ')


def _length(model: Model) -> Dict[str, int]:
    """Return the length of the training, as far as the run's logs tell."""
    meta, by_epoch = model.stripped.meta, model.run.by_epoch
    names = {'epoch': 'epoch', 'iter': 'iteration'} if by_epoch else {'iter': 'iteration'} if by_epoch is False else {}
    return {name: meta[key] for key, name in names.items() if isinstance(meta.get(key), int)}


def write_card(model: Model, name: str, files: Dict[str, bytes]) -> str:
    """Return the model card, in Markdown.

    Args:
        model (Model): Result of :func:`describe`.
        name (str): Title.
        files (dict[str, bytes]): The published files, by name.
    """
    meta, found = model.stripped.meta, model.complexity
    numbers = (
        f'{sum(value.numel() for value in model.stripped.state_dict.values()):,} numbers in the file, '
        'counts and statistics of norms among them'
    )
    counted = found and f'{found.flops / 1e9:.3f} G for an input of 3x{found.shape[0]}x{found.shape[1]}'
    length = ', '.join(f'{key} {value}' for key, value in _length(model).items())
    classes = _classes(meta)
    rows = [
        ('network', model.network),
        ('task', model.task),
        ('config', model.config and f'`{model.config}`'),
        ('trained on', model.training_data),
        ('trained until', length or None),
        ('images per step', model.batch_size),
        ('weights', model.stripped.weights),
        ('parameters', f'{found.params:,}' if found else f'{NOT_KNOWN} without the config; {numbers}'),
        ('multiply-adds', counted),
        ('commit that trained it', model.trained_at),
        ('commit that published it', model.published_at),
        ('MMEngine', _version(meta)),
        ('published with', f'fcvit_mm {__version__}'),
        ('licence of the weights', None),
    ]
    lines = [
        f'# {_cell(name)}',
        '',
        *_table(('', ''), [(key, NOT_KNOWN if value is None else value) for key, value in rows]),
        '',
        '## Results',
        '',
    ]
    known = {key for key in model.run.metrics if key in METRICS}
    shown = [
        (result['Task'], metric, f'{value:.2f} %')
        for result in results(model)
        for metric, value in result['Metrics'].items()
    ]
    # COCO's -1 means that there are no such objects.
    shown += [('', key, f'{value:.4g}') for key, value in model.run.metrics.items() if key not in known and value != -1]
    if shown:
        lines += [
            f'Measured by the run itself on its validation data, {_cell(model.validation_data or NOT_KNOWN)}, '
            f'with these weights ({length}; {_cell(model.run.source)}).',
            '',
            *_table(('task', 'metric', 'value'), shown),
        ]
    else:
        lines += ["Not known: the run's log of a validation with these weights was not found."]
    lines += ['', '## Classes', '']
    if classes:
        lines += [f'{len(classes)}: ' + ', '.join(map(_cell, classes)) + '.']
    else:
        lines += ['Not known.']
    lines += [
        '',
        '## Files',
        '',
        *_table(
            ('file', 'bytes', 'SHA-256'),
            [(f'`{file}`', f'{len(data):,}', f'`{digest(data)}`') for file, data in files.items()],
        ),
    ]
    lines += ['', 'Weights and plain data only: `torch.load(weights_only=True)` reads the `.pth` file.']
    if model.config and model.task in USAGE:
        checkpoint, language, code = next(iter(files)), 'python', list(USAGE[model.task])
        scope = f', scope={model.scope!r}' if model.scope else ''
        code[1:] = ['', code[1].format(config=model.config, checkpoint=checkpoint, scope=scope)]
        if model.scope and model.task != 'detection':  # these inferencers know their own library only
            language = 'bash'
            code = [f'python tools/visualize.py {model.config} {checkpoint} image.jpg --out-dir drawn']
        lines += ['', '## Use', '', f'```{language}', *code, '```']
    return '\n'.join(lines) + '\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> List[str]:
    return [f'| {" | ".join(map(_cell, row))} |' for row in (head, ['---'] * len(head), *rows)]


def _cell(value: Any) -> str:
    """Return text from a checkpoint or config as one line, with Markdown escaped."""
    text = re.sub(r'\s+', ' ', str(value))
    return re.sub(r'([|<>\[\]\\*])', r'\\\1', text)[:300]
