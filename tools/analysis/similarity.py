"""Draw the similarity that weights an FCViT's global context, over an image: maps of each block and head."""

import argparse
from typing import Optional, Sequence

from arguments import CHECKPOINT_HELP, add_arguments, check_arguments, parse_arguments
from command_line import command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a classifier, detector or segmentor with an FCViT')
    parser.add_argument('checkpoint', help=CHECKPOINT_HELP)
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='NAME',
        help='token mixes to draw, by name, such as stages.3.blocks.1.mixes.0, or prefix, such as stages.3 (default: '
        'all)',
    )
    add_arguments(parser)
    return parse_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from fcvit_mm.analysis.plots import save_figure, short_name, write_json
    from fcvit_mm.analysis.similarity import draw_similarity, similarity_maps, stage_of
    from fcvit_mm.apis.load import load_network

    check_arguments(args)
    network = load_network(args.config, args.checkpoint, args.device)
    prepared = network.prepare(args.image, args.size)
    maps = similarity_maps(network.model, prepared.image, args.blocks)

    title = f'Similarity maps of {network.label}'
    print(save_figure(draw_similarity(maps, prepared.pixels, title), args.out / 'similarity.png'))
    for stage in dict.fromkeys(map(stage_of, maps)):
        chosen = {name: values for name, values in maps.items() if stage_of(name) == stage}
        figure = draw_similarity(chosen, prepared.pixels, f'{title}, {short_name(stage)}', heads=True)
        print(save_figure(figure, args.out / f'similarity_{short_name(stage).replace(" ", "")}_heads.png'))
    content = dict(
        network=network.name,
        config=args.config,
        checkpoint=args.checkpoint,
        image=args.image,
        image_size=list(prepared.image.shape[2:]),
        unit='normalized over heads and positions to mean 0 and deviation 1, then rescaled per head as trained',
        axes=['head', 'row', 'column'],
        maps={name: np.round(values.cpu().double().numpy(), 4) for name, values in maps.items()},
    )
    print(write_json(args.out / 'similarity.json', content))


if __name__ == '__main__':
    run_command(main, parse_args)
