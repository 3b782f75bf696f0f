"""Timing of single operations: the parts of the command that need no GPU."""

import argparse

import pytest
import torch

from fcvit_mm.errors import UserError


@pytest.fixture
def command(load):
    return load('time_kernels')


def test_missing_gpu_is_reported(command, tmp_path):
    with pytest.raises(UserError, match='--device is cpu, expected a GPU'):
        command.main(['--out', str(tmp_path)])


def test_operations_of_the_network_are_compared_with_their_references(command):
    options = dict(network='fcvit_tiny', batch=2, size=32, device='cpu', dtype='float32')
    cases = list(command.cases(argparse.Namespace(**options)))
    assert len(cases) == 4 * 7
    assert all(command.error(case) < 1e-5 for case in cases[:7])
    broken = cases[0]._replace(args=(cases[0].args[0] * torch.nan, *cases[0].args[1:]))
    assert not command.error(broken) < 1e-5


def test_table_has_times_and_shares_of_the_bandwidth(command):
    row = dict(op='group_norm', kernel='', shape=[2, 8, 4, 4], implementation='triton', bytes=3000, error=1e-7)
    text = command.table([dict(row, ours=2e-6, channels_last=8e-6, NCHW=5e-6)], bandwidth=3e9)
    assert '| group_norm (triton) | 2x8x4x4 | 2.0 | 50% | 8.0 | 5.0 | 2.50 | 1.0e-07 |' in text
