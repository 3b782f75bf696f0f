"""The images that 8-bit files are calibrated and measured on, and what is measured."""

import os

import pytest
import torch

from fcvit_mm.errors import UserError
from fcvit_mm.export.quantization import calibration_images, labelled_images, measure_drift


def test_accuracy_is_that_of_the_labels(samples):
    labelled = labelled_images(str(samples), ('c', 'b', 'a'), 3)
    assert [sample.label for sample in labelled] == [2, 2, 1, 1, 0, 0]
    scores = {'always c': torch.tensor([[0.7, 0.2, 0.1]]), 'always a': torch.tensor([[0.2, 0.1, 0.7]])}
    found = measure_drift(
        {name: lambda images, value=value: value for name, value in scores.items()},
        [*labelled, labelled[0]],
        lambda path: path,
        True,
    )
    assert [each['accuracy'] for each in found['runtimes'].values()] == pytest.approx([2 / 7, 3 / 7])
    assert found['runtimes']['always a']['agreement'] == 0
    assert found['runtimes']['always a']['mean_abs_difference'] == pytest.approx((0.5 + 0.1 + 0.6) / 3)


def test_labels_of_other_classes(samples, tmp_path):
    with pytest.raises(UserError, match=r'has 3 folders \(a, b, c\), expected one for each of the 4 classes \(w, x, '):
        labelled_images(str(samples), tuple('wxyz'), 4)
    with pytest.raises(UserError, match='in the folders of .*, expected one folder per class'):
        labelled_images(str(samples / 'a'), None, 3)
    # Other names in the checkpoint, but as many: in order.
    assert labelled_images(str(samples), tuple('xyz'), 3)[-1].label == 2


def test_calibration_images_are_spread_evenly(samples):
    found = [os.path.relpath(sample.path, samples) for sample in calibration_images(str(samples), 3)]
    assert found == ['a/0.png', 'b/0.png', 'c/0.png']
    assert len(calibration_images(str(samples), 100)) == 6
