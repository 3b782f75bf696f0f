"""Batch norm over processes is batch norm of all their images."""

import pytest
import torch
import torch.nn.functional as F
from harness import run_ranks

from fcvit_mm.mmcv_ext import operators

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def sync_batch_norm(x, mean, var, weight, bias, mode='default'):
    """Call mmcv's function with a momentum of 0.3, for one process, which needs no process group."""
    from mmcv.ops.sync_bn import SyncBatchNormFunction

    return SyncBatchNormFunction.apply(x, mean, var, weight, bias, 0.3, 1e-3, None, 1, mode)


@pytest.mark.parametrize('mode', ['default', 'N'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_synchronized_batch_norm_of_one_process_is_batch_norm(mode, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 3, 4, 5, generator=generator) + 1).to(dtype)
    weight, bias = torch.rand(2, 3, generator=generator).unbind()
    found, expected = [], []
    for results in (found, expected):
        inputs = [each.clone().requires_grad_() for each in (x, weight, bias)]
        mean, var = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
        if results is found:
            y = sync_batch_norm(inputs[0], mean, var, *inputs[1:], mode)
        else:
            y = F.batch_norm(inputs[0].float(), mean, var, *inputs[1:], True, 0.3, 1e-3)
        assert y.dtype == (dtype if results is found else torch.float32)
        results += [y, mean, var, *torch.autograd.grad(y.float().pow(3).sum(), inputs)]
    tolerance = {} if dtype == torch.float32 else dict(rtol=5e-3, atol=2e-2)
    for got, want in zip(found, expected):
        torch.testing.assert_close(got.float(), want.float(), **tolerance)


def test_synchronized_batch_norm_of_an_empty_batch_keeps_its_statistics():
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    mean, var = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    y = sync_batch_norm(x, mean, var, torch.ones(3), torch.zeros(3), 'N')
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert mean.tolist() == [0.5, 1.0, 2.0] and var.tolist() == [1.0, 2.0, 3.0]


def test_synchronized_batch_norm_counts_the_batches_of_all_processes():
    x = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
    running = [torch.zeros(3), torch.zeros(3)]
    norm, std, output = torch.zeros_like(x), torch.zeros(3), torch.zeros_like(x)
    operators.sync_bn_forward_output(x, mean, var, None, None, *running, norm, std, output, 0.0, 1.0, 4)
    torch.testing.assert_close(running, [mean, torch.cat([x] * 4).var((0, 2))])
    torch.testing.assert_close(output, (x - mean[:, None]) / x.std((0, 2), correction=0)[:, None])
    operators.sync_bn_forward_output(x, mean, var, None, None, None, None, norm, std, output, 0.0, 1.0, 4)
    torch.testing.assert_close(output, norm)


#: Trains on its process's images with MMSyncBN, and on all images with BatchNorm.
RANK = """
import copy, os, sys
import torch
import torch.distributed as dist
from mmcv.ops import SyncBatchNorm, sync_bn
from torch import nn
from fcvit_mm.mmcv_ext import operators

sync_bn.ext_module = operators
dist.init_process_group('gloo')
rank, ranks = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
steps = [3 * torch.randn(4, 2, 5, 4, generator=generator) + 1 for _ in range(3)]
torch.manual_seed(1)
alone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
net = copy.deepcopy(alone)
for index in (1, 4):
    net[index] = SyncBatchNorm(alone[index].num_features, stats_mode=sys.argv[1])
net.load_state_dict(alone.state_dict())
ddp = nn.parallel.DistributedDataParallel(net)
for x in steps:
    for model, images in ((alone, x), (ddp, x.chunk(ranks)[rank])):
        y = model(images)
        model.zero_grad()
        y.pow(3).mean().backward()
        if model is ddp:
            torch.testing.assert_close(y, expected.chunk(ranks)[rank])
            for one, other in zip(net.parameters(), alone.parameters()):
                torch.testing.assert_close(one.grad, other.grad)
        expected = y.detach()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
torch.testing.assert_close(net.state_dict(), alone.state_dict())
print('compared', rank)
"""


@pytest.mark.parametrize('mode', ['default', 'N'])
def test_synchronized_batch_norm_of_two_processes_is_batch_norm_of_all_images(mode, tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    done = run_ranks(2, str(script), mode)
    assert [process.stdout.count(f'compared {rank}') for rank, process in enumerate(done)] == [1, 1]
