"""Operators from torchvision in the place of mmcv's compiled ones: the same values and gradients."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import ROOT, run_ranks
from mmcv_cases import CASES

from fcvit_mm.mmcv_ext import MMCVOperatorError, operators

mmcv = pytest.importorskip('mmcv')
pytest.importorskip('torchvision')


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Let mmcv's operators call ours, whatever build of mmcv is installed."""
    importlib.import_module('mmcv.ops')
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', operators)


@pytest.fixture(scope='module')
def recorded():
    with np.load(ROOT / 'tests' / 'data' / 'mmcv_ops.npz') as file:
        return dict(file)


@pytest.mark.parametrize('name', CASES)
def test_gives_what_the_compiled_build_gives(name, recorded):
    found = CASES[name]()
    expected = [recorded[f'{name}/{index}'] for index in range(len(found))]
    assert f'{name}/{len(found)}' not in recorded
    for got, want in zip(found, expected):
        torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=1e-4, atol=1e-5)


def focal(logits, classes, gamma=2.0, alpha=0.25):
    """Sigmoid focal loss as its paper (arXiv 1708.02002, equation 5) has it."""
    hit = F.one_hot(classes, logits.shape[1] + 1)[:, :-1].bool()
    chance = torch.where(hit, logits.sigmoid(), 1 - logits.sigmoid())
    return -torch.where(hit, alpha, 1 - alpha) * (1 - chance) ** gamma * chance.log()


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(weighted):
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.randn(7, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 3, 2, 1, 0, 2, 1] if weighted else [0, 4, 4, 1, 3, 2, 4])  # 4: background
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5]) if weighted else None
    expected = focal(logits, classes) * (weight[classes][:, None] if weighted else 1)
    found = sigmoid_focal_loss(logits, classes, 2.0, 0.25, weight, 'sum')
    torch.testing.assert_close(found, expected.sum())
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected.sum())))


def test_softmax_focal_loss():
    from mmcv.ops import softmax_focal_loss

    logits = torch.randn(6, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 4, 2, 1, 3, 3])
    chance = logits.softmax(1).gather(1, classes[:, None])
    expected = (-0.25 * (1 - chance) ** 2 * chance.log()).sum()
    found = softmax_focal_loss(logits, classes, 2.0, 0.25, None, 'sum')
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_roi_pool_takes_the_maximum_of_each_bin():
    from mmcv.ops import roi_pool

    x = torch.randn(2, 3, 8, 9, requires_grad=True, generator=torch.Generator().manual_seed(0))
    # The second covers 4x4 values from (2, 1) of the second image, the last none.
    regions = torch.tensor([[0.0, 0, 0, 8, 7], [1, 2, 1, 5, 4], [0, 5, 5, 3, 3]])
    found = roi_pool(x, regions, (2, 2), 1.0)
    inside = x[1, :, 1:5, 2:6]
    expected = torch.stack([inside[:, :2, :2], inside[:, :2, 2:], inside[:, 2:, :2], inside[:, 2:, 2:]], 1)
    torch.testing.assert_close(found[1].flatten(1), expected.amax((2, 3)))
    torch.testing.assert_close(found[0], F.adaptive_max_pool2d(x[0], 2))
    assert not found[2].any()
    (gradient,) = torch.autograd.grad(found[1].sum(), x)
    assert gradient.sum() == 12 and gradient[1, :, 1:5, 2:6].sum() == 12


def test_masked_convolution_is_a_convolution_where_the_mask_is_set():
    from mmcv.ops import MaskedConv2d

    torch.manual_seed(0)
    convolution = MaskedConv2d(3, 5, 3, padding=1)
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.5
    torch.testing.assert_close(
        convolution(x, mask), F.conv2d(x, convolution.weight, convolution.bias, padding=1) * mask
    )


