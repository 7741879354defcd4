"""Sinusoids of rows and columns: where the patches of an image stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.nn.position import Position, angles, wide


class Sinusoidal2D(Position):
    """Sinusoids of the row and of the column, added to the input: Peebles & Xie 2022, as He et al. 2022.

    Token t is in row t // width and column t % width. Half of the features are those of the row, half of the column:
    [sin(r w_0) ..., cos(r w_0) ..., sin(c w_0) ..., cos(c w_0) ...], w_i = base^(-4i/D)

    width       tokens in a row; None is what the network says

    Raises ValueError without a width, and if dim is no multiple of 4.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        width: int | None = None,
        base: float = 10000.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        if width is None:
            raise ValueError(
                "Sinusoidal2D needs width, the tokens in a row, and a sequence has no rows; "
                "give position.width, or take sinusoidal"
            )
        check_four(dim)
        self.width, self.base = width, base

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer:
            return x
        places = t.to(wide(x))
        row, column = torch.div(places, self.width, rounding_mode="floor"), places % self.width
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
