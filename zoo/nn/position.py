"""How a network knows where its tokens stand: the places where an encoding can act, and what fits together.

t is a position, an integer, (T,) for all examples or (B, T) for each; it is always given, never counted. q
and k are queries and keys, (B, H, T, d) with d = D / H; t_q and t_k are their positions, n = t_q - t_k their
distance, positive for keys in the past. An encoding is one class:

    in the input        LearnedPosition, SinusoidalPosition, MultiplicativePosition, RecurrentPosition,
                        ConvPosition (zoo.nn.absolute_position), Sinusoidal2D (zoo.nn.grid_position)
    in queries, keys    Rotary, Rotary2D, XPos (zoo.nn.rotary_position)
    in the scores       by distance alone: ALiBi, KERPLE, T5Bias; by distance and content: TransformerXL,
                        DeBERTa, Shaw (zoo.nn.relative_position)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from inspect import isabstract
from typing import ClassVar

import torch
from torch import Tensor, nn

PLACES = ("embed", "rotate", "bias", "scores", "values")


class Position(nn.Module):
    """What an encoding may do; it acts in the places whose methods it defines, and `places` names them.

    Built once by a backbone, `position(dim, heads, depth)`: width, query heads and number of blocks. All
    blocks share it, unless `layer` hands out parts. Arguments named causal, length (of the longest sequence)
    and width (tokens in a row of an image) that are still None are told by the backbone.

    causal_only     whether it is of no use to tokens that see their future
    reach           how many inputs before a token `embed` looks at
    """

    places: ClassVar[frozenset[str]] = frozenset()
    causal_only: ClassVar[bool] = False
    reach: int = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.places = frozenset(
            place for place in PLACES if getattr(cls, place) is not getattr(Position, place)
        )

    def __init__(self, dim: int, heads: int = 1, depth: int = 1) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads

    def layer(self, layer: int) -> "Position":
        """What the mixer of block 0, 1, ... of those that take it gets: this, or a new part of its own."""
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


class Grid(Position, ABC):
    """Of images: token t is in row t // width and column t % width. What such encodings share.

    width   tokens in a row, pixels times channels; None is what the network says
    flat    the encoding in configs/position that does the same for sequences
    """

    flat: ClassVar[str]

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
        self.check()
        if width is None:
            raise ValueError(
                f"{type(self).__name__} needs width, the tokens in a row, and a sequence has no rows; "
                f"give position.width, or take {self.flat}"
            )
        self.width, self.base = width, base

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for a number of features that cannot be dealt out to rows and columns."""

    def place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of positions."""
        return t // self.width, t % self.width


def auto() -> None:
    """The choice of no encoding in particular: a backbone that gets None takes its mixer's own."""


def fits(position: type[Position], mixer: object, causal: bool) -> bool:
    """Whether a mixer can do what an encoding asks of it.

    A mixer's class says so by `honours`, the places (or the names of single encodings) it can honour beside
    "embed", which is the backbone's work; by `honours_causal`, those that it can honour in causal networks
    alone; and by `ordered`, False if its output ignores the order of what it sees.
    """
    honours = {"embed"} | set(getattr(mixer, "honours", ()))
    honours |= set(getattr(mixer, "honours_causal", ())) if causal else set()
    # what acts nowhere is enough for a mixer with an order of its own
    enough = not position.places and getattr(mixer, "ordered", True)
    return (causal or enough or not position.causal_only) and (
        position.places <= honours or position.__name__ in honours
    )


def encodings(kind: type[Position] = Position) -> Iterator[type[Position]]:
    """All encodings that have been defined so far."""
    for child in kind.__subclasses__():
        if not isabstract(child):
            yield child
        yield from encodings(child)


def distance(t_q: Tensor, t_k: Tensor) -> Tensor:
    """n = t_q - t_k, positive for keys in the past.  (..., Tq), (..., Tk) -> (..., Tq, Tk)"""
    return t_q.unsqueeze(-1) - t_k.unsqueeze(-2)


def angles(t: Tensor, dim: int, base: float, dtype: torch.dtype, interpolation: float = 1.0) -> Tensor:
    """t base^(-2i/dim) / interpolation, i = 0 ... dim/2 - 1.  (..., T) -> (..., T, dim/2)"""
    return t.unsqueeze(-1) * frequencies(dim, base, interpolation, dtype, t.device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept, and a tensor of inference mode may meet no gradient later
def frequencies(
    dim: int, base: float, interpolation: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """base^(-2i/dim) / interpolation, i = 0 ... dim/2 - 1: (dim/2,)"""
    return base ** (-torch.arange(0, dim, 2, device=device, dtype=dtype) / dim) / interpolation


def wide(x: Tensor) -> torch.dtype:
    """The type in which positions of x are computed: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
