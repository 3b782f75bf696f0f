"""Networks built quickly without values, to count parameters and test shapes."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import init

INITIALIZERS = [name for name in vars(init) if name.endswith('_') and not name.startswith('_')]


@contextmanager
def uninitialized():
    """Build networks on the meta device, without initialization, which would take longer there than on a CPU."""
    with torch.device('meta'), pytest.MonkeyPatch.context() as patch:
        for name in INITIALIZERS:
            patch.setattr(init, name, lambda tensor, *_, **__: tensor)
        yield


def zeroed(model):
    """Move such a network to the CPU, with all values 0."""
    model = model.to_empty(device='cpu')
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model
