"""Models optimized for inference give the same outputs. Common tests of all networks: models/test_family.py."""

import copy
import pickle
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn as nn
from networks import FCVIT_OPTIONS as OPTIONS
from networks import build_fcvit as micro
from networks import randomize_norms as trained
from torch.nn.utils import parametrize

import fcvit_mm
from fcvit_mm.ops import conditions, native, use_ops


def images(channels=3, size=(64, 40)):
    torch.manual_seed(2)
    return torch.randn(2, channels, *size)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_optimized_outputs_agree(options):
    model = trained(micro(**options))
    x = images(model.in_channels)
    optimized = fcvit_mm.optimize_for_inference(model)
    with use_ops('reference'), torch.no_grad():
        expected = model(x)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            for want, have in zip(expected, optimized(x.contiguous(memory_format=layout))):
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_norms_and_scales_are_fused():
    model = trained(micro())
    optimized = fcvit_mm.optimize_for_inference(model)
    assert not [name for name, module in optimized.named_modules() if isinstance(module, nn.BatchNorm2d)]
    block = optimized.stages[2].blocks[1]
    assert block.layer_scale2 is None and block.norm2.weight is None
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    assert not optimized.training


def test_optimizing_twice_changes_nothing():
    once = fcvit_mm.optimize_for_inference(trained(micro()))
    twice = fcvit_mm.optimize_for_inference(once, images())
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values()))


def test_original_model_is_not_modified():
    model = trained(micro()).train()
    before = copy.deepcopy(model.state_dict())
    fcvit_mm.optimize_for_inference(model, images())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_optimized_model_can_be_pickled():
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    loaded = pickle.loads(pickle.dumps(optimized))
    with torch.no_grad():
        for want, have in zip(optimized(images()), loaded(images())):
            assert torch.equal(want, have)


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
def test_packed_weights_follow_the_weights_of_the_layers(monkeypatch):
    """They are used without gradients or autocast, packed again for changed weights, and never saved."""
    used = []
    for name in ('bottleneck', 'channel_mixer', 'fcvit_block'):
        whole = getattr(native, name)

        def count(x, weight, *others, _whole=whole, _name=name):
            used.append((_name, weight.ndim))
            return _whole(x, weight, *others)

        monkeypatch.setattr(native, name, count)
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    x = images()
    with torch.no_grad():
        optimized(x)
        assert set(used) == {('fcvit_block', 1)}
        block = optimized.stages[0].blocks[0]
        block.norm1.eps *= 2  # so that the operator of the complete block does not fit the layers
        optimized(x)
        block.norm1.eps /= 2
    assert set(used) == {('fcvit_block', 1), ('bottleneck', 3), ('channel_mixer', 3)}
    for change in (
        lambda: block.channel_mixer.fc2.weight.mul_(2),
        lambda: block.token_mixer.mixes[0].fc1.weight.neg_(),
        lambda: optimized.load_state_dict({key: value * 0.9 for key, value in optimized.state_dict().items()}),
    ):
        with torch.no_grad():
            before = optimized(x)
            change()
            have = optimized(x)
            with use_ops('reference'):
                want = optimized(x)
        assert not torch.allclose(before[0], have[0])
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
    assert not [key for key in optimized.state_dict() if 'packed' in key]
    for copied in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert copied.stages[0].blocks[0].channel_mixer.fc1.packed._made is None
        assert copied.stages[0].blocks[0].packed._made is None

    used.clear()
    optimized.requires_grad_(True)
    optimized(x)[0].sum().backward()
    assert block.channel_mixer.fc1.weight.grad is not None
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        optimized(x)
    with torch.no_grad():
        optimized.double()(x.double())
    assert set(used) <= {('fcvit_block', 1), ('channel_mixer', 4), ('bottleneck', 4)}


