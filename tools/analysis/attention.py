"""Compare what networks attend to: attention maps of query points, and statistics of attention.

For each transformer the attention of chosen query points, drawn over the image; for an FCViT the similarity maps, which
have no query. For all of them, per layer: query irrelevance, difference of heads, and sparsity.
"""

import argparse
from typing import Optional, Sequence

from arguments import (
    add_arguments,
    add_networks_and_images,
    check_arguments,
    file_name,
    find_all_images,
    load_networks,
    parse_arguments,
    parse_queries,
)
from command_line import command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_networks_and_images(parser, 'the first is drawn, the numbers are means over all')
    parser.add_argument(
        '--queries',
        nargs='+',
        metavar='Y,X',
        default=['0.5,0.5', '0.15,0.15', '0.85,0.6'],
        help='query points as fractions of height and width: 0,0 is the top left, 0.5,0.5 the centre (default: '
        '0.5,0.5 0.15,0.15 0.85,0.6)',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='layers to draw and measure, by name or prefix; every network must have them (default: all are measured, '
        'six are drawn)',
    )
    add_arguments(parser)
    args = parse_arguments(parser, argv)
    args.queries = parse_queries(args.queries)
    return args


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.analysis.plots import save_figure, write_json
    from fcvit_mm.analysis.query_maps import attention_maps, draw_attention, draw_beside
    from fcvit_mm.analysis.similarity import similarity_maps
    from fcvit_mm.analysis.statistics import TOP, attention_statistics, draw_statistics, mean_statistics

    check_arguments(args)
    paths = find_all_images(args.images)
    networks = load_networks(args.networks, args.device)

    found, drawn, figures = {}, {}, {}
    for network in networks:
        prepared = [network.prepare(path, args.size) for path in paths]
        found[network.name] = mean_statistics(
            [attention_statistics(network.model, each.image, args.layers) for each in prepared]
        )
        first = prepared[0]
        if found[network.name].kind == 'attention':
            kind, maps = 'Attention', attention_maps(network.model, first.image, args.queries, args.layers)
        else:
            kind, maps = 'Similarity', similarity_maps(network.model, first.image, args.layers)
        drawn[network.label.replace(' (', '\n(')] = maps, first.pixels
        figures[f'attention_{file_name(network.name)}'] = draw_attention(
            maps, first.pixels, args.queries, f'{kind} of {network.label}, mean over heads'
        )
    if len(networks) > 1:
        figures['comparison'] = draw_beside(drawn, args.queries, 'Attention and similarity, mean over heads')
    figures['statistics'] = draw_statistics(
        {network.label: found[network.name] for network in networks},
        f'Mean over {len(paths)} image{"s" if len(paths) > 1 else ""}',
    )
    for name, figure in figures.items():
        print(save_figure(figure, args.out / f'{name}.png'))
    content = dict(
        images=paths,
        queries=args.queries,
        top=TOP,
        networks={
            network.name: dict(network=spec, checkpoint=network.checkpoint, **found[network.name]._asdict())
            for network, spec in zip(networks, args.networks)
        },
    )
    print(write_json(args.out / 'attention.json', content))


if __name__ == '__main__':
    run_command(main, parse_args)
