"""Networks built in no time, whose parameters are counted and whose shapes are asked."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import init

INITIALIZERS = [name for name in vars(init) if name.endswith('_') and not name.startswith('_')]


@contextmanager
def uninitialized():
    """Build networks on the meta device without a thought for values: there, operations take longer than on a CPU."""
    with torch.device('meta'), pytest.MonkeyPatch.context() as patch:
        for name in INITIALIZERS:
            patch.setattr(init, name, lambda tensor, *_, **__: tensor)
        yield


def zeroed(model):
    """Return a network that was built so in memory, every value 0: its operations are a CPU's."""
    model = model.to_empty(device='cpu')
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model
