"""Properties of every network: finite in half precision, deterministic, independent of the other images."""

from functools import partial

import pytest
import torch
from networks import NETWORKS as FAMILY
from networks import build as build_row
from networks import build_fcvit

#: How a small network of each kind is built, FCViTs with layer scales that let every part count.
NETWORKS = {
    'fcvit': partial(build_fcvit, layer_scale_init_value=0.5),
    'fcvit without context': partial(build_fcvit, layer_scale_init_value=0.5, global_context=False),
    'fcvit with attention': partial(
        build_fcvit, layer_scale_init_value=0.5, spatial_attention=True, channel_attention=True
    ),
    **{name: partial(build_row, row) for name, row in FAMILY.items() if name != 'fcvit'},
}
every_network = pytest.mark.parametrize('network', NETWORKS)


def build(network, **options):
    return NETWORKS[network](**options)


def images(number=4, size=64, seed=1):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected, rtol):
    """Compare to ``rtol`` of the largest value of each map."""
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=rtol * other.abs().max().item())


def assert_same(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@every_network
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_large_inputs_stay_finite_in_half_precision(network, dtype, autocast):
    """With weights in half precision, and under autocast."""
    model = build(network).eval()
    if dtype == torch.float16 and tuple(map(int, torch.__version__.split('.')[:2])) < (2, 4):
        pytest.skip('float16 on CPUs came with torch 2.4')
    x = 10 * images(2)
    with torch.no_grad():
        if autocast:
            with torch.autocast('cpu', dtype):
                outputs = model(x)
        else:
            outputs = model.to(dtype)(x.to(dtype))
    assert all(torch.isfinite(output).all() and output.abs().max() > 0 for output in outputs)


def train(network):
    model = build(network, drop_path_rate=0.3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(2)
    for step in range(2):
        loss = sum(output.square().mean() for output in model(images(seed=step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*model.state_dict().values(), loss.detach()]


@every_network
def test_training_with_a_seed_is_deterministic(network):
    first, second = train(network), train(network)
    assert_same(first, second)


@every_network
def test_training_and_evaluation_agree(network):
    """Without drop path and with the statistics of the batch, they are the same function."""
    model = build(network)
    sizes = {}
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # running statistics are those of all batches so far: of this one
            module.register_forward_pre_hook(
                lambda norm, args: sizes.update({norm: args[0].numel() // args[0].shape[1]})
            )
    x = images(8)
    with torch.no_grad():
        trained = model.train()(x)
        for norm, n in sizes.items():
            norm.running_var *= (n - 1) / n  # the running variance is the unbiased one, the batch's is not
        evaluated = model.eval()(x)
    assert_close(evaluated, trained, rtol=1e-4)
    with torch.no_grad():
        assert_same(model(x), evaluated)
        norm_eval = build(network, norm_eval=True)
        assert_close(norm_eval.train()(x), norm_eval.eval()(x), rtol=1e-6)


@every_network
def test_order_of_the_batch_does_not_matter(network):
    model, x = build(network).eval(), images()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        assert_close(model(x[order]), [output[order] for output in model(x)], rtol=1e-6)


@every_network
def test_outputs_do_not_depend_on_other_images(network):
    """Nor on their number. Convolutions use other algorithms for other batch sizes, hence the tolerance."""
    model, x = build(network).eval(), images()
    with torch.no_grad():
        expected = [output[:1] for output in model(x)]
        for others in (x[:1], torch.cat([x[:1], 1000 * images(2, seed=5)]), x[:1].repeat(7, 1, 1, 1)):
            assert_close([output[:1] for output in model(others)], expected, rtol=1e-5)
