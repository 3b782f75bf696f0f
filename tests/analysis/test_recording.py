"""Recording the features of layers, for different networks; names of layers; input images."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from networks import TRANSFORMERS, Convs, build_random, fcvit, timm_vit, vit

from fcvit_mm import analysis
from fcvit_mm.analysis import recording
from fcvit_mm.analysis.recording import AnalysisError, collect_features, run_backbone


@pytest.mark.parametrize('kind', [*TRANSFORMERS, 'fcvit'])
def test_features_are_the_outputs_of_the_blocks(kind):
    model = build_random(TRANSFORMERS.get(kind, fcvit))
    found = collect_features(model, torch.randn(2, 3, 32, 32))
    assert len(found) >= 2 and all(values.ndim == 4 and len(values) == 2 for values in found.values())
    if kind == 'fcvit':
        assert list(found) == [
            f'stages.{stage}.blocks.{block}' for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
        ]
    else:
        sides = {tuple(values.shape[2:]) for values in found.values()}
        assert sides == ({(8, 8), (4, 4), (2, 2), (1, 1)} if 'swin' in kind else {(4, 4)})


@torch.no_grad()
def test_features_are_the_inputs_of_the_next_layer():
    model, image = build_random(fcvit), torch.randn(1, 3, 32, 48)
    found = collect_features(model, image)
    torch.testing.assert_close(model.norm3(found['stages.3.blocks.0']), model(image)[3])
    model = build_random(timm_vit)
    x = model.forward_features(image[..., :32])
    patches = model.norm(collect_features(model, image[..., :32])['blocks.2'].flatten(2).transpose(1, 2))
    torch.testing.assert_close(patches, x[:, 3:])  # after a class token and two registers


def test_features_keep_gradients_and_are_not_overwritten():
    model = build_random(Convs)
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    with recording.recording_features(model, ['blocks.0']) as values:
        run_backbone(model, image)
    assert (values['blocks.0'] < 0).any(), 'overwritten by the next ReLU'
    values['blocks.0'].sum().backward()
    assert image.grad.abs().sum() > 0


def test_layers_without_maps_or_tokens_are_refused():
    with pytest.raises(AnalysisError, match=r'Convs returns neither a map \(B, C, H, W\) nor patch tokens at blocks.2'):
        collect_features(build_random(Convs), torch.randn(1, 3, 8, 8), ['blocks.2'])


def test_unknown_layers_are_refused_with_a_list_of_layers():
    model = build_random(vit)
    with pytest.raises(
        AnalysisError,
        match=r"ViT has no layer 'stages.0.block.1', but stages.0.blocks.1.*"
        r'Its blocks: stages.0.blocks.0, ',
    ):
        collect_features(model, torch.randn(1, 3, 32, 32), ['stages.0.block.1'])
    # 'stages.1' does not select 'stages.10', nor 'stage' 'stages.1'.
    assert recording.select(('stages.1.a', 'stages.10.a'), ['stages.1'], 'x') == ('stages.1.a',)
    with pytest.raises(AnalysisError, match="unknown x 'stage', expected one of these names .*: stages.1.a"):
        recording.select(('stages.1.a',), ['stage'], 'x')


class Stages(nn.Module):
    """A network of another package: stages without blocks, the second with maps ``(B, H, W, C)``."""

    def __init__(self):
        super().__init__()
        first, second = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU()), nn.Sequential(nn.LayerNorm(4), nn.ReLU())
        second.output_fmt = 'NHWC'
        self.stages = nn.ModuleList([first, second])

    def forward(self, x):
        return self.stages[1](self.stages[0](x).permute(0, 2, 3, 1))


def test_features_of_a_network_of_another_package():
    found = collect_features(Stages(), torch.randn(1, 3, 8, 12))
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        'stages.0': (1, 4, 4, 6),
        'stages.1': (1, 4, 4, 6),
    }


def test_patch_embedding_is_found_by_name_or_stride():
    assert recording.find_patch_convolution(build_random(timm_vit)).kernel_size == (8, 8)
    unnamed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 8, 4, 4), nn.Conv2d(8, 8, 2, 2))
    assert recording.find_patch_convolution(unnamed) is unnamed[2]
    assert recording.find_patch_convolution(unnamed[:2]) is None
    assert recording.count_extra_tokens(unnamed, 7, (2, 3)) == 1
    for grid, message in (((2, 4), 'of 2x4 patches'), (None, 'that was not found')):
        with pytest.raises(
            AnalysisError, match=f'of 7 tokens and a patch embedding {message}, .*: analyse other layers'
        ):
            recording.count_extra_tokens(unnamed, 7, grid)


def test_invalid_images_are_refused():
    model = build_random(fcvit)
    for image, message in (
        (np.zeros((8, 8, 3)), 'the image is ndarray, expected'),
        (torch.zeros(8, 8), r'float32 \(8, 8\)'),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 'uint8'),
    ):
        with pytest.raises(AnalysisError, match=message):
            collect_features(model, image)
    with pytest.raises(AnalysisError, match='FCViT does not take an image .* got 4 channels .*expected 3'):
        collect_features(model, torch.zeros(1, 4, 32, 32))
    with pytest.raises(
        AnalysisError,
        match=r'VisionTransformer does not take an image of \(50, 50\) pixels.*: .*Give an image, or a size',
    ):
        collect_features(build_random(timm_vit), torch.zeros(1, 3, 50, 50))
    with pytest.raises(AnalysisError, match='2 images given, expected one: call this for each image'):
        recording.as_single(model, torch.zeros(2, 3, 32, 32))


def test_training_modes_are_restored():
    model = build_random(fcvit, frozen_stages=1).train()
    before = [module.training for module in model.modules()]
    collect_features(model, torch.randn(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == before and any(before)


def test_public_names_exist():
    assert set(analysis.__all__) <= set(dir(analysis))
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'similarity_map'"):
        analysis.similarity_map  # noqa: B018