HOOKED = nn.Identity()
HOOKED.register_forward_hook(lambda *args: args[2] + 1)
#: Changes of a block of an optimized network after its first forward pass.
CHANGES = {
    'nothing': lambda block: None,
    'attributes': lambda block: [
        delattr(block.channel_mixer.fc1, 'output_padding'),
        setattr(block.channel_mixer.fc1, 'note', 'another'),
    ],
    'other_hooks': lambda block: [
        setattr(block.channel_mixer.fc1, '_forward_hooks', OrderedDict()),
        block.channel_mixer.fc1.register_forward_hook(lambda *args: args[2] + 1),
    ],
    'hooks_of_another': lambda block: setattr(block.channel_mixer.fc1, '_forward_hooks', HOOKED._forward_hooks),
    'hook': lambda block: block.token_mixer.mixes[0].dwconv.register_forward_hook(lambda *args: args[2] + 1),
    'activation': lambda block: setattr(block.token_mixer.mixes[1], 'act2', torch.nn.ReLU()),
    'context': lambda block: setattr(block.token_mixer.mixes[0], 'global_context', None),
    'norm': lambda block: setattr(block, 'norm2', torch.nn.Identity()),
    'fewer_mixes': lambda block: block.token_mixer.mixes.pop(0),
    'forward': lambda block: setattr(block.token_mixer, 'forward', lambda x: x * 2),
    'parametrization': lambda block: parametrize.register_parametrization(
        block.channel_mixer.fc1, 'weight', torch.nn.Hardtanh()
    ),
    'weight_norm': lambda block: torch.nn.utils.weight_norm(block.token_mixer.mixes[0].fc2),
    'other_weights': lambda block: setattr(
        block.norm1, 'weight', torch.nn.Parameter(torch.ones_like(block.norm1.weight), requires_grad=False)
    ),
    'in_place': lambda block: block.token_mixer.mixes[1].global_context.rescale_bias.add_(1),
    'no_scale': lambda block: setattr(block, 'layer_scale1', None),
    'eps': lambda block: setattr(block.norm1, 'eps', 0.5),
    'both_eps': lambda block: [setattr(norm, 'eps', 0.5) for norm in (block.norm1, block.norm2)],
    'gelu': lambda block: setattr(block.token_mixer.mixes[0].act1, 'approximate', 'tanh'),
    'dilation': lambda block: vars(block.token_mixer.mixes[0].dwconv).update(dilation=(2, 2), padding=(10, 10)),
    'unweighted': lambda block: setattr(block.token_mixer.mixes[1].global_context, 'weighted', False),
}


