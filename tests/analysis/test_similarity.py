"""Similarity maps: their values agree with those of the networks; figures."""

import numpy as np
import pytest
import torch
from networks import build_random, fcvit, vit

from fcvit_mm.analysis import draw_similarity, similarity_maps
from fcvit_mm.analysis.plots import save_figure
from fcvit_mm.analysis.recording import AnalysisError, recording, run_backbone
from fcvit_mm.analysis.similarity import shared_limits
from fcvit_mm.models.fcvit import GlobalContext

IMAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
MIXES = [
    f'stages.{stage}.blocks.{block}.mixes.{mix}'
    for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    for mix in (0, 1)
]


def mixes_of(model):
    """Return the similarity of every token mix, computed by its method from its input in a forward pass."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, GlobalContext)}
    with recording(modules, lambda name, module, args, kwargs, output: module.similarity(args[0])[0]) as values:
        run_backbone(model, torch.linspace(-2, 2, 3 * 32 * 48).sin().view(1, 3, 32, 48))
    return list(values.values())


@torch.no_grad()
def test_similarity_maps_are_the_weights_of_the_global_context():
    model = build_random(fcvit)
    image = torch.linspace(-2, 2, 3 * 32 * 48).sin().view(3, 32, 48)
    maps = similarity_maps(model, image)
    assert list(maps) == MIXES
    assert [tuple(values.shape) for values in maps.values()][::4] == [(4, 8, 12), (4, 2, 3), (4, 1, 2)]
    for values, expected in zip(maps.values(), mixes_of(model)):
        torch.testing.assert_close(values, expected)
    # The network adds the context vector, weighted by the similarity map.
    context = model.stages[0].blocks[0].token_mixer.mixes[0].global_context
    with recording({'it': context}, lambda name, module, args, kwargs, output: (args[0], output)) as seen:
        run_backbone(model, image)
    x, output = seen['it']
    added = (output - x).unflatten(1, (4, 4))
    vector = context.context(x.mean((2, 3))).unflatten(1, (4, 4))
    torch.testing.assert_close(added, maps[MIXES[0]][None, :, None] * vector[..., None, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
def test_similarity_of_classifiers_detectors_and_segmentors(library, project_network):
    network = project_network(library)
    image = network.prepare(IMAGE, (64, 64)).image
    maps = similarity_maps(network.model, image, ['stages.3', 'stages.0.blocks.1.mixes.1'])
    assert list(maps) == [
        'stages.0.blocks.1.mixes.1',
        *(f'stages.3.blocks.{block}.mixes.{mix}' for block in (0, 1) for mix in (0, 1)),
    ]
    assert maps['stages.3.blocks.0.mixes.0'].shape == (8, 2, 2)
    expected = similarity_maps(network.model.backbone, image)
    for name, values in maps.items():
        assert torch.equal(values, expected[name])
        assert not values.requires_grad


def test_unsuitable_networks_and_layers_are_refused():
    image = torch.randn(3, 32, 32)
    with pytest.raises(AnalysisError, match='ViT has no similarity maps, expected an FCViT .* attention maps'):
        similarity_maps(build_random(vit), image)
    for options in (dict(weighted=False), dict(global_context=False)):
        with pytest.raises(AnalysisError, match='FCViT has no similarity maps'):
            similarity_maps(build_random(fcvit, **options), image)
    with pytest.raises(AnalysisError, match="unknown token mix 'stages.7', expected one of .*stages.0.blocks.0"):
        similarity_maps(build_random(fcvit), image, ['stages.7'])


def test_figures_have_titles_and_labels(tmp_path):
    similarity = similarity_maps(build_random(fcvit), torch.randn(3, 32, 48))
    overview = draw_similarity(similarity, IMAGE, 'Title')
    titles = [axes.get_title() for axes in overview.axes]
    assert titles[:6] == ['image', *(f'block {i}\nmix {j}' for i in (1, 2) for j in (1, 2)), '']
    assert overview.get_suptitle() == 'Title'
    assert [axes.get_ylabel() for axes in overview.axes[::5]][:4] == [f'stage {i}' for i in (1, 2, 3, 4)]
    # The 14 maps of seven blocks do not fit in a row of 12.
    many = draw_similarity(
        {f'stages.0.blocks.{i}.mixes.{j}': torch.randn(2, 2, 2) for i in range(7) for j in (0, 1)}, IMAGE
    )
    assert [many.axes[i].get_ylabel() for i in (0, 13)] == ['stage 1,\nfrom block 1', 'stage 1,\nfrom block 7']
    assert [axes.get_title() for axes in many.axes[1:13]] == ['mix 1', 'mix 2'] * 6
    assert [len(axes.images) for axes in many.axes[13:26]] == [0, 1, 1, *[0] * 10]
    by_head = draw_similarity({name: similarity[name] for name in MIXES[:2]}, IMAGE, heads=True)
    assert [axes.get_title() for axes in by_head.axes][:5] == ['image', *(f'head {i}' for i in (1, 2, 3, 4))]
    assert [by_head.axes[i].get_ylabel() for i in (0, 5)] == [f'stage 1, block 1, mix {i}' for i in (1, 2)]
    for figure in (overview, by_head):
        assert figure.axes[-1].get_ylabel(), 'the color bar has no label'
    save_figure(overview, tmp_path / 'a.png', dpi=50)
    with pytest.raises(AnalysisError, match='no similarity maps given, .*: pass the result of similarity_maps'):
        draw_similarity({}, IMAGE)


def test_shared_limits_ignore_outliers():
    values = torch.arange(1001.0)
    values[-1] = 1e6  # an outlier does not determine the color scale
    assert shared_limits([values]) == (-980, 980)
    assert shared_limits([torch.zeros(4)]) == (-1, 1)
