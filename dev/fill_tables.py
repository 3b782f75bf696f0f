#!/usr/bin/env python
"""Write the tables of models in README.md, configs/*/README.md and docs, and the models in configs/*/metafile.yml.

Classifiers are rows of fcvit_mm/models/variants.py, published weights of fcvit_mm/checkpoints/published.py; detectors
and segmentors are entries of their folder's metafile.yml, which are written by hand except for Weights. With --check
nothing is written; what is out of date is named, and the exit status is 1.
"""

import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Sequence

from mmengine.config import Config
from mmengine.fileio import load

from fcvit_mm.checkpoints import PUBLISHED
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_atomic
from fcvit_mm.models.variants import VARIANTS, Variant

ROOT = Path(__file__).resolve().parents[1]
DENSE = ('detection', 'segmentation')
NONE = '–'
#: Line before the models in a metafile.
MODELS = '\nModels:\n'


class Table(NamedTuple):
    """A part of a file that is written here, between ``<!-- table NAME -->`` and ``<!-- end of table -->``.

    In a metafile the part is all that follows the line ``Models:``.

    Attributes:
        file (str): Path from the root of the checkout.
        name (str): The table's name; empty in a metafile.
        render (callable): The root to the text.
    """

    file: str
    name: str
    render: Callable[[Path], str]


