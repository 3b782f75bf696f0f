"""A function with a known peak memory. It runs in another process, which imports this module."""

import torch
from measure import peak_growth


def allocate(megabytes):
    def call():
        first = torch.ones(megabytes, 2**18)
        first = None  # noqa: F841  freed before the second
        torch.ones(megabytes, 2**18)

    call()
    return peak_growth(call, torch.device('cpu'))
