"""CUDA graphs of a backbone's forward pass."""

import copy
import pickle

import pytest
import torch

import fcvit_mm
from fcvit_mm.inference.cuda_graphs import CudaGraphs
from fcvit_mm.models import FCViT

ARCH = dict(depths=(1, 1, 1, 1), channels=(16, 32, 32, 32), mlp_ratios=(2, 2, 2, 2))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def test_model_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r'cuda_graphs=True, but the FCViT is on cpu: .*\.to\(.cuda.\)'):
        fcvit_mm.optimize_for_inference(FCViT(arch=ARCH), cuda_graphs=True)


def test_images_on_a_cpu_use_no_graph():
    backbone, images = FCViT(arch=ARCH, out_indices=(3,)).eval(), torch.rand(1, 3, 32, 32)
    expected = backbone(images)
    backbone.cuda_graphs = CudaGraphs()
    with torch.no_grad():
        assert not backbone.cuda_graphs.apply_to(images)
        torch.testing.assert_close(backbone(images), expected)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda graphs: pickle.loads(pickle.dumps(graphs))])
def test_copies_hold_no_graphs(copied):
    graphs = CudaGraphs(limit=3)
    graphs._recorded['key'] = graphs._lock
    assert copied(graphs).limit == 3 and not copied(graphs)._recorded


@on_gpu
def test_graphs_of_several_sizes_agree_with_the_model():
    backbone = FCViT(arch=ARCH, out_indices=(0, 3)).cuda().eval()
    graphed = fcvit_mm.optimize_for_inference(backbone, cuda_graphs=True)
    graphed.cuda_graphs.limit = 2
    kept = []
    with torch.no_grad():
        for side in (64, 96, 32) * 3:
            images = torch.rand(2, 3, side, side, device='cuda')
            outputs, expected = graphed(images), backbone(images)
            torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)
            kept.append((outputs, [output.clone() for output in outputs]))
    assert len(graphed.cuda_graphs._recorded) == 2
    for outputs, clones in kept:  # no later call overwrote them
        assert all(torch.equal(output, clone) for output, clone in zip(outputs, clones))
    images = torch.rand(2, 3, 64, 64, device='cuda', requires_grad=True)
    assert backbone(images)[0].requires_grad
