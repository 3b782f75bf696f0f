"""Compare what networks look at: attention maps for query points, and how far attention depends on the query.

For each transformer the attention of chosen query points, drawn over the image; beside it FCViT's similarity, which
has no query. For all of them, per layer: query-irrelevance, difference of heads, and sparsity.
"""

import argparse

from arguments import (
    NETWORK_HELP,
    add_arguments,
    check_arguments,
    file_name,
    find_images,
    load_networks,
    parse_queries,
)

from fcvit_mm.analysis.plots import save_figure, write_json
from fcvit_mm.analysis.similarity import attention_maps, draw_attention, draw_beside, similarity_maps
from fcvit_mm.analysis.statistics import TOP, attention_statistics, draw_statistics, mean_statistics
from fcvit_mm.errors import run_command
from fcvit_mm.images import read_image


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument(
        '--images',
        nargs='+',
        required=True,
        metavar='IMAGE',
        help='images or folders of them: the first is drawn, the numbers are means over all',
    )
    parser.add_argument(
        '--queries',
        nargs='+',
        metavar='Y,X',
        default=['0.5,0.5', '0.15,0.15', '0.85,0.6'],
        help='points from the top and from the left, in parts of height and width: 0.5,0.5 is the '
        'middle (default: %(default)s)',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='layers to draw and measure, or what their names begin with; they must be in every '
        'network (default: all are measured, six are drawn)',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    queries = parse_queries(args.queries)
    paths = find_images(args.images)
    images = [read_image(path) for path in paths]
    networks = load_networks(args.networks, args.device)

    found, drawn, figures = {}, {}, {}
    for network in networks:
        prepared = [network.prepare(pixels, args.size) for pixels in images]
        found[network.name] = mean_statistics(
            [attention_statistics(network.model, each.image, args.layers) for each in prepared]
        )
        image, pixels = prepared[0]
        if found[network.name].kind == 'attention':
            what, maps = 'Attention', attention_maps(network.model, image, queries, args.layers)
        else:
            what, maps = 'Similarity', similarity_maps(network.model, image, args.layers)
        drawn[network.label.replace(' (', '\n(')] = maps, pixels
        figures[f'attention_{file_name(network.name)}'] = draw_attention(
            maps, pixels, queries, f'{what} of {network.label}, mean over heads'
        )
    if len(networks) > 1:
        figures['comparison'] = draw_beside(drawn, queries, 'Attention and similarity, mean over heads')
    figures['statistics'] = draw_statistics(
        {network.label: found[network.name] for network in networks},
        f'Mean over {len(images)} image{"s" if len(images) > 1 else ""}',
    )
    for name, figure in figures.items():
        print(save_figure(figure, args.out / f'{name}.png'))
    print(
        write_json(
            args.out / 'attention.json',
            dict(
                images=paths,
                queries=queries,
                top=TOP,
                networks={
                    network.name: dict(network=spec, checkpoint=network.checkpoint, **found[network.name]._asdict())
                    for network, spec in zip(networks, args.networks)
                },
            ),
        )
    )


if __name__ == '__main__':
    run_command(main)
