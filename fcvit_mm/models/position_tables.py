"""Learned position tables (position embeddings, relative-position biases), resized to another grid."""

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.tracing import records_any_size


def resize_map(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map of position embeddings ``(1, C, h, w)`` to ``size`` (height, width), bicubically."""
    if not records_any_size() and tuple(positions.shape[2:]) == tuple(size):
        return positions
    # In float32, because CPUs have no bicubic interpolation of float16.
    return F.interpolate(positions.float(), tuple(size), mode='bicubic', align_corners=False)


def resize_table(table: Tensor, size: Tuple[int, int], new_size: Tuple[int, int]) -> Tensor:
    """Resize a table with a learned vector for each position of a grid, bicubically.

    Args:
        table (Tensor): ``(..., L, C)`` whose last ``size[0] * size[1]`` rows are the grid's; those before, such
            as a class token's, stay unchanged.
        size (tuple[int]): The grid's height and width.
        new_size (tuple[int]): Height and width of the new grid.

    Returns:
        Tensor: ``(..., L', C)``.
    """
    if not records_any_size() and tuple(size) == tuple(new_size):
        return table
    length = table.shape[-2] - size[0] * size[1]
    rest, grid = table[..., :length, :], table[..., length:, :]
    grid = resize_map(grid.reshape(1, *size, -1).permute(0, 3, 1, 2), new_size).to(table.dtype)
    grid = grid.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], -1, table.shape[-1])
    return torch.cat((rest, grid), -2)


def fit_table(table: Tensor, like: Tensor, extra: int, new_size: Tuple[int, int], name: str) -> Tensor:
    """Resize a table of a checkpoint to the grid of its parameter, if their sizes differ.

    Args:
        table (Tensor): ``(..., L, C)``, of a square grid.
        like (Tensor): The parameter.
        extra (int): Rows before the grid's.
        new_size (tuple[int]): The parameter's grid.
        name (str): The parameter's name, for the error.

    Raises:
        ValueError: The table's grid is not square, so that its sides cannot be known.
    """
    if table.shape == like.shape or table.ndim != like.ndim or table.shape[-1] != like.shape[-1]:
        return table  # the loader reports what does not fit for another reason
    length = table.shape[-2] - extra
    side = round(max(length, 0) ** 0.5)
    if length < 1 or side**2 != length:
        raise ValueError(
            f'{name} of the checkpoint has {length} positions, expected {like.shape[-2] - extra}, or a square number, '
            f'which would be resized to {new_size[0]}x{new_size[1]}: build the network for the image size of the '
            'checkpoint'
        )
    return resize_table(table, (side, side), new_size)
