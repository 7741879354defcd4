"""Encodings in the input: each token gets what belongs to its place, before the first block or in it.

x is (B, T, D), t a position, an integer, (T,) or (B, T), p_t what belongs to it, (D,).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.chunked import precise
from zoo.nn.position import Position, angles, wide


class LearnedPosition(Position):
    """A vector for each position, added to the input: x_t + p_t. Gehring et al. 2017.

    length      rows of the table; None is the longest sequence of the network

    Raises ValueError without a length, and for a position beyond the table.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, length: int | None = None) -> None:
        super().__init__(dim, heads, depth)
        self.table = nn.Parameter(torch.empty(known_length(length), dim).normal_(std=0.02))

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x + row(self.table, t).type_as(x)


class MultiplicativePosition(Position):
    """A vector for each position, multiplied with the input: x_t * p_t, p near 1. Jianlin Su 2021.

    length      rows of the table; None is the longest sequence of the network

    Raises ValueError without a length, and for a position beyond the table.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, length: int | None = None) -> None:
        super().__init__(dim, heads, depth)
        self.table = nn.Parameter(torch.empty(known_length(length), dim).normal_(mean=1, std=0.02))

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x * row(self.table, t).type_as(x)


class SinusoidalPosition(Position):
    """Sinusoids of the position, added to the input. Vaswani et al. 2017, section 3.5.

    x_t + scale * [sin(t w_0), cos(t w_0), sin(t w_1), ...], w_i = base^(-2i/D)

    scale       of the sinusoids; the paper has 1, and embeddings near 1

    Raises ValueError if dim is odd: a sine and a cosine go together.
    """

    def __init__(
        self, dim: int, heads: int = 1, depth: int = 1, *, base: float = 10000.0, scale: float = 1.0
    ) -> None:
        super().__init__(dim, heads, depth)
        if dim % 2:
            raise ValueError(f"dim={dim} is odd, and sinusoids come in pairs; try dim={dim + 1}")
        self.base, self.scale = base, scale

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer:
            return x
        a = angles(t, self.dim, self.base, wide(x))
        return x + self.scale * torch.stack([a.sin(), a.cos()], -1).flatten(-2).type_as(x)


class RecurrentPosition(Position):
    """Positions that follow from each other by a learned flow, added to the input: FLOATER, Liu et al. 2020.

    dp/ds = outer(tanh(inner(p) + s * clock)), p_t = p(t * delta), x_t + p_t

    One step of Runge and Kutta's fourth order for each position; the authors take five, with ReLU, and have a
    flow for each of q, k and v. It goes on for ever, in as many steps as there are positions. While no
    gradient is asked for, the positions are kept beside the weights that they came from.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, delta: float = 0.01) -> None:
        super().__init__(dim, heads, depth)
        self.delta = delta
        self.first = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.clock = nn.Parameter(torch.empty(dim).normal_())
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.kept: tuple[list[Tensor], Tensor] | None = None

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x + self.positions(int(t.max()) + 1 if t.numel() else 1)[t].type_as(x)

    def positions(self, length: int) -> Tensor:
        """At least the first `length`, (length, D)."""
        if torch.is_grad_enabled():
            return self.flow(length)
        weights: list[Tensor] = list(self.parameters())
        if self.kept is None or not same(self.kept[0], weights) or len(self.kept[1]) < length:
            room = max(16, 2 ** math.ceil(math.log2(length)))  # so that steps mostly find theirs
            self.kept = [w.detach().clone() for w in weights], self.flow(room)
        return self.kept[1]

    def flow(self, length: int) -> Tensor:
        """p_0 ... p_(length - 1), one after the other."""
        h = self.delta
        # in half precision, steps as small as these are lost
        p, clock, *maps = precise(self.first, self.clock, *self.inner.parameters(), *self.outer.parameters())
        all_p = [p]

        def slope(s: float, p: Tensor) -> Tensor:
            return F.linear(torch.tanh(F.linear(p, *maps[:2]) + s * clock), *maps[2:])

        with torch.autocast(p.device.type, enabled=False):
            for s in (t * h for t in range(length - 1)):
                a = slope(s, p)
                b = slope(s + h / 2, p + h / 2 * a)
                c = slope(s + h / 2, p + h / 2 * b)
                d = slope(s + h, p + h * c)
                p = p + h / 6 * (a + 2 * b + 2 * c + d)
                all_p.append(p)
        return torch.stack(all_p)


class ConvPosition(Position):
    """A convolution of the input over the tokens before, added to it; it knows order, not place.

    x_t + sum_k w_k * x_(t-k), k = 0 ... kernel - 1, for each feature alone. Chu et al. 2021 (who look to both
    sides of an image), causal.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, kernel: int = 4) -> None:
        super().__init__(dim, heads, depth)
        self.reach = kernel - 1
        self.conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer or not x.shape[1]:  # torch does not convolve an empty prompt
            return x
        return x + self.conv(F.pad(x.mT, (self.reach, 0))).mT


def known_length(length: int | None) -> int:
    """Raises ValueError if there is none."""
    if length is None:
        raise ValueError(
            "a table of positions needs length, its number of rows; "
            "give position.length, or take an encoding without end, as rope"
        )
    return length


def row(table: Tensor, t: Tensor) -> Tensor:
    """table[t], (..., T, D); raises ValueError beyond its end."""
    # a read from the device, which waits for it, is made for single steps alone
    last = int(t.max()) if t.shape[-1] == 1 else t.shape[-1] - 1
    if last >= len(table):
        raise ValueError(
            f"position {last} is beyond a table of length={len(table)}; "
            "make position.length larger, or take an encoding without end, as rope"
        )
    return table[t]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether these are the same numbers, on the same device."""
    return all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(some, others, strict=True)
    )
