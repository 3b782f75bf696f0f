"""All analyses of one network as one HTML page; for an analysis that does not apply, the page states the reason."""

import datetime
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure

from ..apis.draw import build_drawer
from ..apis.load import Network, Prepared
from ..checkpoints import is_published, read_checkpoint
from ..engine.config import load_config
from ..files import atomic_path
from ..images import swap_channels
from ..models.layers import count_parameters
from ..version import __version__
from .cam import class_activation_map, class_scores, describe_class_map, draw_class_maps, name_of
from .frequency import draw_oversmoothing, draw_spectra, oversmoothing
from .page import Image, Section, Table, render
from .plots import draw_grid, figure_png, short_name
from .query_maps import attention_maps, draw_attention
from .receptive_field import SHARES, draw_fields, receptive_fields, stage_layers
from .recording import AnalysisError, backbone_of, collect_features
from .similarity import draw_similarity, similarity_maps
from .statistics import MEASURES, attention_statistics, draw_statistics, mean_statistics

#: Query points of attention maps, ``(y, x)`` as fractions of height and width.
QUERIES = ((0.5, 0.5), (0.15, 0.15), (0.85, 0.6))
#: Number of images that are drawn; the numbers are means over all.
DRAWN = 4
#: Number of classes with the highest scores that are listed.
TOP_CLASSES = 3
#: Dots per inch of the figures.
DPI = 110


class Subject(NamedTuple):
    """A network and the images that it is analysed on.

    Attributes:
        network (Network): Result of :func:`fcvit_mm.apis.load.load_network`.
        config (str): Name or file that the network was loaded from.
        paths (Sequence[str]): Image files.
        originals (Sequence[np.ndarray]): The images as the config loads them.
        prepared (Sequence[Prepared]): The images as the network sees them.
    """

    network: Network
    config: str
    paths: Sequence[str]
    originals: Sequence[np.ndarray]
    prepared: Sequence[Prepared]

    @property
    def images(self) -> List[torch.Tensor]:
        """The network's inputs, ``(1, C, H, W)`` each."""
        return [each.image for each in self.prepared]

    @property
    def labels(self) -> List[str]:
        """Short names of the images that are drawn."""
        return [f'image {i + 1}' for i in range(len(self.paths[:DRAWN]))]

    def name(self, index: int) -> str:
        """Return the name of an image in tables."""
        return f'{index + 1}: {Path(self.paths[index]).name}'


def write_report(network: Network, config: str, paths: Sequence[str], size: Optional[Sequence[int]] = None) -> str:
    """Analyse a network on some images and render the page.

    Args:
        network (Network): A classifier, detector or segmentor from :func:`fcvit_mm.apis.load.load_network`.
        config (str): Name or file that the network was loaded from.
        paths (Sequence[str]): Images. The numbers are means over all of them; only the first few are drawn.
        size (Sequence[int], optional): Height and width. Images are resized to cover this area and then cropped to it.
            Default: as in the config's test pipeline.

    Returns:
        str: HTML of one self-contained file.

    Raises:
        AnalysisError: No images.
        ImageError: An image is missing or corrupt.
    """
    if not paths:
        raise AnalysisError('no images given, expected at least one: give image files or a folder of images')
    originals = [network.read(path) for path in paths]
    subject = Subject(network, config, paths, originals, [network.prepare(each, size) for each in originals])
    sections = [_section(title, source, make, subject) for title, source, make in SECTIONS]
    lead = (
        f'What the network attends to, how its features change with depth and what its decisions rest on, measured on '
        f'{_count(len(paths), "image")} by fcvit_mm {__version__}.'
    )
    return render(f'Analysis of {network.label}', lead, sections)


def _section(title: str, source: Optional[str], make: Callable[[Subject], Section], subject: Subject) -> Section:
    """Make a section; if the analysis does not apply, the section only contains the reason."""
    try:
        return make(subject)._replace(title=title, source=source)
    except AnalysisError as error:
        return Section(title, reason=f'{str(error).rstrip(".")}.')


def _image(figure: Figure, caption: str) -> Image:
    return Image(figure_png(figure, DPI), caption)


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _number(value: Optional[float], digits: int = 3) -> str:
    return '–' if value is None or value != value else f'{value:.{digits}f}'


def _size(shape: Sequence[int]) -> str:
    return f'{shape[0]} x {shape[1]}'


