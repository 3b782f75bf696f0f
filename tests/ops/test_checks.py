"""Errors that name both arguments of a mismatch."""

import pytest
import torch

from fcvit_mm.ops.checks import autocast_dtype, check_arguments

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize(
    'x, others, error, message',
    [
        ([1.0], {}, TypeError, 'mix: x is list, expected a floating-point tensor'),
        (X.int(), {}, TypeError, 'mix: x is torch.int32, expected a floating-point tensor'),
        (X[0], {}, ValueError, r'mix: x has the shape \(16, 4, 4\), expected four dimensions \(B, C, H, W\)'),
        (
            X,
            dict(weight=(torch.ones(8, 12), (8, 16))),
            ValueError,
            r'mix: weight has the shape \(8, 12\), but x of shape \(2, 16, 4, 4\) takes \(8, 16\)',
        ),
        (X, dict(weight=(torch.ones(3), (2, 'G'))), ValueError, r'takes \(2, G\)'),
        (X, dict(bias=(torch.ones(9), (8,))), ValueError, r'bias has the shape \(9,\), .* takes \(8,\)'),
        (
            X,
            dict(bias=(torch.ones(8, device='meta'), (8,))),
            ValueError,
            r'bias is on meta, but x is on cpu: move one of them with \.to\(device\)',
        ),
        (
            X,
            dict(bias=(torch.ones(8).double(), (8,))),
            TypeError,
            r'mix: bias is torch.float64, but x is torch.float32: .*\.to\(dtype\), or run under torch\.autocast',
        ),
    ],
)
def test_invalid_arguments_are_refused(x, others, error, message):
    with pytest.raises(error, match=message):
        check_arguments('mix', x, **others)


def test_valid_arguments_are_accepted():
    check_arguments('mix', X, weight=(torch.ones(8), (8,)), bias=(None, (3,)))
    check_arguments('mix', X, any_dtype=True, weight=(torch.ones(8).double(), (8,)))
    with torch.autocast('cpu', torch.bfloat16):
        check_arguments('mix', X, weight=(torch.ones(8).bfloat16(), (8,)))


def test_autocast_dtype():
    assert autocast_dtype(X) is None
    with torch.autocast('cpu', torch.bfloat16):
        assert autocast_dtype(X) == torch.bfloat16
        assert autocast_dtype(X.to('meta')) is None  # the autocast of another device
