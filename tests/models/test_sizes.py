"""Inputs of any size, shape, layout and batch, optimized for inference or not; and how much memory they take.

The suite does small ones, and 2048x2048 where that takes a few seconds. ``LONG_SIZES=1 python -m pytest
tests/models/test_sizes.py`` does 2048x2048 and 64x4096 for every network, both layouts, optimized or not: minutes, most
of them for the attention of ViT and CaiT, whose time grows with the square of the number of pixels.
"""

import importlib
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, build, images, randomize_norms

import fcvit_mm
from fcvit_mm.ops import measured, native

SIZES = [(1, 1), (3, 200), (200, 3), (37, 61)]
LONG = bool(os.environ.get('LONG_SIZES'))
#: Attention among all tokens: 2048x2048 takes too long for the suite.
GLOBAL_ATTENTION = ('vit', 'cait')
LARGE = [(name, (2048, 2048)) for name in NETWORKS if LONG or name not in GLOBAL_ATTENTION]
LARGE += [(name, (64, 4096)) for name in NETWORKS if LONG]
MIB = 2**20
BENCHMARK = Path(__file__).parents[2] / 'dev' / 'benchmark'

every_network = pytest.mark.parametrize('name', NETWORKS)


@pytest.fixture(scope='module')
def models():
    """Name of a network -> the network, and the same optimized for inference."""
    made = {}

    def get(name):
        if name not in made:
            model = randomize_norms(build(NETWORKS[name]))
            made[name] = model, fcvit_mm.optimize_for_inference(model, images(64, 64))
        return made[name]

    return get


def assert_maps(model, outputs, x):
    """Check the number, the shapes and the layout of the maps, and that they are finite."""
    assert len(outputs) == len(model.out_channels)
    for output, channels, stride in zip(outputs, model.out_channels, model.out_strides):
        assert output.shape == (len(x), channels, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
        assert output.isfinite().all()
        assert output.is_contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def assert_close(found, expected):
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * max(1, other.abs().max().item()))


def layouts(x):
    return x, x.contiguous(memory_format=torch.channels_last)


@every_network
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('size', SIZES, ids=str)
@torch.no_grad()
def test_any_size_in_both_layouts_optimized_or_not(models, name, size, batch):
    model, optimized = models(name)
    expected = model(images(*size, batch=batch))
    for x in layouts(images(*size, batch=batch)):
        for network in (model, optimized):
            outputs = network(x)
            assert_maps(model, outputs, x)
            assert_close(outputs, expected)


@every_network
@torch.no_grad()
def test_batch_of_64(models, name):
    x = images(24, 40, batch=64)
    expected = [torch.cat(maps) for maps in zip(*map(models(name)[0], x.split(16)))]
    for network in models(name):
        for given in layouts(x):
            outputs = network(given)
            assert_maps(models(name)[0], outputs, given)
            assert_close(outputs, expected)


@pytest.mark.parametrize('name, size', LARGE, ids=str)
@torch.no_grad()
def test_large_images(models, name, size):
    """Only the optimized network, to save time; with LONG_SIZES=1 both networks in both layouts."""
    model, optimized = models(name)
    x = images(*size, batch=1)
    expected = optimized(x)
    assert_maps(model, expected, x)
    if LONG:
        for given in layouts(x):
            for network in (model, optimized):
                outputs = network(given)
                assert_maps(model, outputs, given)
                assert_close(outputs, expected)


@every_network
@torch.no_grad()
def test_one_row_of_many_pixels(models, name):
    for size in ((1, 2048), (2048, 1)):
        x = images(*size, batch=1)
        assert_maps(models(name)[0], models(name)[1](x), x)


def peak_of(model, x):
    """Return the peak memory of a forward pass in bytes."""
    from measure import peak_growth

    with torch.no_grad():
        model(x)
        return peak_growth(lambda: model(x), torch.device('cpu'))


FCVIT = dict(arch=dict(depths=(1, 1, 1, 1), channels=(64,) * 4, mlp_ratios=(8,) * 4), out_indices=0)
CAIT = dict(arch=dict(depths=(1, 1), channels=(24, 24), num_heads=(3, 3)), out_type='cls_token')
#: Network, arguments, size of the image, what computes in slices, bytes that the peak is counted in, bound.
BOUNDS = [
    # In maps of the stem. Two are the residual and its norm, two the sum over slices and what is added to it, and two
    # slices of 64 channels are as large: 6. With whole expanded maps, of 8 times the size, it would be 18 and more.
    ('FCViT', FCVIT, (512, 1024), 'fcvit_mm.ops.channel_mixer', 128 * 256 * 64 * 4, 8),
    # In slices: some forms of one live at a time, and the tokens.
    ('CaiT', CAIT, (512, 768), 'fcvit_mm.models.timm_blocks', 8 * MIB, 8),
]


def peaks(benchmark_path):
    """Return, for each of ``BOUNDS``, the peak of the optimized network, with PyTorch's kernels, and without slices.

    Run in a separate process. No implementation is chosen by measurement, which would consider time alone.
    """
    sys.path.insert(0, benchmark_path)
    torch.set_num_threads(1)
    measured.TUNED_CPUS = ((torch.backends.cpu.get_cpu_capability(), ''),)
    found = []
    for network, arguments, size, module, unit, _ in BOUNDS:
        model = fcvit_mm.optimize_for_inference(getattr(fcvit_mm, network)(**arguments), images(64, 64))
        x = images(*size, batch=1)
        usual = peak_of(model, x)
        native.available, available = (lambda: False), native.available
        sliced = peak_of(model, x)
        importlib.import_module(module).SLICE_BYTES = 2**40
        found.append(tuple(peak / unit for peak in (usual, sliced, peak_of(model, x))))
        native.available = available
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='memory of a process is measured with glibc')
def test_memory_is_bounded(monkeypatch):
    """The bounds of docs/reliability.md hold; without slices they would be exceeded."""
    monkeypatch.syspath_prepend(str(BENCHMARK))
    # The process finds the function by its module's name alone: model_index installs a package called tests.
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    peaks = importlib.import_module(Path(__file__).stem).peaks
    found = importlib.import_module('measure').in_child(peaks, str(BENCHMARK))
    assert found is not None, 'the process that measures ended before it could tell'
    for (network, *_, bound), (usual, sliced, whole) in zip(BOUNDS, found):
        assert max(usual, sliced) < bound < whole, (network, found)
