"""Sequence to sequence: an encoder reads y, a decoder writes x.

x is data, T tokens below `levels`; y is what x follows from, its source: S tokens (B, S) below `source_levels`,
or a label (B,), which is a source of one token.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.decoding import Decoding
from zoo.models.tokens import arranged, grid, sequence
from zoo.nn.absolute_position import SinusoidalPosition
from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.nn.cross import CrossBlock
from zoo.nn.feedforward import FeedForward
from zoo.nn.likelihood import wide
from zoo.nn.ranks import per_rank
from zoo.types import PAD, Kind, Unfit, scored


class Seq2Seq(nn.Module):
    """The Transformer of Vaswani et al. 2017: p(x | y) = prod_t p(x_t | x_1 ... x_{t-1}, y).

    A bidirectional backbone encodes y; a causal one writes x, and reads what was encoded by attention in each
    block: mixer, attention to the source, feed-forward block. Norms come before their branches. Where a source is
    PAD the encoder sees a symbol that says so; where x is, nothing is counted.

    source_shape    size of a source: (S,), or () of a label
    source_levels   how many symbols a source has
    heads           of the attention to the source
    dim, depth, mixer, position, mlp, norm, dropout   as zoo.nn.Backbone has them, for each of the two. What is
                    read has no positions of its own but those that the encoder puts in its input, so distances
                    alone (as Rotary) learn to copy slowly

    Raises Unfit for real-valued data, and for data without sources; ValueError as zoo.nn.CrossBlock does.
    """

    kind: ClassVar[Kind] = "exact"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        source_shape: Sequence[int] = (),
        source_levels: int | None,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        mixer: Callable[..., Any] | Sequence[Callable[..., Any]] = Attention,
        position: Callable[..., Any] | None = SinusoidalPosition,
        mlp: Callable[..., Any] | None = FeedForward,
        norm: Callable[..., Any] = nn.LayerNorm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if levels is None or not source_levels:
            raise Unfit(
                f"a model from sequence to sequence needs integers and what they follow from, and this data has "
                f"levels={levels}, source_levels={source_levels}; try a dataset with both, as reversal",
                lambda space: space.levels is not None and bool(source_levels),
            )
        self.shape, self.levels, self.source_levels = tuple(shape), levels, source_levels
        self.source_shape, self.length = tuple(source_shape), math.prod(shape)
        self.protocol = {"given": "y"} | ({"order": "row, column, channel"} if len(shape) == 3 else {})
        self.source = nn.Embedding(source_levels + 1, dim)  # the last stands for PAD
        self.embed = nn.Embedding(levels + 1, dim)  # the last one starts
        options: dict[str, Any] = {"position": position, "norm": norm, "dropout": dropout}
        self.encoder = Backbone(dim, depth, mixer, mlp=mlp, causal=False, grid=grid(source_shape), **options)
        self.decoder = Backbone(dim, depth, mixer, mlp=None, causal=True, grid=grid(shape), **options)
        self.cross = nn.ModuleList(
            CrossBlock(dim, heads, mlp=mlp, norm=norm, dropout=dropout) for _ in range(depth)
        )
        self.head = nn.Linear(dim, levels, bias=False)
        for part in (self.source, self.embed, self.head):
            nn.init.normal_(part.weight, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute: the encoder's, for they follow on one another."""
        return self.encoder.blocks

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits of every token, given those before it and the source.  x (B, *shape) -> (B, T, V)"""
        h = self.embed(self.shifted(sequence(x)))
        return self.head(self.decoder(h, after=self.reader(y, len(x))))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per scored token; nats: per example."""
        tokens, logits = sequence(x), wide(self(x, y))
        nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=PAD, reduction="sum")
        return {"loss": nats / per_rank(scored(tokens).sum(), self.training), "nats": nats / len(x)}

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x | y) in nats, (B,)."""
        tokens, logits = sequence(x), wide(self(x, y))
        nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=PAD, reduction="none")
        return -nats.view_as(tokens).sum(1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """n examples for n sources, (n, *shape), drawn token by token; options as zoo.models.Autoregressive.

        Where there are no sources y, they are drawn too: every symbol evenly.
        """
        draw = Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
        if y is None:
            y = torch.randint(self.source_levels, (n, *self.source_shape), device=self.embed.weight.device)
        after = self.reader(y, n)
        start = self.embed(torch.full((n, 1), self.levels, device=self.embed.weight.device))
        h, state = self.decoder.prefill(start, after=after)
        h = h.squeeze(1)
        tokens: list[Tensor] = []
        for i in range(self.length):
            if i > 0:
                h, state = self.decoder.step(self.embed(tokens[-1]), state, after=after)
            tokens.append(draw(self.head(h)))
        return arranged(torch.stack(tokens, 1), self.shape, self.levels)

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How many tokens and sequences there are to tell, and how many the most probable tokens get right."""
        tokens = sequence(x)
        right = (self(x, y).argmax(-1) == tokens) | ~scored(tokens)
        count = scored(tokens).sum()
        return {
            "right": count - (~right).sum(),
            "tokens": count,
            "whole": right.all(1).sum(),
            "sequences": torch.ones_like(tokens[:, 0]).sum(),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """accuracy: of tokens, given the right ones before; whole_accuracy: of sequences without any error."""
        return {
            "accuracy": float(sums["right"]) / max(float(sums["tokens"]), 1.0),
            "whole_accuracy": float(sums["whole"]) / max(float(sums["sequences"]), 1.0),
        }

    def reader(self, y: Tensor | None, n: int) -> Callable[[int, Tensor], Tensor]:
        """What is done after each block of the decoder: reading what was encoded, of n sources.

        Raises ValueError if there are not n sources.
        """
        if y is None or len(y) != n:
            raise ValueError(
                f"{n} sequences follow from {n} sources, y (B, S) or (B,); "
                f"there is {'none' if y is None else f'y of shape {tuple(y.shape)}'}"
            )
        y = y.to(self.source.weight.device).long().unsqueeze(-1).flatten(1)  # (B, S)
        h = self.encoder(self.source(y.masked_fill(y == PAD, self.source_levels)))
        blocks: list[Any] = list(self.cross)
        memories = [block.cross.remember(h) for block in blocks]
        return lambda layer, x: blocks[layer](x, memories[layer])

    def shifted(self, tokens: Tensor) -> Tensor:
        """The start and all tokens but the last; what stands in for PAD is seen by no token that counts."""
        return F.pad(tokens[:, :-1].clamp(min=0), (1, 0), value=self.levels)
