"""Encodings in queries and keys: rotations by the position, whose products depend on the distance.

q and k are (B, H, T, d); t is a position, an integer, (T,) or (B, T). Pairs of features are complex numbers.
"""

import torch
from torch import Tensor

from zoo.nn.position import Grid, Position, angles, wide


class Rotary(Position):
    """Rotary position embedding: scores depend on the distance of two tokens, through angles between them.

    (x_2i, x_2i+1) is turned by the angle t base^(-2i/d), so that <q at t, k at s> is a function of t - s. Su
    et al. 2021, eq. 34; pairs are interleaved, not split in halves. Angles are float32 at least: in bfloat16
    they are wrong after 256.

    interpolation   positions are divided by it, to read sequences so many times longer (Chen et al. 2023)
    ntk             the same by a larger base, base * ntk^(d/(d-2)), which leaves the fastest pair as it is
                    and slows the slowest down by ntk (bloc97 2023)

    Raises ValueError if a head's width is odd: features are rotated in pairs.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        base: float = 10000.0,
        interpolation: float = 1.0,
        ntk: float = 1.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        head_width(dim, heads, 2, "Rotary turns pairs of features")
        self.base, self.interpolation, self.ntk = base, interpolation, ntk

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        d = q.shape[-1]  # a gated attention unit's is not dim / heads
        # the pair of d = 2 is the fastest
        base = self.base * self.ntk ** (d / (d - 2)) if d > 2 else self.base
        turn = unit(angles(t, d, base, wide(q), self.interpolation))
        return turned(q, turn), turned(k, turn)


class Rotary2D(Grid):
    """Rotary position embedding of images: half of a head is turned by the row, half by the column.

    Token t is in row t // width and column t % width; scores depend on how far apart two tokens are, down and
    across. Jianlin Su 2021 (kexue.fm/archives/8397).

    Raises ValueError without a width, and if a head's width is no multiple of 4: each half is turned in
    pairs.
    """

    flat = "rope"

    def check(self) -> None:
        head_width(self.dim, self.heads, 4, "Rotary2D turns pairs of features in each half")

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        half, real = q.shape[-1] // 2, wide(q)
        row, column = self.place(t)
        a = torch.cat([angles(row, half, self.base, real), angles(column, half, self.base, real)], -1)
        turn = unit(a)
        return turned(q, turn), turned(k, turn)


class XPos(Position):
    """Rotary, with scores that fade with distance: extrapolatable position embedding, Sun et al. 2022.

    Pair i of q is also scaled by z_i^(t/scale), of k by z_i^(-t/scale), z_i = (2i/d + gamma) / (1 + gamma).
    So the scores of keys in the past shrink by z_i^(n/scale), and those of keys in the future would grow
    without end: it is for causal networks. Good for some 30,000 positions, where float32 ends.

    Raises ValueError if a head's width is odd: features are rotated in pairs.
    """

    causal_only = True

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        base: float = 10000.0,
        gamma: float = 0.4,
        scale: float = 512.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        head_width(dim, heads, 2, "XPos turns pairs of features")
        self.base, self.gamma, self.scale = base, gamma, scale

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        d, real = q.shape[-1], wide(q)
        a = angles(t, d, self.base, real)
        z = (torch.arange(0, d, 2, device=q.device, dtype=real) / d + self.gamma) / (1 + self.gamma)
        size = z ** (t.unsqueeze(-1).to(real) / self.scale)  # (T, d/2) or (B, T, d/2)
        return turned(q, torch.polar(size, a)), turned(k, torch.polar(1 / size, a))


def unit(angle: Tensor) -> Tensor:
    """e^(i angle)"""
    return torch.polar(torch.ones_like(angle), angle)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of features as complex numbers, times turn.  x (B, H, T, d); turn (T, d/2), or (B, T, d/2)"""
    turn = turn if turn.ndim == 2 else turn.unsqueeze(1)  # one turn for all heads
    pairs = x.to(wide(x)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses real numbers only; outside of it, complex ones are faster
        return turned_real(pairs, turn).flatten(-2).type_as(x)
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).type_as(x)


def turned_real(pairs: Tensor, turn: Tensor) -> Tensor:
    """(a + b i) turn, written out.  pairs (..., d/2, 2), turn (..., d/2) complex"""
    (a, b), (cos, sin) = pairs.unbind(-1), (turn.real, turn.imag)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)


def head_width(dim: int, heads: int, parts: int, why: str) -> int:
    """d = dim / heads; raises ValueError if it is no multiple of parts."""
    d = dim // heads
    if d % parts:
        raise ValueError(
            f"a head of dim={dim}, heads={heads} is {d} wide, and {why}; "
            f"try dim={heads * parts * (d // parts + 1)}"
        )
    return d