@pytest.mark.skipif(
    not native.available() or torch.__version__ < '2.4',
    reason='no compiled CPU kernels here, or Dynamo before torch 2.4',
)
@pytest.mark.parametrize('dynamic', [None, True])
def test_compilers_record_whole_blocks(dynamic):
    """One operator per block, for any size; changed weights take effect, and hooks added before compiling."""
    recorded = []

    def backend(graph, inputs):
        recorded.append([node for node in graph.graph.nodes if 'fcvit_block' in str(node.target)])
        return graph.forward

    torch._dynamo.reset()
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    compiled = torch.compile(optimized, backend=backend, dynamic=dynamic, fullgraph=True)
    first = optimized.stages[0].blocks[0]

    def compare(x):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), optimized(x), rtol=1e-5, atol=1e-5)

    for size in ((1, 32, 32), (2, 40, 33)):
        compare(torch.randn(size[0], 3, *size[1:]))
    assert {len(nodes) for nodes in recorded} == {sum(len(stage.blocks) for stage in optimized.stages)}
    with torch.no_grad():
        first.channel_mixer.fc2.weight.mul_(1.5)
    compare(images())
    first.token_mixer.mixes[0].dwconv.register_forward_hook(lambda *args: args[2] * 2)
    torch._dynamo.reset()
    compare(images())
    assert len(recorded[-1]) == len(recorded[0]) - 1


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_changed_blocks_agree_with_the_reference(change):
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    x = images()
    with torch.no_grad():
        before = optimized(x)
        change(optimized.stages[1].blocks[0])
        have = optimized(x)
        with use_ops('reference'):
            want = optimized(x)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(before[0], have[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(before[1], have[1]) == (change in (CHANGES['nothing'], CHANGES['attributes']))


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
def test_packed_weights_with_fake_tensors_and_several_threads():
    from torch._subclasses.fake_tensor import FakeTensorMode

    optimized, x = fcvit_mm.optimize_for_inference(trained(micro())), images()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shapes = [tuple(output.shape) for output in optimized(mode.from_tensor(x))]

    def outputs(_):
        with torch.no_grad():
            return optimized(x)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(outputs, range(8)))
    assert [tuple(output.shape) for output in results[0]] == shapes
    with torch.no_grad(), use_ops('reference'):
        want = optimized(x)
    for have in results:
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('grad', [False, True])
def test_optimized_model_can_be_traced(grad):
    """Nothing needs a gradient, so the check of torch.jit.trace, without gradients, finds the same graph."""
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(optimized, images())
        for size in ((64, 40), (50, 71)):
            for want, have in zip(optimized(images(size=size)), traced(images(size=size))):
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < '2.5', reason='torch.export was a prototype before')
def test_optimized_model_can_be_exported():
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    x = images()
    with torch.no_grad():
        exported = torch.export.export(optimized, (x,)).module()
        for want, have in zip(optimized(x), exported(x)):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_half_precision_on_a_cpu_without_it(monkeypatch):
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: dtype not in conditions.HALF)
    model = trained(micro())
    half = copy.deepcopy(model).bfloat16()
    optimized = pickle.loads(pickle.dumps(fcvit_mm.optimize_for_inference(half, images().bfloat16())))
    assert next(optimized.parameters()).dtype == torch.float32
    with torch.no_grad():
        for want, have in zip(model(images()), optimized(images().bfloat16())):
            assert have.dtype == torch.bfloat16
            torch.testing.assert_close(have.float(), want, rtol=0, atol=5e-2 * want.abs().max().item())


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
@pytest.mark.parametrize('is_tuned', [True, False])
def test_half_precision_where_the_kernels_are_faster_in_float32(monkeypatch, is_tuned):
    """Only FCViT, on CPUs that the kernels were tuned on."""
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: True)
    monkeypatch.setattr('fcvit_mm.inference.optimize.is_untuned', lambda x: not is_tuned)
    dwnet = fcvit_mm.DWNet(dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8)))
    for model, expected in ((trained(micro()), is_tuned), (dwnet.eval(), False)):
        optimized = fcvit_mm.optimize_for_inference(model.bfloat16())
        assert (list(optimized.parameters())[-1].dtype == torch.float32) == expected
        with torch.no_grad():
            assert {output.dtype for output in optimized(images().bfloat16())} == {torch.bfloat16}


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
@pytest.mark.parametrize('has_instructions', [True, False])
@pytest.mark.parametrize('way', ['autocast', 'weights'])
def test_bfloat16_products_use_bfloat16_instructions(monkeypatch, way, has_instructions):
    """With an error not larger than PyTorch's; without the instructions, in float32."""
    if has_instructions and not native.multiplies_bfloat16():
        pytest.skip('no instructions for bfloat16')
    monkeypatch.setattr(native, 'multiplies_bfloat16', lambda: has_instructions)
    for module in ('inference.optimize', 'models.fcvit_packed'):
        monkeypatch.setattr(f'fcvit_mm.{module}.is_untuned', lambda x: False)
    model, x = trained(micro()), images()
    dtypes, run = [], native.fcvit_block

    def block(x, *args):
        dtypes.append((x.dtype, args[5][0].dtype))
        return run(x, *args)

    monkeypatch.setattr(native, 'fcvit_block', block)
    with torch.no_grad():
        want = model(x)
        if way == 'autocast':
            optimized = fcvit_mm.optimize_for_inference(model)
            with torch.autocast('cpu', torch.bfloat16):
                have, of_pytorch = optimized(x), model(x)
        else:
            half = copy.deepcopy(model).bfloat16()
            optimized = pickle.loads(pickle.dumps(fcvit_mm.optimize_for_inference(half)))
            have, of_pytorch = optimized(x.bfloat16()), half(x.bfloat16())
            assert {output.dtype for output in have} == {torch.bfloat16}
    products = torch.bfloat16 if has_instructions else torch.float32
    assert dtypes == [(torch.float32, products)] * sum(len(stage.blocks) for stage in model.stages)
    for exact, output, other in zip(want, have, of_pytorch):
        assert (output - exact).norm() <= 1.1 * (other - exact).norm()


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
def test_autocast_on_untuned_cpus_uses_pytorch(monkeypatch):
    monkeypatch.setattr('fcvit_mm.models.fcvit_packed.is_untuned', lambda x: True)
    monkeypatch.setattr(native, 'fcvit_block', None)
    optimized = fcvit_mm.optimize_for_inference(trained(micro()))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert all(output.isfinite().all() for output in optimized(images()))


def test_model_around_a_backbone():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = micro(out_indices=-1)
            self.head = nn.Linear(40, 5)

        def forward(self, x):
            return dict(scores=self.head(self.backbone(x)[0].mean((2, 3))))

    model = trained(Classifier())
    optimized = fcvit_mm.optimize_for_inference(model, images())
    with torch.no_grad():
        torch.testing.assert_close(optimized(images())['scores'], model(images())['scores'], rtol=1e-4, atol=1e-4)


def test_model_with_nothing_to_optimize_is_refused():
    with pytest.raises(ValueError, match='Linear contains nothing to optimize, expected FCViT, DWNet or .*KNOWN'):
        fcvit_mm.optimize_for_inference(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match='cuda_graphs=True, but Linear contains no backbone of fcvit_mm to capture: omit'
    ):
        fcvit_mm.optimize_for_inference(nn.Linear(2, 2), cuda_graphs=True)


def test_outputs_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr('fcvit_mm.inference.optimize.TOLERANCE', 0.0)
    with pytest.raises(RuntimeError, match='the optimized FCViT differs from the model by .*please report this'):
        fcvit_mm.optimize_for_inference(trained(micro()), images())
