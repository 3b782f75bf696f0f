"""Errors of exporters are reported with the operator and the line that calls it."""

import pytest
import torch.nn as nn

from fcvit_mm.errors import UserError
from fcvit_mm.export.errors import ExportError, naming_operators


@pytest.mark.parametrize(
    'text, operator',
    [
        ("No decomposition for op='aten.special_bessel_j0'", 'aten.special_bessel_j0'),
        ("Could not export Python function call '_Double'", '_Double'),
        ('Non-zero status code returned while running Resize node', 'Resize'),
        ('Unsupported: torchvision::roi_align in opset 18', 'torchvision::roi_align'),
    ],
)
def test_operator_is_found_in_the_cause_of_an_error(text, operator):
    message = f'onnx cannot record the model: the operator {operator} cannot be exported'
    with pytest.raises(ExportError, match=message), naming_operators('onnx cannot record the model'):
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError('an exporter failed') from error


class Layer(nn.Module):
    def forward(self, x):
        raise ValueError('no such thing\nand more')


def test_line_of_the_layer_is_named():
    message = r'no operator, called in .*test_errors.py, line \d+ \(ValueError: no such thing\). Replace this layer'
    with pytest.raises(ExportError, match=message), naming_operators('it failed'):
        Layer()(1)


@pytest.mark.parametrize('error', [UserError('known'), OSError(28, 'No space left on device')])
def test_user_and_system_errors_are_not_changed(error):
    with pytest.raises(type(error)) as found, naming_operators('it failed'):
        raise error
    assert found.value is error
