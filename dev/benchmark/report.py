"""Results of a run as JSON, a Markdown table and a plot."""

import io
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from measure import MIB, ratio, spread

from fcvit_mm.files import write_all_atomic

#: Okabe and Ito's colors, which color-blind people can tell apart.
COLORS = {'ours': '#0072B2', 'reference': '#E69F00', 'peer': '#999999'}
COLOR_NAMES = {'ours': 'ours', 'reference': 'reference implementations', 'peer': 'peers'}
MISSING = '-'


def summarize(rows: List[Dict[str, Any]], batch: int, baselines: List[str]) -> None:
    """Add to each row, from its raw ``times`` (seconds per call): spread, rate, ratios, shares of the ceilings.

    Args:
        rows (list[dict]): Rows with ``label`` and ``times``; where known, ``multiply_adds`` and ``traffic`` of one
            image and the ceilings ``matrix_ceiling`` and ``bandwidth_ceiling`` to compare them with.
        batch (int): Images per call.
        baselines (list[str]): Labels of the rows that all rows are compared with.
    """
    times = {row['label']: row['times'] for row in rows}
    for row in rows:
        median, low, high = spread(row['times'])
        row['ms_per_image'] = dict(median=median / batch * 1e3, low=low / batch * 1e3, high=high / batch * 1e3)
        row['images_per_second'] = batch / median
        row['times_faster_than'] = {}
        for label in baselines:
            found = ratio(row['times'], times[label])
            row['times_faster_than'][label] = dict(
                median_of_ratios=found.rounds.median,
                low=found.rounds.low,
                high=found.rounds.high,
                ratio_of_medians=found.medians,
            )
        for work, ceiling, share in (
            ('multiply_adds', 'matrix_ceiling', 'matrix_share'),
            ('traffic', 'bandwidth_ceiling', 'traffic_share'),
        ):
            if row.get(work) and row.get(ceiling):
                row[share] = row[work] * batch / median / row[ceiling]


def _columns(baselines: List[str]) -> List[Tuple[str, Callable[[Dict[str, Any]], Optional[str]]]]:
    """Return the title of each column, and the function that returns the cell of a row."""

    def number(key: str, text: str, unit: float = 1) -> Callable[[Dict[str, Any]], Optional[str]]:
        return lambda row: None if row.get(key) is None else text.format(row[key] / unit)

    def faster(label: str) -> Callable[[Dict[str, Any]], str]:
        def cell(row: Dict[str, Any]) -> str:
            found = row['times_faster_than'][label]
            return (
                f'{found["median_of_ratios"]:.2f} ({found["low"]:.2f} to {found["high"]:.2f}); '
                f'{found["ratio_of_medians"]:.2f}'
            )

        return cell

    return [
        ('network', lambda row: row['label']),
        ('dtype', lambda row: row['dtype']),
        ('layout', lambda row: row.get('layout')),
        ('ms/image', lambda row: '{median:.2f} ({low:.2f} to {high:.2f})'.format(**row['ms_per_image'])),
        ('images/s', number('images_per_second', '{:.1f}')),
        *((f'times faster than {label}', faster(label)) for label in baselines),
        ('peak, MiB', number('peak_growth', '{:.0f}', MIB)),
        ('parameters, M', number('params', '{:.2f}', 1e6)),
        ('multiply-adds, G', number('multiply_adds', '{:.2f}', 1e9)),
        ('of matrix ceiling', number('matrix_share', '{:.0%}')),
        ('traffic, MB/image', number('traffic', '{:.0f}', 1e6)),
        ('of copy ceiling', number('traffic_share', '{:.0%}')),
    ]


def format_table(found: Dict[str, Any]) -> str:
    """Return the Markdown table, with the machine above it and the meaning of the columns below."""
    machine, versions, code = found['machine'], found['versions'], found['code']
    columns = [(title, [cell(row) for row in found['rows']]) for title, cell in _columns(found['baselines'])]
    columns = [(title, cells) for title, cells in columns if any(cell is not None for cell in cells)]
    lines = [
        f'{found["title"]}.',
        '',
        f'{machine["gpu"] or machine["cpu"]}, {machine["threads"]} CPU threads ({machine["instructions"]}); '
        f'torch {versions["torch"]}, timm {versions["timm"]}; commit {(code["commit"] or "unknown")[:10]}'
        f'{" with changes" if code["modified"] else ""}; {found["date"]}.',
        '',
        f'`{found["command"]}`',
        '',
        '| ' + ' | '.join(title for title, _ in columns) + ' |',
        '|' + '---|' * len(columns),
    ]
    for i in range(len(found['rows'])):
        lines.append('| ' + ' | '.join(MISSING if cells[i] is None else cells[i] for _, cells in columns) + ' |')
    lines += ['', *(f'- {note}' for note in _notes(found, [title for title, _ in columns]))]
    return '\n'.join(lines) + '\n'