@pytest.mark.parametrize('naive', [False, True])
def test_carafe_is_a_weighted_sum_over_windows(naive, monkeypatch):
    from mmcv.ops import carafe

    x = torch.randn(2, 4, 3, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(2, 2 * 9, 6, 10, requires_grad=True, generator=torch.Generator().manual_seed(1))
    if naive:
        inputs = [x.detach(), masks.detach()]
        found = x.new_empty(2, 4, 6, 10)
        operators.carafe_naive_forward(*inputs, found, 3, 2, 2)
    else:
        found = carafe(x, masks, 3, 2, 2)
    padded = F.pad(x, (1, 1, 1, 1))
    for image, channel, row, column in ((0, 0, 0, 0), (1, 3, 5, 9), (1, 2, 3, 4)):
        window = padded[image, channel, row // 2 : row // 2 + 3, column // 2 : column // 2 + 3].flatten()
        weights = masks[image, channel // 2 * 9 : channel // 2 * 9 + 9, row, column]
        torch.testing.assert_close(found[image, channel, row, column], window @ weights)
    if not naive:
        found.sum().backward()
        assert x.grad.abs().sum() > 0 and masks.grad.abs().sum() > 0


def test_deformable_attention_has_the_gradients_of_its_definition():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[4, 3], [2, 2]])
    starts = torch.tensor([0, 12])
    value = torch.randn(2, 16, 2, 4, requires_grad=True, generator=generator)
    places = torch.rand(2, 5, 2, 2, 3, 2, requires_grad=True, generator=generator)
    weights = torch.rand(2, 5, 2, 2, 3, requires_grad=True, generator=generator)
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(x.square().sum(), (value, places, weights)) for x in (found, expected)]
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('ratio', [0, 2])
def test_deformable_roi_pooling_without_offsets_is_roi_align(ratio):
    from mmcv.ops import deform_roi_pool, roi_align

    x = torch.randn(2, 3, 12, 11, requires_grad=True, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[0.0, 3, 5, 20, 33], [1, 10, 2, 41, 44], [0, 7, 7, 3, 3]])
    found = [deform_roi_pool(x, regions, offset, (3, 2), 0.25, ratio) for offset in (None, torch.zeros(3, 2, 3, 2))]
    expected = roi_align(x, regions[:2], (3, 2), 0.25, ratio, 'avg', True)
    for each in found:
        torch.testing.assert_close(each[:2], expected)
    grads = [torch.autograd.grad(y[:2].square().sum(), x)[0] for y in (found[1], expected)]
    torch.testing.assert_close(*grads)


def test_offsets_move_the_bins_of_deformable_roi_pooling():
    from mmcv.ops import deform_roi_pool, roi_align

    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    region = torch.tensor([[0.0, 4, 4, 8, 8]])
    offset = torch.zeros(1, 2, 1, 1)
    offset[0, :, 0, 0] = torch.tensor([5.0, -2.5])  # of 0.1 of the sides: 2 to the right, 1 up
    moved = torch.tensor([[0.0, 6, 3, 10, 7]])
    offset.requires_grad_()
    found = deform_roi_pool(x, region, offset, 1, 1.0, 2, 0.1)
    torch.testing.assert_close(found, roi_align(x, moved, 1, 1.0, 2, 'avg', True))
    step = 1e-2
    slope = torch.autograd.grad(found.sum(), offset)[0].flatten()
    for index in range(2):
        shifted = offset.detach().clone()
        shifted.view(-1)[index] += step
        change = (deform_roi_pool(x, region, shifted, 1, 1.0, 2, 0.1) - found).sum() / step
        torch.testing.assert_close(change.detach(), slope[index], rtol=0.05, atol=1e-3)


def sync_batch_norm(x, mean, var, weight, bias, mode='default'):
    """mmcv's, with a momentum of 0.3, of one process: it asks for no process group then."""
    from mmcv.ops.sync_bn import SyncBatchNormFunction

    return SyncBatchNormFunction.apply(x, mean, var, weight, bias, 0.3, 1e-3, None, 1, mode)