def _network(subject: Subject) -> Section:
    network, backbone = subject.network, backbone_of(subject.network.model)
    sizes = list(dict.fromkeys(_size(image.shape[2:]) for image in subject.images))
    weights = network.checkpoint or 'random: no checkpoint was given'
    if network.checkpoint and not is_published(network.checkpoint):
        written = datetime.datetime.fromtimestamp(Path(network.checkpoint).stat().st_mtime)
        weights += f', written {written:%Y-%m-%d %H:%M}'
    rows = [
        ('config', subject.config),
        ('weights', weights),
        ('task', network.task),
        ('model', type(network.model).__name__),
        ('backbone', type(backbone).__name__),
        (
            'parameters',
            f'{count_parameters(network.model):,}, of which {count_parameters(backbone):,} in the backbone'
            if backbone is not network.model
            else f'{count_parameters(backbone):,}',
        ),
        ('images', ', '.join(f'{i}: {path}' for i, path in enumerate(subject.paths, 1))),
        ('input', f'{", ".join(sizes)} pixels (height x width)'),
        ('software', f'fcvit_mm {__version__}, torch {torch.__version__}'),
        ('date', f'{datetime.datetime.now():%Y-%m-%d %H:%M}'),
    ]
    return Section('', tables=[Table('', (), rows)])


def _predictions(subject: Subject) -> Section:
    network = subject.network
    if network.task != 'classification':
        figure = draw_grid(
            [_drawn_predictions(subject)], column_titles=subject.labels, side=3.2 if len(subject.paths) < 3 else 2.4
        )
        what = (
            'Boxes and masks with a score of at least 0.3.'
            if network.task == 'detection'
            else 'The class of each pixel, as colors over the image.'
        )
        return Section('', [what], figures=[_image(figure, f'Predictions of the {network.task} model')])
    rows = []
    for i, image in enumerate(subject.images):
        scores = class_scores(network.model, image)
        best = scores.topk(min(TOP_CLASSES, len(scores)))
        rows.append(
            [
                subject.name(i),
                *(
                    f'{name_of(index, network.class_names)} {score:.1%}'
                    for score, index in zip(best.values.tolist(), best.indices.tolist())
                ),
            ]
        )
    header = ['image', *('first', 'second', 'third')[: len(rows[0]) - 1]]
    figure = draw_grid(
        [[each.pixels for each in subject.prepared[:DRAWN]]],
        column_titles=[f'{label}\n{row[1]}' for label, row in zip(subject.labels, rows)],
        side=1.7,
    )
    return Section(
        '',
        [
            'The images as the network sees them, resized and cropped as in its test, and the classes '
            'with the highest scores (softmax).'
        ],
        figures=[_image(figure, 'Images and the class predicted for each')],
        tables=[Table('Scores', header, rows)],
    )


def _drawn_predictions(subject: Subject) -> List[np.ndarray]:
    """Draw boxes, masks or labels on the first images with the libraries' inferencers."""
    network = subject.network
    if network.checkpoint is None:
        raise AnalysisError(f'{network.name} has random weights, so its predictions are meaningless: give a checkpoint')
    meta = read_checkpoint(network.checkpoint).get('meta')
    content = dict(
        state_dict=network.model.state_dict(),
        meta=dict(dataset_meta=meta.get('dataset_meta', {}) if isinstance(meta, dict) else {}),
    )
    with tempfile.TemporaryDirectory() as folder:
        # A file with only weights and class names, because an inferencer would unpickle everything in a checkpoint.
        path = str(Path(folder, 'weights.pth'))
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
        draw = build_drawer(load_config(subject.config), path, str(subject.images[0].device))
        return [swap_channels(draw(swap_channels(each))) for each in subject.originals[:DRAWN]]


