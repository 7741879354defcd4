"""Sinusoids of rows and columns: where the patches of an image stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.nn.position import Grid, angles, wide


class Sinusoidal2D(Grid):
    """Sinusoids of the row and of the column, added to the input: Peebles & Xie 2022, as He et al. 2022.

    Token t is in row t // width and column t % width. Half of the features are those of the row, half of the column:
    [sin(r w_0) ..., cos(r w_0) ..., sin(c w_0) ..., cos(c w_0) ...], w_i = base^(-4i/D)

    Raises ValueError without a width, and if dim is no multiple of 4.
    """

    flat = "sinusoidal"

    def check(self) -> None:
        check_four(self.dim)

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer:
            return x
        row, column = (place.to(wide(x)) for place in self.place(t))
        return x + waves(row, column, x.shape[-1], self.base).type_as(x)


def centred(sides: Sequence[int], trained: Sequence[int], x: Tensor, base: float = 10000.0) -> Tensor:
    """Sinusoids of a grid of `sides` that has the middle of the `trained` one in its own.  -> (rows columns, D)

    x (B, T, D) says how many features, of what type and where. What Esser et al. 2024 (SD3) crop from the centre of
    a larger table, without its border.
    """
    rows, columns = (
        torch.arange(n, device=x.device, dtype=wide(x)) + (m - n) // 2
        for n, m in zip(sides, trained, strict=True)
    )
    row, column = rows.repeat_interleave(len(columns)), columns.repeat(len(rows))
    return waves(row, column, x.shape[-1], base).type_as(x)


def waves(row: Tensor, column: Tensor, dim: int, base: float) -> Tensor:
    """Sinusoids of rows and columns.  (..., T) each -> (..., T, dim)"""
    a, b = (angles(place, dim // 2, base, place.dtype) for place in (row, column))
    return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], -1)


def check_four(dim: int) -> None:
    """Raise ValueError for a number of features that cannot be dealt out."""
    if dim % 4:
        raise ValueError(
            f"dim={dim} cannot be dealt out to sines and cosines of rows and columns; try {dim + 4 - dim % 4}"
        )