def main(argv: Sequence[str] = (), root: Path = ROOT) -> None:
    """Fill the tables in, or check them.

    Raises:
        UserError: A file lacks a marker; with ``--check``, a table is out of date.
    """
    parser = command_parser(__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing and list the files that are out of date')
    check = parser.parse_args(argv).check
    texts: Dict[str, str] = {}
    for table in TABLES:
        text = texts.setdefault(table.file, (root / table.file).read_text(encoding='utf-8'))
        texts[table.file] = fill(text, table, root)
    stale = [name for name, text in texts.items() if text != (root / name).read_text(encoding='utf-8')]
    if check and stale:
        raise UserError(f'tables are out of date in {", ".join(stale)}: run python dev/fill_tables.py to update them')
    for name in stale:
        write_atomic(root / name, texts[name].encode())
    print(f'{len(TABLES)} tables are up to date' + (f', written: {", ".join(stale)}' if stale else ''))


def fill(text: str, table: Table, root: Path) -> str:
    """Return a file's text with a table filled in.

    Raises:
        UserError: The marker of the table is missing.
    """
    begin, end = (f'<!-- table {table.name} -->\n\n', '\n<!-- end of table -->\n') if table.name else (MODELS, '')
    before, marker, after = text.partition(begin)
    content, closing, rest = after.partition(end) if end else (after, '', '')
    if not marker or closing != end:
        raise UserError(f'{table.file} has no {begin.strip()!r}{f" closed by {end.strip()!r}" if end else ""}: add it')
    return f'{before}{begin}{table.render(root)}{closing}{rest}'


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' if line[0] != '---' else f'|{"|".join(line)}|\n' for line in lines)


def giga(value: int, digits: int) -> str:
    """Return a number of multiply-adds as text."""
    return f'{value / 1e9:.{digits}f} G'


# Classifiers: rows of VARIANTS.


def classifiers(collection: str) -> List[Variant]:
    """Return this project's variants of a collection that have a config."""
    return [row for row in VARIANTS.values() if row.collection == collection and row.config is not None]


def cells(variant: Variant) -> Dict[str, str]:
    """Return the cells of a classifier by column."""
    return {
        'config': f'[{variant.hub_name}]({variant.hub_name}.py)',
        'model': f'`{variant.name}`',
        'crop': f'{variant.crop:g}',
        'top-1, published': str(variant.published.get('top1', NONE)),
        'parameters, measured': NONE if variant.parameters is None else f'{variant.parameters:,}',
        'multiply-adds, measured': NONE if variant.flops is None else giga(variant.flops, 2),
    }


def classifier_table(collections: Sequence[str], first: str, epochs: bool = False) -> Callable[[Path], str]:
    """Build a function that renders the table of some collections.

    Args:
        collections (Sequence[str]): The collections.
        first (str): The first column, ``'config'`` or ``'model'``.
        epochs (bool): Whether there is a column of epochs.
    """
    columns = [first, 'crop', 'top-1, published', 'parameters, measured', 'multiply-adds, measured']

    def render(root: Path) -> str:
        rows = []
        for variant in (variant for name in collections for variant in classifiers(name)):
            found = cells(variant)
            rows.append([found[column] for column in columns])
            if epochs:
                rows[-1].insert(1, str(schedule(root, variant)['Epochs']))
        return markdown([first, 'epochs', *columns[1:]] if epochs else columns, rows)

    return render


def schedule(root: Path, variant: Variant) -> Dict[str, int]:
    """Return the training settings in a classifier's config, under the names of metafiles."""
    return read_schedule((root / str(variant.config)).resolve())


@lru_cache(maxsize=None)
def read_schedule(config: Path) -> Dict[str, int]:
    """Return the schedule of a config."""
    cfg = Config.fromfile(config)
    return {'Epochs': cfg.train_cfg.max_epochs, 'Batch Size': cfg.auto_scale_lr.base_batch_size}


def classifier_entries(root: Path) -> str:
    """Return the models of the classifiers' metafile."""
    return ''.join(entry(root, variant) for variant in VARIANTS.values() if variant.config is not None)


def entry(root: Path, variant: Variant) -> str:
    """Return a classifier's entry in the metafile."""
    metadata = {**schedule(root, variant), 'Parameters': variant.parameters, 'FLOPs': variant.flops}
    lines = [
        f'  - Name: {variant.hub_name}',
        f'    In Collection: {variant.collection}',
        f'    Config: {variant.config}',
        *weights_line(str(variant.config)),
        '    Metadata:',
        *(f'      {key}: {value}' for key, value in metadata.items()),
    ]
    if variant.published:
        lines += [
            '    Results:',
            '      - Task: Image Classification',
            '        Dataset: ImageNet-1k',
            '        Metrics:',
            *(f'          {key}: {value}' for key, value in variant.metrics.items()),
        ]
    return '\n'.join(lines) + '\n'


def weights_line(config: str) -> List[str]:
    """Return the line of a metafile that names the published weights of a config, if they have an address."""
    rows = (row for row in PUBLISHED.values() if row.config == config and row.address)
    return [f'    Weights: {row.address}{"" if row.confirmed else "  # file name not confirmed"}' for row in rows]


# Detectors and segmentors: entries of metafiles.


def dense_entries(task: str) -> Callable[[Path], str]:
    """Build a function that renders the models of a folder's metafile: the present entries, with their weights."""

    def render(root: Path) -> str:
        text = (root / 'configs' / task / 'metafile.yml').read_text(encoding='utf-8').partition(MODELS)[2]
        return re.sub(
            r'^(    Config: (\S+)\n)(    Weights: .*\n)?',
            lambda found: found[1] + ''.join(f'{line}\n' for line in weights_line(found[2])),
            text,
            flags=re.MULTILINE,
        )

    return render


def entries(root: Path, task: str) -> List[Dict[str, Any]]:
    """Return the models of a folder's metafile."""
    return list(load(root / 'configs' / task / 'metafile.yml')['Models'])


def metrics(model: Dict[str, Any]) -> Dict[str, float]:
    """Return the published figures of an entry."""
    return {key: value for result in model.get('Results', ()) for key, value in result['Metrics'].items()}


def duration(metadata: Dict[str, int]) -> str:
    """Return a training's length as papers name it: ``'1x'``, ``'3x, multi-scale'``, ``'160k'``."""
    if 'Iterations' in metadata:
        return f'{metadata["Iterations"] // 1000}k'
    return '1x' if metadata['Epochs'] == 12 else f'{metadata["Epochs"] // 12}x, multi-scale'


def dense_table(task: str, collection: str) -> Callable[[Path], str]:
    """Build a function that renders the table of a collection of detectors or segmentors."""

    def render(root: Path) -> str:
        models = [row for row in entries(root, task) if row['In Collection'] == f'{collection} ({task})']
        published = [metrics(model) for model in models]
        groups = [('box AP', 'box AP50', 'box AP75'), ('mask AP', 'mask AP50', 'mask AP75')]
        groups = groups if task == 'detection' else [('mIoU',)]
        # A column has the metrics that are published for any of its models, at least the first.
        groups = [
            tuple(key for key in group if key == group[0] or any(key in row for row in published)) for group in groups
        ]
        header = ['config', 'schedule' if task == 'detection' else 'iterations']
        header += [f'{group[0]}{"".join(f", {key.split()[1]}" for key in group[1:])}, published' for group in groups]
        rows = []
        for model, figures in zip(models, published):
            name, metadata = model['Name'], model['Metadata']
            rows.append(
                [
                    f'[{name}]({name}.py)',
                    duration(metadata),
                    *(', '.join(str(figures[key]) for key in group if key in figures) or NONE for group in groups),
                    f'{metadata["Parameters"]:,}',
                    giga(metadata['FLOPs'], 1),
                ]
            )
        return markdown([*header, 'parameters, measured', 'multiply-adds, measured'], rows)

    return render


def published_dense_table(root: Path) -> str:
    """Return the table of all detectors and segmentors for which something is published."""
    rows = []
    for task in DENSE:
        for model in entries(root, task):
            figures = ', '.join(f'{value} {key}' for key, value in metrics(model).items() if key in MAIN_METRICS)
            if figures:
                rows.append([f'[{model["Name"]}]({model["Config"]})', duration(model['Metadata']), figures])
    return markdown(['config', 'schedule', 'published'], rows)


def weights_table(root: Path) -> str:
    """Return the table of published weights."""
    rows = []
    for row in PUBLISHED.values():
        name = f'`{row.name}`' if row.confirmed else f'*`{row.name}`*'
        config = Path(row.config)
        figures = ', '.join(f'{value} {SHORT[key]}' for key, value in row.metrics.items() if key in SHORT)
        how = f'[download]({row.address})' if row.address else f'[by hand]({row.page})'
        rows.append([name, f'[{config.stem}](../{config})', figures or NONE, f'`{row.file}`', how])
    return markdown(['name', 'config', 'published', 'file', 'download'], rows)


MAIN_METRICS = ('box AP', 'mask AP', 'mIoU')
#: Metrics in the table of weights, and what they are called there.
SHORT = {'Top 1 Accuracy': 'top-1', **{key: key for key in MAIN_METRICS}}
TRANSFORMERS = 'AttnScale and FeatScale'
TABLES = (
    Table('configs/classification/metafile.yml', '', classifier_entries),
    *(Table(f'configs/{task}/metafile.yml', '', dense_entries(task)) for task in DENSE),
    Table('configs/classification/README.md', 'FCViT', classifier_table(['FCViT'], 'config')),
    Table('configs/classification/README.md', 'DWNet', classifier_table(['DWNet'], 'config')),
    Table('configs/classification/README.md', TRANSFORMERS, classifier_table([TRANSFORMERS], 'config', epochs=True)),
    *(
        Table(f'configs/{task}/README.md', collection, dense_table(task, collection))
        for task in DENSE
        for collection in ('FCViT', 'DWNet', TRANSFORMERS)
    ),
    Table('README.md', 'classifiers', classifier_table(['FCViT', 'DWNet'], 'model')),
    Table('README.md', 'detectors and segmentors', published_dense_table),
    Table('docs/weights.md', 'published weights', weights_table),
)


if __name__ == '__main__':
    run_command(lambda: main(sys.argv[1:]))
