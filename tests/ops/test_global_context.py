"""The global context; the common tests of all operations are in test_implementations.py."""

import os

import pytest
import torch
from operations import CHANNELS, cast, random_call

from fcvit_mm.ops import add_global_context, channel_means, depthwise_conv2d, normalized_similarity

X = torch.ones(2, 16, 4, 4)


def test_channel_means_are_in_float32_at_least():
    x = torch.randn(2, 3, 40, 40)
    for dtype, expected in ((torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        means = channel_means(x.to(dtype))
        assert means.dtype == expected and means.shape == (2, 3)
        torch.testing.assert_close(means.double(), x.to(dtype).double().mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradients_of_channel_means(dtype, layout):
    x = torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn(2, 3)
    (grad,) = torch.autograd.grad((channel_means(x) * slope).sum(), x)
    (want,) = torch.autograd.grad((x.double().mean((2, 3)) * slope).sum(), x)
    torch.testing.assert_close(grad, want)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(channel_means, x) and torch.autograd.gradgradcheck(channel_means, x)
    # A view of the means' gradient: no map is written.
    assert grad.stride()[2:] == (0, 0)
    # Joined with another gradient of the map, as in a network.
    (grad,) = torch.autograd.grad((channel_means(x) * slope).sum() + x.float().square().sum(), x)
    torch.testing.assert_close(
        grad.float(), (want + 2 * x).float(), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
    )


def test_similarity_is_normalized_over_heads_and_positions():
    x = torch.randn(2, 8, 5, 6).half()
    similarity = normalized_similarity(x, channel_means(x), 4, 0.0)
    assert similarity.dtype == torch.float32 and similarity.shape == (2, 4, 5, 6)
    torch.testing.assert_close(similarity.mean((1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(similarity.std((1, 2, 3)), torch.ones(2))


def test_similarity_of_a_single_value_is_near_zero():
    x = torch.randn(2, 8, 1, 1)
    assert normalized_similarity(x, channel_means(x), 1, 1e-5).abs().max() < 1e-1


@pytest.mark.skipif(torch.__version__ < '2.2', reason='needs bfloat16 gradients on CPU')
def test_autocast_on_cpu():
    """Under autocast the convolutions take bfloat16, the similarity stays in float32."""
    args = cast(random_call(add_global_context, (2, 6, 6)), torch.float32, 'channels_last')
    expected = add_global_context(*args)
    with torch.autocast('cpu', torch.bfloat16):
        got = add_global_context(*args)
        convolved = depthwise_conv2d(args[0], torch.randn(CHANNELS, 1, 3, 3))
    assert got.dtype == torch.float32 and convolved.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    'args, message',
    [
        (
            (torch.ones(2, 8), torch.ones(2, 16), 4, torch.ones(4), torch.ones(4)),
            r'means has the shape \(2, 8\), but x of shape \(2, 16, 4, 4\) takes \(2, 16\)',
        ),
        (
            (torch.ones(2, 16), torch.ones(2, 16), 5, torch.ones(5), torch.ones(5)),
            'num_heads=5 does not divide the 16 channels',
        ),
        (
            (torch.ones(2, 16), torch.ones(2, 16), 0, torch.ones(0), torch.ones(0)),
            'num_heads=0 does not divide the 16 channels',
        ),
        (
            (torch.ones(2, 16), torch.ones(2, 16), 4, torch.ones(4), torch.ones(1)),
            r'add_global_context: rescale_bias has the shape \(1,\), .* takes \(4,\)',
        ),
    ],
)
def test_refuses_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        add_global_context(X, *args, 1e-5)


def test_vectors_of_another_dtype_than_the_map():
    """As after a user's own layer in float64: the result has the dtype of the map."""
    x, *others = cast(random_call(add_global_context, (2, 5, 4)), torch.float64, 'channels_last')
    expected = add_global_context.reference(x, *others)
    for place in (0, 1, 3, 4):
        args = [arg.float() if isinstance(arg, torch.Tensor) and i != place else arg for i, arg in enumerate(others)]
        got = add_global_context(x.float(), *args)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < '2.5', reason='PyTorch registers operators with derivatives since 2.5')
@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('heads', [1, 4])
@pytest.mark.parametrize('size', [(2, 9, 8), (3, 1, 1)])
def test_compiled_gradients_agree_with_the_reference(size, heads, dynamic):
    """Compiled, the operation is one node with explicit formulas for its derivatives."""
    x, means, context, *_, eps = cast(random_call(add_global_context, size), torch.float64, 'channels_last')
    args = [x, means, context, heads, torch.randn(heads).double(), torch.randn(heads).double(), eps]
    leaves = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    for i in leaves:
        args[i] = args[i].detach().requires_grad_()
    weigh = torch.randn_like(x)

    def gradients(function):
        output = function(*args)
        return output, torch.autograd.grad((output * weigh).sum(), [args[i] for i in leaves])

    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = gradients(
        torch.compile(lambda *given: add_global_context(*given), backend=record, fullgraph=True, dynamic=dynamic)
    )
    calls = [node for node in graphs[0].graph.nodes if node.op == 'call_function']
    # torch 2.14 compares sizes in the graph, by Python's operators.
    assert [node.name for node in calls if node.target.__module__ != '_operator'] == ['context_matmul_default']
    torch.testing.assert_close(compiled, gradients(add_global_context.reference))
    with torch.no_grad():  # for inference compilers take the definition apart
        torch.compile(lambda *given: add_global_context(*given), backend=record, fullgraph=True)(*args)
    assert 'context_matmul' not in str(graphs[1].graph)


class Compiled(torch.nn.Module):
    """The operation after a convolution, as in a network."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.weight, self.bias = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.zeros(4))

    def forward(self, x):
        x = self.conv(x.contiguous(memory_format=torch.channels_last))
        means = channel_means(x)
        return add_global_context(x, means, means, 4, self.weight, self.bias, 1e-5).contiguous()


@pytest.mark.skipif(not os.environ.get('LONG_COMPILES'), reason='takes half a minute: LONG_COMPILES=1 does it')
def test_training_compiles_once_for_all_sizes():
    """With the reference Inductor compiles again for each image size, which takes minutes for a network."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = Compiled()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for size in ((2, 3, 48, 32), (3, 3, 32, 56)):
        x = torch.randn(size)
        output = compiled(x)
        output.square().sum().backward()
        torch.testing.assert_close(output, module(x), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
