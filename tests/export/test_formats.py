"""What is recorded at one size does the same at any other, in every format: each network, as a backbone.

The suite traces them. torch.export follows sizes as symbols, seconds for each block: ``LONG_EXPORTS=1 python -m pytest
tests/export/test_formats.py`` does it and ONNX for every network's first stage, minutes.
"""

import os

import pytest
import torch
from networks import NETWORKS, assert_same, build, disturbed, images

from fcvit_mm.export.formats import FORMATS, write_export
from fcvit_mm.export.parts import Features

#: Batch, height and width. 224: positions are those learned; 27: one window of Swin's is as high as the map, so that it
#: is not shifted, as it was in the example; 27 and 61: nothing is a multiple of anything.
SHAPES = ((1, 27, 40), (3, 61, 50), (2, 224, 224))
LONG = bool(os.environ.get('LONG_EXPORTS'))
#: What makes a network short.
FIRST_STAGE = dict.fromkeys(NETWORKS, dict(out_indices=(0,))) | dict(
    vit=dict(arch=dict(depths=(1,), channels=(24,), num_heads=(3,))),
    cait=dict(arch=dict(depths=(1, 1), channels=(24, 24), num_heads=(3, 3))),
)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('name', NETWORKS)
def test_any_size(name, kind, tmp_path):
    traced = kind == 'torchscript'
    if not traced and not LONG:
        pytest.skip('takes minutes: LONG_EXPORTS=1 does it')
    model = disturbed(build(NETWORKS[name], **({} if traced else FIRST_STAGE[name])))
    differences = write_export(Features(model), str(tmp_path / f'a{FORMATS[kind].suffix}'), kind, shapes=SHAPES)
    assert [found.shape for found in differences] == list(SHAPES)
    assert all(found.of > 0.1 for found in differences)  # or nothing was compared


@pytest.mark.parametrize('name', ['vit', 'cait'])
@torch.no_grad()
def test_any_size_with_a_class_token(name):
    model = disturbed(build(NETWORKS[name], **NETWORKS[name].classifier))
    traced = torch.jit.trace(model, images(96, 80), check_trace=False)
    for x in (images(33, 50, batch=1), images(224, 224, batch=3)):
        assert_same(traced(x), model(x))


@torch.no_grad()
def test_position_embeddings_at_any_size():
    model = disturbed(build(NETWORKS['dwnet'], position_size=16))
    traced = torch.jit.trace(model, images(64, 64), check_trace=False)
    assert_same(traced(images(50, 71)), model(images(50, 71)))
