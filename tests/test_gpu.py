"""Tests on a simulated GPU: no code mixes tensors of the CPU and of the GPU.

Kernels, memory and speed of a GPU are not simulated.
"""

import copy
from functools import partial

import pytest
import torch
from harness import ROOT
from mmengine.config import Config
from networks import FCVIT_OPTIONS, NETWORKS, build, build_fcvit, images
from pretended_gpu import GpuTensor, pretended_gpu
from torch import nn

import fcvit_mm
from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.random_batch import random_batch
from fcvit_mm.apis.step import scope_of_library, without_downloads
from fcvit_mm.mmcv_ext import is_compiled


def step(model, device):
    """Take a training step on a device; return the outputs, gradients and parameters on the CPU."""
    model = model.double().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    outputs = model(images(64, 64).double().to(device))
    sum(output.square().mean() for output in outputs).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    optimizer.step()
    return [x.detach().cpu() for x in (*outputs, *gradients, *model.parameters())]


class TestPretendedGpu:
    @pytest.mark.parametrize(
        'mix',
        [
            lambda x: x + torch.ones(4),
            lambda x: torch.cat([x, torch.arange(4.0)]),
            lambda x: x[x.new_ones(4) > torch.linspace(0, 1, 4)],
            lambda x: nn.functional.linear(x, torch.eye(4)),
            lambda x: torch.arange(4).to(x) + torch.arange(4),
            lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1)),
        ],
    )
    def test_tensors_on_the_cpu_are_refused(self, mix):
        with pretended_gpu() as device:
            x = torch.arange(4.0, device=device)
            with pytest.raises(RuntimeError, match='on the same device, cuda:0, but found .* on cpu'):
                mix(x)

    def test_conversion_to_numpy_is_refused(self):
        with pretended_gpu() as device, pytest.raises(TypeError, match='Use Tensor.cpu'):
            torch.ones(1, device=device).numpy()

    def test_results_agree_with_the_cpu(self):
        with pretended_gpu() as device:
            x = torch.arange(4.0, device=device).requires_grad_()
            y = (x[[0, 2]] * 2 + torch.tensor(1.0)).sum() + x.new_ones(1) * x.detach()[torch.tensor([3])]
            y.backward()
            assert (y.item(), x.grad.tolist(), x.grad.device) == (9.0, [2.0, 0.0, 2.0, 0.0], device)
            assert isinstance(x, GpuTensor) and x.is_cuda and not x.cpu().is_cuda
        assert not torch.cuda.is_available()

    def test_tensors_on_the_cpu_are_refused_in_backward_passes(self):
        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                return grad * torch.full((4,), 2.0)

        with pretended_gpu() as device, pytest.raises(RuntimeError, match='on cpu'):
            Scale.apply(torch.ones(4, device=device, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    'model',
    [
        *(pytest.param(partial(build, network), id=name) for name, network in NETWORKS.items()),
        *(
            pytest.param(partial(build_fcvit, **options), id=f'fcvit, {name}')
            for name, options in FCVIT_OPTIONS.items()
            if name not in ('default', 'gray', 'dropout')  # tested above; other images; random
        ),
    ],
)
def test_training_step_agrees_with_the_cpu(model):
    model = model()
    other = copy.deepcopy(model)
    with pretended_gpu() as device:
        found = step(model, device)
        assert all(isinstance(parameter, GpuTensor) for parameter in model.parameters())
    for got, want in zip(found, step(other, 'cpu')):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('name', NETWORKS)
def test_optimized_network_agrees_with_the_cpu(name):
    model = build(NETWORKS[name]).eval()
    with torch.no_grad():
        expected = model(images(64, 96))
        with pretended_gpu() as device:
            fast = fcvit_mm.optimize_for_inference(copy.deepcopy(model).to(device))
            found = [x.cpu() for x in fast(images(64, 96).to(device))]
    for got, want in zip(found, expected):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


SMALL = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), mlp_ratios=(2, 2, 2, 2), num_heads=2)


@pytest.mark.parametrize('config', ['detection/mask_rcnn_fcvit_tiny_shapes', 'segmentation/upernet_fcvit_tiny_shapes'])
def test_detectors_and_segmentors_train_and_predict(config):
    """With the operators of this package that replace mmcv's compiled ones, which need CUDA's compiler."""
    pytest.importorskip('mmdet' if 'detection' in config else 'mmseg')
    if is_compiled():
        pytest.skip('mmcv has its compiled operators, which read the memory of tensors')
    cfg = without_downloads(Config.fromfile(ROOT / 'configs' / f'{config}.py'), 64)
    cfg.model.backbone.arch = SMALL
    for key in ('neck', 'decode_head', 'auxiliary_head'):
        if cfg.model.get(key):
            cfg.model[key].in_channels = [8] * 4 if key != 'auxiliary_head' else 8
    with scope_of_library(cfg):
        model = build_model(cfg)
    with scope_of_library(cfg), pretended_gpu() as device:
        model = model.to(device)
        data = model.train().data_preprocessor(random_batch(cfg, 64), True)
        losses = model(**data, mode='loss')
        model.parse_losses(losses)[0].backward()
        assert all(
            isinstance(parameter.grad, GpuTensor) for parameter in model.parameters() if parameter.grad is not None
        )
        assert sum(parameter.grad is None for parameter in model.parameters()) == 0
        with torch.no_grad():
            for predicts in (model.eval(), fcvit_mm.optimize_for_inference(model.eval())):
                for sample in predicts.test_step(random_batch(cfg, 64)):
                    found = sample.pred_instances.bboxes if 'detection' in config else sample.pred_sem_seg.data
                    assert found.device == device
