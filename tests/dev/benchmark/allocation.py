"""A call of known peak memory, for a process of its own, which finds this module by name."""

import torch
from measure import peak_growth


def allocate(megabytes):
    def call():
        first = torch.ones(megabytes, 2**18)
        first = None  # noqa: F841  freed before the second
        torch.ones(megabytes, 2**18)

    call()
    return peak_growth(call, torch.device('cpu'))
