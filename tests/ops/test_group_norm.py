"""The norm over whole images; the common tests of all operations are in test_implementations.py."""

import pytest
import torch

from fcvit_mm.ops import group_norm, use_ops

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize(
    'args, message',
    [
        ((torch.ones(8), torch.ones(16), 1e-5), r'group_norm: weight has the shape \(8,\).*takes \(16,\)'),
        ((torch.ones(16), torch.ones(1, 16), 1e-5), r'bias has the shape \(1, 16\)'),
        ((torch.ones(16), None, 1e-5), 'weight without bias, expected both or neither'),
        ((None, torch.ones(16), 1e-5), 'bias without weight'),
    ],
)
def test_refuses_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        group_norm(X, *args)


def test_single_value_is_refused_as_by_pytorch():
    for layout in (torch.contiguous_format, torch.channels_last):
        with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
            group_norm(torch.ones(1, 1, 1, 1).contiguous(memory_format=layout), None, None, 1e-5)


@pytest.mark.parametrize('mode', ['auto', 'reference'])
def test_parameters_get_gradients_for_a_map_that_needs_none(mode):
    """PyTorch's own kernel crashes here for maps in channels_last."""
    x = torch.rand(2, 16, 4, 5).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(16, requires_grad=True), torch.rand(16, requires_grad=True)
    with use_ops(mode):
        group_norm(x, weight, bias, 1e-5).sum().backward()
    normed = group_norm(x, None, None, 1e-5)
    torch.testing.assert_close(weight.grad, normed.sum((0, 2, 3)))
    torch.testing.assert_close(bias.grad, torch.full((16,), 40.0))
