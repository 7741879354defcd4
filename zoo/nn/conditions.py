"""What a network is told beside its input: a class, a caption, or nothing.

y is a label (B,), or a caption (B, L) of tokens that ends in PAD; D features. keep (B,) is False where an example is
not to be told anything: it then gets the null condition, which is learned as any other (Ho & Salimans 2022).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.types import PAD, scored


class Condition(NamedTuple):
    """What the examples of a batch are to be.

    vector  what the whole example is to be, (B, D)
    tokens  what is told in words, (B, L, D)
    mask    (B, L) booleans: tokens that are there; None for all of them
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


class ClassCondition(nn.Module):
    """A vector for each class, and one for none.  y (B,) in [0, classes), keep (B,) -> Condition(vector (B, D))

    The last of classes + 1 embeddings is the null condition: y that is asked for is checked not to be it, that of a
    dataset was. They start N(0, 0.02^2), as in Peebles & Xie 2022.
    Raises ValueError for data without classes, and for y that are no labels.
    """

    def __init__(self, classes: int | None, *, dim: int = 256) -> None:
        super().__init__()
        if not classes:
            raise ValueError(
                "a condition on classes needs labels, and this data has no classes; try condition=none"
            )
        self.classes, self.dim = classes, dim
        self.embed = nn.Embedding(classes + 1, dim)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, y: Tensor, keep: Tensor) -> Condition:
        if y.dim() != 1:
            raise ValueError(
                f"labels have shape (B,), these have {tuple(y.shape)}; captions ask for condition=caption"
            )
        return Condition(self.embed(torch.where(keep, y.long(), self.classes)))

    def check(self, y: Tensor) -> None:
        """Raise ValueError for labels of no class."""
        known(y, 0, self.classes, "labels")

    def unasked(self, n: int) -> Tensor:
        """y for n examples of which nothing is asked: labels drawn evenly, (n,)."""
        return torch.randint(self.classes, (n,), device=self.embed.weight.device)


class CaptionCondition(nn.Module):
    """A caption read by a small bidirectional Transformer, which is trained along.

    y (B, L) in [0, levels), PAD after its end; keep (B,) -> Condition(vector (B, D), tokens (B, 1 + L, D), mask). One
    token more, that starts every caption, is always there; the null condition is a caption that has only this one.
    What is PAD has a symbol of its own for the encoder, is masked out of `tokens` and not counted in `vector`, which is
    the mean of the others, through a linear map.

    levels      symbols of the captions
    shape       (L,): how long they are at most
    dim, depth, heads   of the encoder, as zoo.nn.Backbone and zoo.nn.Attention have them

    Raises ValueError for data without captions, and for y of another shape.
    """

    def __init__(
        self, levels: int | None, shape: Sequence[int], *, dim: int = 256, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if not levels or len(shape) != 1:
            raise ValueError(
                f"a condition on captions needs a text with every example, and the y of this data has levels={levels}, "
                f"shape={list(shape)}; try dataset=digits_captions, or condition=class"
            )
        self.levels, self.length, self.dim = levels, shape[0], dim
        self.embed = nn.Embedding(levels + 2, dim)  # the last two stand for PAD and for the start
        nn.init.normal_(self.embed.weight, std=0.02)
        self.encoder = Backbone(
            dim, depth, partial(Attention, heads=heads), causal=False, grid=(1 + shape[0],)
        )
        self.pool = nn.Linear(dim, dim)

    def forward(self, y: Tensor, keep: Tensor) -> Condition:
        if y.dim() != 2 or y.shape[1] != self.length:
            raise ValueError(
                f"captions have shape (B, {self.length}), PAD after their end; these have {tuple(y.shape)}"
            )
        there = scored(y) & keep.unsqueeze(1)
        start = y.new_full((len(y), 1), self.levels + 1, dtype=torch.long)
        symbols = torch.cat([start, y.long().masked_fill(~there, self.levels)], 1)
        mask = torch.cat([torch.ones_like(keep).unsqueeze(1), there], 1)
        tokens = self.encoder(self.embed(symbols))  # (B, 1 + L, D)
        share = mask / mask.sum(1, keepdim=True)
        return Condition(self.pool((tokens * share.unsqueeze(-1).type_as(tokens)).sum(1)), tokens, mask)

    def check(self, y: Tensor) -> None:
        """Raise ValueError for symbols of no caption."""
        known(y, PAD, self.levels, "the symbols of captions")

    def unasked(self, n: int) -> Tensor:
        """y for n examples of which nothing is asked: empty captions, (n, L)."""
        return torch.full((n, self.length), PAD, device=self.embed.weight.device)


def known(y: Tensor, low: int, high: int, what: str) -> None:
    """Raise ValueError where y is not in [low, high)."""
    if len(y) and not low <= int(y.min()) <= int(y.max()) < high:
        raise ValueError(
            f"{what} go from {low} to {high - 1}, and those asked for from {y.min()} to {y.max()}"
        )


def no_condition() -> None:
    """The choice of no condition: a model that gets None is told nothing."""


def words(c: Condition | None) -> tuple[Tensor | None, Tensor | None]:
    """What can be attended to, (B, L, D), and which of it is there, (B, 1, 1, L): a vector alone is one word."""
    if c is None:
        return None, None
    if c.tokens is None:
        return None if c.vector is None else c.vector.unsqueeze(1), None
    return c.tokens, None if c.mask is None else c.mask[:, None, None]
