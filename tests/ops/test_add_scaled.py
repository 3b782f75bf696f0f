"""The scaled residual; the common tests of all operations are in test_implementations.py."""

import pytest
import torch

from fcvit_mm.ops import add_scaled

X = torch.ones(2, 16, 4, 4)


def test_factors_of_channels_and_images():
    scale, keep = torch.arange(16.0), torch.tensor([0.0, 2.0])
    assert torch.equal(add_scaled(X, X), 2 * X)
    assert torch.equal(add_scaled(X, X, scale)[1, :, 3, 3], 1 + scale)
    out = add_scaled(X, X, scale, keep)
    assert torch.equal(out[0], X[0]) and torch.equal(out[1, :, 0, 0], 1 + 2 * scale)
    assert torch.equal(add_scaled(X, X, None, keep)[:, 0, 0, 0], torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize(
    'args, message',
    [
        ((X[:, :8],), r'add_scaled: branch has the shape \(2, 8, 4, 4\).*takes \(2, 16, 4, 4\)'),
        ((X, torch.ones(2)), r'scale has the shape \(2,\).*takes \(16,\)'),
        ((X, None, torch.ones(16)), r'keep has the shape \(16,\).*takes \(2,\)'),
    ],
)
def test_refuses_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        add_scaled(X, *args)
