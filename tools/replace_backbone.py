"""Put a network of this project into a config of mmdet, mmseg or another library, in place of its backbone.

Prints the changes, to put after _base_ in your own config; --out writes the complete config. Before that, the new model
takes a training step on random images on the CPU.
"""

import argparse
import os.path as osp
from typing import Optional, Sequence

from command_line import UserError, add_import_option, add_key_values, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        'config',
        help='config of an installed library, such as mmdet::FOLDER/NAME or mmpose::FOLDER/NAME, or a config file',
    )
    parser.add_argument('network', help='network of this project, such as fcvit_b12')
    parser.add_argument('--pretrained', metavar='CHECKPOINT', help='checkpoint that initializes the backbone')
    parser.add_argument('--out', metavar='FILE', help='write the complete config to this .py file')
    add_key_values(parser, '--options', 'further arguments of the backbone, such as drop_path_rate=0.1 with_cp=True')
    add_import_option(parser)
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith('.py'):
        raise UserError(f'--out is {args.out}, expected a file name ending in .py')
    if args.out and osp.realpath(args.out) == osp.realpath(args.config):
        raise UserError(f'--out is {args.out}, which is read and would be replaced: give another name')
    return args


def main(args: argparse.Namespace) -> None:
    from mmengine.config import Config
    from mmengine.logging import MMLogger

    from fcvit_mm.apis.config_changes import fragment
    from fcvit_mm.apis.stock import read_stock, replace_backbone
    from fcvit_mm.files import check_writable, write_atomic

    MMLogger.get_instance('mmengine', log_level='ERROR')
    if args.out:
        check_writable(args.out)
    stock = read_stock(args.config)
    if args.out and Config._is_lazy_import(stock.filename):
        raise UserError(
            f'--out: {args.config} is a pure-Python config (read_base), whose types MMEngine writes in a form that '
            'mmdet does not accept: omit --out, and put the printed changes into the config'
        )
    cfg = replace_backbone(stock, args.network, args.pretrained, args.options)
    print(f'# {args.config} with {args.network}\n{fragment(stock, cfg)}')
    if args.out:
        write_atomic(args.out, cfg.pretty_text.encode())
        print(f'# The complete config was written to {args.out}')


if __name__ == '__main__':
    run_command(main, parse_args)
