"""Patch embeddings, stages, and their stochastic depth."""

import pytest
import torch
import torch.nn as nn

from fcvit_mm.models.stages import PatchEmbed, Stage, drop_path_rates


@pytest.mark.parametrize('size, expected', [((16, 24), (4, 6)), ((17, 1), (5, 1))])
def test_patch_embedding_rounds_up(size, expected):
    assert PatchEmbed(3, 8, kernel_size=7, stride=4)(torch.rand(2, 3, *size)).shape == (2, 8, *expected)


def test_stochastic_depth_grows_linearly():
    assert drop_path_rates(0.3, (1, 1, 2)) == [[0], [pytest.approx(0.1)], [pytest.approx(0.2), pytest.approx(0.3)]]
    assert drop_path_rates(0.3, (1,)) == [[0]]


def test_checkpointed_stage_updates_statistics_once():
    def run(with_cp):
        torch.manual_seed(0)
        stage = Stage(nn.Identity(), [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))], with_cp).train()
        stage(torch.randn(4, 3, 5, 5, requires_grad=True)).square().sum().backward()
        return [*stage.buffers(), *(parameter.grad for parameter in stage.parameters())]

    for stored, recomputed in zip(run(False), run(True)):
        torch.testing.assert_close(recomputed, stored)
