"""Publish a trained model: weights and plain data only, the hash in the name, a model card, an entry for metafile.yml.

For example, into published/fcvit_b12-1a2b3c4d.pth and beside it .md and .yml:

    python tools/publish_model.py work_dirs/fcvit_b12_in1k/epoch_310.pth published/fcvit_b12.pth \\
        --config configs/classification/fcvit_b12_in1k.py
"""

import argparse
import os.path as osp
from typing import Optional, Sequence

from command_line import UserError, add_config_options, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a training run')
    parser.add_argument('out', help='file to write, without the hash; .pth is appended if missing')
    parser.add_argument(
        '--config', help='training config; needed for the complete model card and the metafile.yml entry'
    )
    parser.add_argument('--work-dir', help="work directory with the run's logs (default: the checkpoint's folder)")
    parser.add_argument(
        '--no-ema',
        action='store_true',
        help='publish the raw weights of a run with EMAHook instead of the averaged ones',
    )
    parser.add_argument('--safetensors', action='store_true', help='also write a .safetensors file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width at which multiply-adds are counted (default: as tools/get_flops.py)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite existing files')
    add_config_options(parser)
    args = parser.parse_args(argv)
    if not args.config and (args.cfg_options or args.shape):
        raise UserError('--cfg-options and --shape need --config: give the training config, or omit them')
    return args


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from fcvit_mm.apis.count import measure
    from fcvit_mm.apis.load import build_model
    from fcvit_mm.checkpoints import check_fits
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.errors import library_errors
    from fcvit_mm.publishing.model_card import describe, results, write_card, write_entry
    from fcvit_mm.publishing.weights import pack, split_destination, strip_checkpoint, write_files

    MMLogger.get_instance('mmengine', log_level='ERROR')
    folder, name = split_destination(args.out)
    stripped = strip_checkpoint(args.checkpoint, ema=not args.no_ema)
    cfg = complexity = None
    if args.config:
        cfg = load_config(args.config, args.cfg_options)
        with library_errors(f'building the model of {args.config}', 'Correct the config'):
            model = build_model(cfg)
        check_fits(model, args.checkpoint)
        complexity = measure(cfg, args.shape or ())
    described = describe(stripped, args.checkpoint, args.work_dir, cfg, complexity)
    weights = pack(stripped, name, args.safetensors)
    stem = osp.splitext(next(iter(weights)))[0]
    texts = {f'{stem}.md': write_card(described, stem, weights)}
    if cfg is not None:
        texts[f'{stem}.yml'] = write_entry(described)
    # The weights last: if they exist, all other files do.
    written = write_files(folder, {**{key: text.encode() for key, text in texts.items()}, **weights}, args.force)

    print(
        f'{args.checkpoint}: {len(stripped.state_dict)} tensors, weights {stripped.weights}; dropped: '
        f'{", ".join(stripped.dropped) or "nothing"}'
    )
    if not results(described):
        print('No metrics: no log of a validation with these weights was found (--work-dir)')
    if cfg is None:
        print('No entry for metafile.yml and a shorter card: both need --config')
    print('\n'.join(written))


if __name__ == '__main__':
    run_command(main, parse_args)
