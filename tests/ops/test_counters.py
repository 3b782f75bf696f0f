"""PyTorch's counter of operations counts the compiled operators, too."""

import pytest
import torch
from networks import NETWORKS, build, images

from fcvit_mm.ops import use_ops

flop_counter = pytest.importorskip('torch.utils.flop_counter')


@pytest.mark.parametrize('name', ['fcvit', 'dwnet'])
@torch.no_grad()
def test_flops_are_those_of_the_definition(name):
    model = build(NETWORKS[name]).eval()

    def count():
        with flop_counter.FlopCounterMode(display=False) as counter:
            model(images(64, 64))
        return counter.get_total_flops()

    with use_ops('reference'):
        expected = count()
    # The similarity is counted as the matrix products that it is only where it is computed so.
    assert expected <= count() <= 1.05 * expected