def _similarity(subject: Subject) -> Section:
    figures = []
    for label, prepared in zip(subject.labels, subject.prepared):
        maps = similarity_maps(subject.network.model, prepared.image)
        figures.append(
            _image(
                draw_similarity(maps, prepared.pixels),
                f'Similarity over {label}, mean over the heads, by stage and token mix',
            )
        )
    last = next(reversed(maps)).partition('.blocks')[0]
    chosen = {name: values for name, values in maps.items() if name.startswith(f'{last}.')}
    figures.append(
        _image(draw_similarity(chosen, prepared.pixels, heads=True), f'Similarity over {label}, the last stage by head')
    )
    return Section(
        '',
        [
            'FCViT adds one context vector per image, weighted at every position by the similarity of that position to '
            'the mean of the image. The maps show these weights: at orange positions, which are similar to the mean, '
            'the context vector is added; at purple ones, which are not, it is subtracted.',
            'Early stages tend to follow colors and edges. Where a map of a late stage separates the object from the '
            'background, the network groups positions that belong together. Heads with similar maps are redundant.',
        ],
        figures=figures,
    )


def _attention(subject: Subject) -> Section:
    figures = []
    for label, prepared in zip(subject.labels, subject.prepared):
        maps = attention_maps(subject.network.model, prepared.image, QUERIES)
        figures.append(
            _image(
                draw_attention(maps, prepared.pixels, QUERIES),
                f'Attention of the marked patches of {label}, mean over the heads',
            )
        )
    return Section(
        '',
        [
            'Each row is one query, the patch marked by a ring; each column a layer. Colors show how much that patch '
            'attends to every other, relative to the largest weight.',
            'Where the rows of a layer are alike, the query is irrelevant there: all patches attend to the same '
            'positions. FCViT is motivated by this observation.',
        ],
        figures=figures,
    )


def _statistics(subject: Subject) -> Section:
    found = mean_statistics([attention_statistics(subject.network.model, image) for image in subject.images])
    layers = list(found.layers.values())
    first, last = layers[0], layers[-1]
    findings = []
    if found.kind == 'attention':
        findings.append(
            f'Cosine similarity of the maps of two queries: {_number(first["query_cosine"], 2)} in the '
            f'first layer, {_number(last["query_cosine"], 2)} in the last.'
        )
    findings.append(
        f'The top tenth of the tokens has {first["top_share"]:.0%} of the weight in the first layer and '
        f'{last["top_share"]:.0%} in the last (10% for uniform weights).'
    )
    what = 'attention' if found.kind == 'attention' else 'similarity'
    measures = [measure for measure in MEASURES if measure not in found.by_construction]
    table = Table(
        f'{what.capitalize()} by layer',
        ['layer', *(measure.replace('_', ' ') for measure in measures)],
        [[name, *(_number(values[measure]) for measure in measures)] for name, values in found.layers.items()],
    )
    return Section(
        '',
        [
            f'How much the {what} maps depend on the query, how much the heads differ, and how sparse the weights are. '
            'Cosines near 1 and divergences near 0: maps are alike. Entropy near 1: uniform weights; near 0: all '
            'weight on a single token.'
        ],
        findings,
        [_image(draw_statistics({subject.network.label: found}), f'Measures of the {what} by layer')],
        [table],
    )


def _oversmoothing(subject: Subject) -> Section:
    found = oversmoothing(subject.network.model, subject.images)
    names, layers = list(found), list(found.values())
    lowest = min(range(len(layers)), key=lambda i: layers[i].log_ratio)
    findings = [
        f'log(|HC| / |DC|) changes from {layers[0].log_ratio:.2f} in the first block to '
        f'{layers[-1].log_ratio:.2f} in the last; it is lowest, {layers[lowest].log_ratio:.2f}, at '
        f'{short_name(names[lowest])}. The cosine similarity of two tokens changes from '
        f'{_number(layers[0].cosine, 2)} to {_number(layers[-1].cosine, 2)}.'
    ]
    table = Table(
        'Frequencies by block',
        ['block', 'map', 'log(|HC| / |DC|)', 'high-frequency energy', 'token cosine', 'log amplitude at pi'],
        [
            [
                name,
                _size(layer.grid),
                _number(layer.log_ratio),
                f'{layer.high_share:.1%}',
                _number(layer.cosine),
                _number(layer.profile[-1].item(), 2),
            ]
            for name, layer in found.items()
        ],
    )
    return Section(
        '',
        [
            'The features of a layer are the sum of their mean over the positions (DC) and the rest, the high '
            'frequencies (HC). Where their ratio falls with depth while the tokens become alike (cosine towards 1), '
            'the network oversmooths. Dotted lines mark where the size of the maps changes.',
            'The spectra show which frequencies are present: the middle is frequency 0, the edges are half a cycle per '
            'position. A uniformly bright spectrum has fine detail; a single bright point on a dark ground is an '
            'almost constant map.',
        ],
        findings,
        [
            _image(draw_oversmoothing({subject.network.label: found}), 'Frequencies and similarity of tokens by block'),
            _image(draw_spectra(found), 'Fourier spectrum of the feature maps of each block'),
        ],
        [table],
    )


