"""Count a model's parameters and multiply-adds, part by part."""

import argparse
from typing import TYPE_CHECKING, Optional, Sequence

from command_line import add_config_options, check_config, command_parser, run_command

if TYPE_CHECKING:
    from fcvit_mm.apis.count import Complexity


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a model')
    parser.add_argument(
        '--shape',
        '--size',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width of the input, or one number for both (default: 224 for classifiers, 800 1280 for '
        'detectors, 512 for segmentors; required for models of other libraries)',
    )
    add_config_options(parser, 'model.backbone.arch=b24')
    return parser.parse_args(argv)


def format_table(found: 'Complexity') -> str:
    """Return the table that the command prints: one line for each part, and the total."""
    from fcvit_mm.apis.count import PartComplexity

    rest = PartComplexity(
        'other',
        found.params - sum(part.params for part in found.parts),
        found.flops - sum(part.flops for part in found.parts),
    )
    parts = [*found.parts, *([rest] if rest.params or rest.flops else [])]
    width = max(len('output norms'), *(len(part.name) for part in parts))
    lines = [f'{"":{width}}  {"parameters":>12}  {"multiply-adds":>14}']
    lines += [f'{part.name:{width}}  {part.params:>12,}  {part.flops / 1e9:>12.4f} G' for part in parts]
    lines += ['-' * len(lines[0])]
    lines += [f'{"total":{width}}  {found.params:>12,}  {found.flops / 1e9:>12.4f} G']
    return '\n'.join(lines)


def main(args: argparse.Namespace) -> None:
    check_config(args.config)
    from mmengine.logging import MMLogger

    from fcvit_mm.apis.count import CONVENTION, measure
    from fcvit_mm.engine.config import load_config

    MMLogger.get_instance('mmengine', log_level='ERROR')
    found = measure(load_config(args.config, args.cfg_options), args.shape or ())
    size = f'{found.channels}x{found.shape[0]}x{found.shape[1]}'
    print(f'{args.config}, input {size}\n\n{format_table(found)}\n\n{CONVENTION}')
    if any(part.name.endswith('roi_head') for part in found.parts):
        print('RoI heads were counted on the proposals of the model with random weights, mask heads on its detections.')
    if any(part.name == 'auxiliary_head' for part in found.parts):
        print('The auxiliary head is used in training only: 0 multiply-adds.')


if __name__ == '__main__':
    run_command(main, parse_args)