@pytest.mark.parametrize('mode', ['default', 'N'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_synchronised_batch_norm_of_one_process_is_batch_norm(mode, dtype):
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
def test_synchronised_batch_norm_of_two_processes_is_batch_norm_of_all_images(mode, tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    done = run_ranks(2, str(script), mode)
    assert [process.stdout.count(f'compared {rank}') for rank, process in enumerate(done)] == [1, 1]


def test_synchronised_batch_norm_of_an_empty_batch_keeps_its_statistics():
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    mean, var = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    y = sync_batch_norm(x, mean, var, torch.ones(3), torch.zeros(3), 'N')
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert mean.tolist() == [0.5, 1.0, 2.0] and var.tolist() == [1.0, 2.0, 3.0]


def test_synchronised_batch_norm_counts_the_batches_of_all_processes():
    x = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
    running = [torch.zeros(3), torch.zeros(3)]
    norm, std, output = torch.zeros_like(x), torch.zeros(3), torch.zeros_like(x)
    operators.sync_bn_forward_output(x, mean, var, None, None, *running, norm, std, output, 0.0, 1.0, 4)
    torch.testing.assert_close(running, [mean, torch.cat([x] * 4).var((0, 2))])
    torch.testing.assert_close(output, (x - mean[:, None]) / x.std((0, 2), correction=0)[:, None])
    operators.sync_bn_forward_output(x, mean, var, None, None, None, None, norm, std, output, 0.0, 1.0, 4)
    torch.testing.assert_close(output, norm)


def test_channels_last_maps_are_read_as_they_are():
    """torchvision's kernel takes any memory for contiguous."""
    from mmcv.ops import roi_align

    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[0.0, 1, 1, 6, 6]])
    torch.testing.assert_close(roi_align(x.to(memory_format=torch.channels_last), regions, 2), roi_align(x, regions, 2))


def test_nothing_to_suppress():
    from mmcv.ops import nms, soft_nms

    empty = torch.zeros(0, 4), torch.zeros(0)
    assert [len(x) for x in (*nms(*empty, 0.5), *soft_nms(*empty))] == [0, 0, 0, 0]


def lane(start, length, xs, rows=9):
    """A lane at ``rows`` rows: its first row, 0 to 1, how many it has, and x at each."""
    return [9.0, 9.0, start, 9.0, length, *([xs] * rows if isinstance(xs, float) else xs)]


def line_nms(*args):
    if not hasattr(mmcv.ops, 'line_nms'):
        pytest.skip('this mmcv has no line_nms')
    return mmcv.ops.line_nms(*args)


def lanes_kept(lanes, scores, thresh=5.0, top_k=10):
    keep, number, parents = line_nms(torch.tensor(lanes), torch.tensor(scores), thresh, top_k)
    assert len(keep) == len(parents) == len(lanes) and not keep[number:].any()
    return keep[:number].tolist(), parents.tolist()


def test_of_close_lanes_the_best_stays():
    lanes = [lane(0.0, 9.0, 10.0), lane(0.0, 9.0, 14.0), lane(0.0, 9.0, 18.0), lane(0.0, 9.0, 15.0)]
    # 3 is the best, 1 and 2 are within 5 of it; 0 is 5 from it, which is not below 5.
    assert lanes_kept(lanes, [0.5, 0.6, 0.7, 0.9]) == ([3, 0], [2, 1, 1, 1])
    assert lanes_kept(lanes, [0.5, 0.6, 0.7, 0.9], top_k=1) == ([3], [0, 1, 1, 1])
    assert lanes_kept(lanes, [0.9, 0.6, 0.7, 0.5]) == ([0, 2], [1, 2, 2, 2])


def test_lanes_are_compared_at_the_rows_that_both_have():
    far = [10.0] * 4 + [500.0] * 5
    lower, upper = lane(0.0, 4.0, 10.0), lane(0.5, 5.0, 10.0)
    assert lanes_kept([lower, upper], [0.9, 0.8])[0] == [0, 1]  # rows 0 to 3 and 4 to 8: none in common
    assert lanes_kept([lower, lane(0.375, 5.0, 10.0)], [0.9, 0.8])[0] == [0]  # row 3 is
    assert lanes_kept([lower, lane(0.0, 9.0, far)], [0.9, 0.8])[0] == [0]
    assert lanes_kept([lane(0.0, 5.0, 10.0), lane(0.0, 9.0, far)], [0.9, 0.8])[0] == [0, 1]
    assert lanes_kept([lane(0.0, 0.0, 10.0)] * 2, [0.9, 0.8])[0] == [0, 1]  # without rows


def test_no_lanes():
    keep, number, parents = line_nms(torch.zeros(0, 77), torch.zeros(0), 5.0, 4)
    assert len(keep) == number == len(parents) == 0


IMPORTS = r'from (mmcv\.ops[\w.]*) import (\([^)]*\)|[^\n]*)'
#: Parts of mmcv.ops that some stock config names by its type, of those that the libraries' code does not import.
BY_TYPE = {'mmdet': {'MMSyncBN', 'DeformRoIPoolPack', 'SAC', 'DCNv2', 'carafe'}, 'mmseg': set()}
#: Operators of files that the libraries use for others: of rotated boxes.
NOT_ASKED_FOR = r'\w*(rotated|quadri)'


def named_in_configs(package):
    """Return the parts of mmcv.ops that a library's stock configs name by their types."""
    from mmengine.registry import MODELS

    texts = [path.read_text(encoding='utf-8') for path in (package / '.mim' / 'configs').rglob('*.py')]
    types = {name for text in texts for name in re.findall(r"\btype='(?:mmcv\.)?(\w+)'", text)}
    parts = {name: MODELS.module_dict.get(name) or getattr(mmcv.ops, name, None) for name in sorted(types)}
    return {name: part for name, part in parts.items() if getattr(part, '__module__', '').startswith('mmcv.ops')}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_every_operator_that_the_library_imports_is_here(library):
    """Read from its code: what it imports of mmcv.ops, and which compiled operators the files of these ask for."""
    package = pytest.importorskip(library)
    files = [path for path in Path(package.__file__).parent.rglob('*.py') if '.mim' not in path.parts]
    found = [pair for path in files for pair in re.findall(IMPORTS, path.read_text(encoding='utf-8'))]
    parts = {(where, name.split(' as ')[0].strip()) for where, line in found for name in line.strip('()').split(',')}
    nms = 'line_nms' if hasattr(mmcv.ops, 'line_nms') else 'batched_nms'
    assert ('mmcv.ops', {'mmdet': nms, 'mmseg': 'PSAMask'}[library]) in parts
    named = named_in_configs(Path(package.__file__).parent)
    assert set(named) >= BY_TYPE[library]
    parts |= {(part.__module__, part.__name__) for part in named.values()}
    asked = set()
    for where, name in parts:
        if name:  # not after the last comma
            module = inspect.getmodule(getattr(importlib.import_module(where), name))
            asked |= set(re.findall(r'ext_module\.(\w+)', inspect.getsource(module)))
    assert len(asked) > 5
    missing = {name for name in asked if name not in vars(operators) and not re.fullmatch(NOT_ASKED_FOR, name)}
    assert not missing


def test_an_operator_that_torchvision_has_not_says_how_to_get_it():
    from mmcv.ops import box_iou_rotated, roi_align

    message = r'the operator {} of mmcv is not available.*MCV=compiled make setup.*pip install --no-build-isolation'
    with pytest.raises(MMCVOperatorError, match=message.format('box_iou_rotated')):
        box_iou_rotated(torch.ones(1, 5), torch.ones(1, 5))
    with pytest.raises(MMCVOperatorError, match=message.format("roi_align with pool_mode='max'")):
        roi_align(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max')


def test_reports_of_the_environment_name_the_operators():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'torchvision' in get_compiler_version() and get_compiling_cuda_version() == 'not compiled'