def _receptive_field(subject: Subject) -> Section:
    size = subject.images[0].shape
    images = [image for image in subject.images if image.shape == size]
    found = receptive_fields(subject.network.model, images)
    findings = []
    for name in (next(iter(found)), next(reversed(found))):
        field = found[name]
        half, most = (field.squares[share].side for share in SHARES)
        findings.append(
            f'{short_name(name).capitalize()}: half of the gradient is in a square of '
            f'{_count(half, "pixel")}, {SHARES[1]:.0%} in one of {most}, of an input of '
            f'{_size(field.mass.shape)}.'
        )
    note = (
        ''
        if len(images) == len(subject.images)
        else f' Images of other sizes than the first were skipped: this is of {_count(len(images), "image")}.'
    )
    table = Table(
        'Side of the smallest square, input pixels',
        ['layer', 'map', *(f'{share:.0%} of the gradient' for share in SHARES), 'reach'],
        [
            [name, _size(field.grid), *(str(square.side) for square in field.squares.values()), _size(field.reach)]
            for name, field in found.items()
        ],
    )
    return Section(
        '',
        [
            'The pixels that the middle of each map depends on, by the magnitude of its gradient, in logarithmic '
            'colors. The solid frame is the smallest square that contains half of it, the dashed one 95%. "Reach" is '
            'the rectangle outside which the gradient is exactly 0: with a global context or attention, the entire '
            f'image, however small the gradient is.{note}'
        ],
        findings,
        [_image(draw_fields(found), 'Effective receptive field of each stage')],
        [table],
    )


def _cam(subject: Subject) -> Section:
    network = subject.network
    # Maps of the last of several stages are coarse: draw the stage before it too.
    layers = stage_layers(list(collect_features(network.model, subject.images[0])))
    pyramid = len({name.rpartition('.')[0] for name in layers}) > 1
    maps = [
        [
            class_activation_map(network.model, image, layer=layer)
            for layer in ((layers[-2],) if pyramid else ()) + (None,)
        ]
        for image in subject.images
    ]
    rows = []
    for i, each in enumerate(maps):
        numbers = [describe_class_map(found, network.class_names) for found in each]
        rows += [
            [
                subject.name(i),
                found['prediction_name'],
                f'{found["prediction_score"]:.1%}',
                found['layer'],
                f'{found["area_above_half"]:.0%}',
            ]
            for found in numbers
        ]
    table = Table('Class activation maps', ['image', 'predicted', 'score', 'layer', 'area above half'], rows)
    figure = draw_class_maps([each.pixels for each in subject.prepared[:DRAWN]], maps[:DRAWN], network.class_names)
    return Section(
        '',
        [
            'Where the evidence for the predicted class is; each map is scaled to its own largest value. Evidence '
            'outside the object means that the network uses the background. A map has the resolution of its layer.'
        ],
        figures=[_image(figure, 'Class activation maps for the class predicted for each image')],
        tables=[table],
    )


#: Sections: title, source of the method, and the function that makes it.
SECTIONS: Tuple[Tuple[str, Optional[str], Callable[[Subject], Section]], ...] = (
    ('Network', None, _network),
    ('Predictions', None, _predictions),
    ('Similarity maps', 'Ma et al., arXiv 2212.12552, section 3.3 and figure 3.', _similarity),
    ('Attention maps', 'Ma et al., arXiv 2212.12552, figure 1.', _attention),
    ('Query irrelevance and sparsity', 'Ma et al., arXiv 2212.12552, section 3.1.', _statistics),
    (
        'Oversmoothing',
        'Wang et al., ICLR 2022, OpenReview O476oWmiNNp, section 2; spectra: Park and Kim, arXiv 2202.06709.',
        _oversmoothing,
    ),
    ('Effective receptive field', 'Luo et al., arXiv 1701.04128.', _receptive_field),
    ('Class activation maps', 'Selvaraju et al., Grad-CAM, arXiv 1610.02391, by the library pytorch-grad-cam.', _cam),
)
