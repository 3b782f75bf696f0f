"""Resizing of learned position tables."""

import pytest
import torch

from fcvit_mm.models.position_tables import fit_table, resize_map, resize_table


def test_maps_are_resized_only_to_other_sizes():
    positions = torch.ones(1, 3, 4, 4)
    assert resize_map(positions, (4, 4)) is positions
    torch.testing.assert_close(resize_map(positions, (3, 7)), torch.ones(1, 3, 3, 7))


def test_tables_are_resized_only_to_other_sizes():
    table = torch.randn(1, 17, 3)
    assert resize_table(table, (4, 4), (4, 4)) is table
    constant = torch.ones(1, 17, 3).index_fill(1, torch.tensor([0]), 5)
    resized = resize_table(constant, (4, 4), (3, 7))
    assert resized.shape == (1, 22, 3) and resized[0, 0].eq(5).all()
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 21, 3))


def test_table_of_a_checkpoint_is_fitted_to_the_parameter():
    like = torch.zeros(1, 1 + 9, 3)
    assert fit_table(like, like, 1, (3, 3), 'a') is like
    other = torch.randn(1, 17, 4)
    assert fit_table(other, like, 1, (3, 3), 'a') is other, 'the loader reports another width'
    table = torch.randn(1, 17, 3)
    assert torch.equal(fit_table(table, like, 1, (3, 3), 'a'), resize_table(table, (4, 4), (3, 3)))
    with pytest.raises(ValueError, match=r'a of the checkpoint has 15 positions, expected 9, or a square number'):
        fit_table(torch.randn(1, 16, 3), like, 1, (3, 3), 'a')