def _notes(found: Dict[str, Any], titles: List[str]) -> List[str]:
    notes = [
        f'Medians of {found["rounds"]} rounds in turn, in brackets the quartiles. Random weights.',
        'Times faster: median (and quartiles) of the ratios within the rounds; then the ratio of the medians.',
    ]
    if 'peak, MiB' in titles:
        notes.append(
            'Peak: memory that one call needs beyond weights, inputs and optimizer state'
            + ('.' if found['machine']['gpu'] else ', by the resident size of a process of its own.')
        )
    ceilings = found.get('ceilings')
    if ceilings:
        products = '; '.join(
            f'{dtype} {rate / 1e9:.0f} G multiply-adds/s ({ceilings["shapes"][dtype]})'
            for dtype, rate in ceilings['multiply_adds'].items()
        )
        notes.append(
            f'Ceilings measured in this run: {products}; copy {ceilings["bandwidth"] / 1e9:.1f} GB/s read and written.'
        )
    if 'traffic, MB/image' in titles:
        notes.append(
            "Traffic: what the reference implementation's operations read and write, each once. More than 100% of "
            'the copy ceiling means that fused operations and caches spared that much.'
        )
    if found.get('multiply_adds_factor', 1) != 1:
        notes.append(f'Multiply-adds of a step: {found["multiply_adds_factor"]} times those of the forward pass.')
    notes += found.get('notes', [])
    return notes


def draw(found: Dict[str, Any]) -> bytes:
    """Return a PNG image with one bar per row: milliseconds per image, with the quartiles."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = found['rows'][::-1]  # the first on top
    medians = [row['ms_per_image']['median'] for row in rows]
    spreads = [
        [row['ms_per_image']['median'] - row['ms_per_image']['low'] for row in rows],
        [row['ms_per_image']['high'] - row['ms_per_image']['median'] for row in rows],
    ]
    figure, axes = pyplot.subplots(figsize=(8, 1.3 + 0.42 * len(rows)), layout='constrained')
    axes.barh(
        range(len(rows)),
        medians,
        xerr=spreads,
        color=[COLORS[row['kind']] for row in rows],
        height=0.65,
        error_kw=dict(ecolor='black', capsize=3, linewidth=1),
    )
    for place, (row, median) in enumerate(zip(rows, medians)):
        axes.annotate(
            f'{median:.3g}',
            (row['ms_per_image']['high'], place),
            xytext=(6, 0),
            textcoords='offset points',
            va='center',
            fontsize=9,
        )
    names = [row['label'].split('@')[0] for row in rows]
    details = [', '.join(filter(None, (row['dtype'], row.get('layout')))) for row in rows]
    axes.set_yticks(range(len(rows)), [f'{name}\n{detail}' for name, detail in zip(names, details)], fontsize=8)
    axes.set_xlabel('ms per image (median; lines from first to third quartile)')
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    device = found['machine']['gpu'] or f'{found["machine"]["cpu"]}, {found["machine"]["threads"]} threads'
    figure.suptitle(f'{found["title"]}\n{device}', fontsize=10)
    kinds = [kind for kind in COLORS if any(row['kind'] == kind for row in rows)]
    if len(kinds) > 1:
        handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLORS[kind]) for kind in kinds]
        figure.legend(
            handles,
            [COLOR_NAMES[kind] for kind in kinds],
            loc='outside lower center',
            ncols=len(kinds),
            frameon=False,
            fontsize=9,
        )
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format='png')
    pyplot.close(figure)
    return image.getvalue()


def write_report(found: Dict[str, Any], out: Path) -> str:
    """Write ``results.json``, ``table.md`` and ``plot.png`` into a folder, all or none; returns the table."""
    table = format_table(found)
    files = {'results.json': (json.dumps(found, indent=1) + '\n').encode(), 'table.md': table.encode()}
    write_all_atomic({str(out / name): data for name, data in {**files, 'plot.png': draw(found)}.items()})
    return table
