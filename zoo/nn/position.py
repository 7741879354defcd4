"""How a network knows where its tokens stand: the places where an encoding can act, and two encodings.

t is a position, an integer, (T,) for all examples or (B, T) for each; it is always given, never counted. q
and k are queries and keys, (B, H, T, d); layer is the index of a block. A file that adds an encoding adds one
class.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

PLACES = ("embed", "rotate", "bias", "scores", "values")


class Position(nn.Module):
    """What an encoding may do; it acts in the places whose methods it defines, and `places` names them.

    Built once by a backbone, `position(dim, heads, depth)`: width, query heads and number of blocks. All
    blocks share it, unless `layer` hands out parts. `causal_only` says that it gives no order to tokens that
    see their future.
    """

    places: ClassVar[frozenset[str]] = frozenset()
    causal_only: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.places = frozenset(
            place for place in PLACES if getattr(cls, place) is not getattr(Position, place)
        )

    def __init__(self, dim: int, heads: int = 1, depth: int = 1) -> None:
        super().__init__()

    def layer(self, layer: int) -> "Position":
        """The encoding that the mixer of block `layer` gets: this, or a part with parameters of its own."""
        return self

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        """The input of block `layer`, with positions in it; mostly of layer 0 only.  (B, T, D) -> same"""
        return x

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys after a linear map that depends on t; k may have fewer heads.  (B, H, T, d)"""
        return q, k

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the scaled scores, whatever the content.  -> (H, Tq, Tk), or (B, H, Tq, Tk)"""

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the scaled scores, from content; k has as many heads as q.  -> (B, H, Tq, Tk)"""

    def values(self, weights: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the output of each head, from its weights (B, H, Tq, Tk).  -> (B, H, Tq, d)"""


class NoPosition(Position):
    """Nothing. A causal network can still count the tokens it sees (Kazemnejad et al. 2023)."""

    causal_only = True


class Rotary(Position):
    """Rotary position embedding: scores depend on the distance of two tokens, through angles between them.

    (x_2i, x_2i+1) is turned by the angle t base^(-2i/d), so that <q at t, k at s> is a function of t - s. Su
    et al. 2021, eq. 34; pairs are interleaved, not split in halves. Angles are float32 at least: in bfloat16
    they are wrong after 256.

    Raises ValueError if a head's width is odd: features are rotated in pairs.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, base: float = 10000.0) -> None:
        super().__init__(dim, heads, depth)
        if dim // heads % 2:
            raise ValueError(
                f"a head of dim={dim}, heads={heads} is {dim // heads} wide, "
                f"and Rotary turns pairs of features; try dim={heads * (dim // heads + 1)}"
            )
        self.base = base

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        real = torch.promote_types(q.dtype, torch.float32)
        i = torch.arange(0, q.shape[-1], 2, device=q.device, dtype=real)
        angles = t.unsqueeze(-1) * self.base ** (-i / q.shape[-1])  # (T, d/2) or (B, T, d/2)
        turn = torch.polar(torch.ones_like(angles), angles)
        turn = turn if t.ndim == 1 else turn.unsqueeze(1)  # one turn for all heads
        return turned(q, turn), turned(k, turn)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of features as complex numbers, times `turn` (..., T, d/2).  x (B, H, T, d) -> same"""
    real = torch.promote_types(x.dtype, torch.float32)
    z = torch.view_as_complex(x.to(real).unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * turn).flatten(-2).type_as(x)


def auto() -> None:
    """The choice of no encoding in particular: a backbone that gets None takes its mixer's own."""


def fits(position: type, mixer: object, causal: bool) -> bool:
    """Whether a mixer can do what an encoding asks of it.

    A mixer's class says so by `honours`, the places (or the names of single encodings) it can honour beside
    "embed", which is the backbone's work; and by `ordered`, False if its output ignores the order of what it
    sees.
    """
    honours = {"embed"} | set(getattr(mixer, "honours", ()))
    seen = causal or getattr(mixer, "ordered", True) or not position.causal_only
    return seen and (position.places <= honours or position.__name__ in honours)


def encodings(kind: type = Position) -> Iterator[type]:
    """All encodings that have been defined so far."""
    for child in kind.__subclasses__():
        yield child
        yield from encodings(child)
