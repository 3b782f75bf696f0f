"""Download published weights by name, check them, and print their SHA-256; without a name, list all weights.

For example, on a machine with internet, for machines without:

    python tools/download.py dwnet_tiny cascade_mask_rcnn_dwnet_tiny --to /data/weights
    export FCVIT_MM_WEIGHTS=/data/weights

An interrupted download is resumed. Files that exist are checked and not downloaded again.
"""

import argparse
import os
from typing import TYPE_CHECKING, List, Optional, Sequence

from command_line import UserError, add_import_option, command_parser, run_command

if TYPE_CHECKING:
    from fcvit_mm.checkpoints import PublishedWeights


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        'names', nargs='*', metavar='NAME', help='published weights to download (default: list the names)'
    )
    parser.add_argument(
        '--to',
        metavar='DIR',
        help="destination folder (default: the folder where a file is found, otherwise torch.hub's checkpoint folder)",
    )
    add_import_option(parser)
    return parser.parse_args(argv)


def describe(weights: 'PublishedWeights') -> List[str]:
    """Return the cells of a row of the list."""
    figures = ', '.join(f'{key} {value}' for key, value in weights.metrics.items()) or '-'
    return [weights.name, weights.task, weights.config, figures, 'downloads' if weights.address else 'by hand']


def list_weights() -> str:
    """Return all published weights as a table."""
    from fcvit_mm.checkpoints import PUBLISHED

    rows = [['name', 'task', 'config', 'published', 'how'], *map(describe, PUBLISHED.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.checkpoints import fetch_published

    if not args.names:
        if args.to is not None:
            raise UserError(f'--to {args.to} has no effect without a name: add the names of weights to download')
        print(list_weights())
        return
    problems = []
    for name in args.names:
        try:
            found = fetch_published(name, args.to)
        except UserError as error:
            problems.append(str(error))
            continue
        note = '' if found.remembered else f'  (not remembered: {os.path.dirname(found.path)} cannot be written)'
        print(f'{name}: {found.how}\n  {found.path}  {found.size} bytes\n  SHA-256 {found.sha256}{note}', flush=True)
    if problems:
        raise UserError(
            problems[0] if len(args.names) == 1 else '\n  - '.join(['not all weights are available:', *problems])
        )


if __name__ == '__main__':
    run_command(main, parse_args)
