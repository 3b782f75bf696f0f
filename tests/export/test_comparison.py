"""Exported files are compared with PyTorch; the errors describe the difference."""

import time

import pytest
import torch

from fcvit_mm.export.comparison import Difference, check_detections, compare, time_in_turn
from fcvit_mm.export.errors import ExportError
from fcvit_mm.export.parts import Part


class Doubled(Part):
    output = 'scores'

    def forward(self, images):
        return 2 * images


def test_largest_difference_is_reported():
    images = torch.rand(2, 3, 5, 7)
    found = compare(Doubled(), lambda x: (2 * x + 1e-5,), 'onnx', images)
    assert found.shape == (2, 5, 7) and found.largest == pytest.approx(1e-5, rel=0.1)
    assert found.of == (2 * images).max().item() and not found.real


def fail(images):
    raise RuntimeError('while running Gather node')


@pytest.mark.parametrize(
    'run, message',
    [
        (lambda x: (2 * x[:, :, 1:],), 'scores of the onnx file has the shape .*: a size was recorded as a constant'),
        (
            lambda x: (2.1 * x,),
            'differs from PyTorch by 0.0.* in scores .* more than the tolerance of 0.0001',
        ),
        (lambda x: (x * float('nan'),), 'differs from PyTorch by nan in scores'),
        (fail, 'the onnx file does not run on 1 images of 5x7: the operator Gather cannot be exported'),
    ],
)
def test_different_results_are_an_error(run, message):
    with pytest.raises(ExportError, match=message):
        compare(Doubled(), run, 'onnx', torch.rand(1, 3, 5, 7))


def test_detections_without_a_match_are_summed_over_all_images():
    good = Difference((1, 8, 8), 0.0, 1.0, detections=300, matched=299, found=300)
    check_detections('onnx', [good, good])
    bad = good._replace(matched=280)
    message = 'finds 600 objects on 2 images, of which 579 match the 600 detections of mmdet, fewer than 99%'
    with pytest.raises(ExportError, match=message):
        check_detections('onnx', [good, bad])


def test_functions_are_timed_in_turn():
    called = []
    calls = {'slow': lambda: called.append('slow') or time.sleep(0.01), 'quick': lambda: called.append('quick')}
    times = time_in_turn(calls, rounds=3, warmup=1)
    assert called == ['slow', 'quick'] * 4
    assert times['slow'] >= 10 > times['quick']
