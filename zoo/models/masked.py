"""Masked models of tokens: some are hidden, and told from all others, before and after.

x is data, tokens are x as a sequence (B, T), V = levels. Beside the V levels the network knows two symbols: MASK
for a hidden token, and one for PAD.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.tokens import grid, sequence
from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.nn.feedforward import FeedForward
from zoo.nn.likelihood import wide
from zoo.nn.ranks import per_rank
from zoo.types import PAD, Unfit, scored


class Masked(nn.Module):
    """A bidirectional backbone that tells hidden tokens from the others: BERT's first objective.

    Each token is chosen with probability `rate`; loss = the mean of -log softmax(head(h_t))[x_t] over chosen
    ones, h = backbone(what is shown). Of those chosen, `mask` show MASK, `random` any token, all others
    themselves. It has no likelihood: the conditionals belong to no p(x) in general. Devlin et al. 2019, section
    3.1, without its second objective and without a norm of the embeddings. Where a text is PAD the network sees a
    symbol that says so.

    rate        share of the tokens that are chosen
    mask, random    shares of those; mask=1, random=0 hides each chosen token
    dim, depth, mixer, position, mlp, norm, norm_first, dropout   as zoo.nn.Backbone has them
    tie         one matrix for the embedding of tokens and for the head

    Raises Unfit for real-valued data; ValueError for shares that are none.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        rate: float = 0.15,
        mask: float = 0.8,
        random: float = 0.1,
        dim: int = 768,
        depth: int = 12,
        mixer: Callable[..., Any] | Sequence[Callable[..., Any]] = Attention,
        position: Callable[..., Any] | None = None,
        mlp: Callable[..., Any] | None = FeedForward,
        norm: Callable[..., Any] = nn.LayerNorm,
        norm_first: bool = False,
        dropout: float = 0.0,
        tie: bool = True,
    ) -> None:
        super().__init__()
        if levels is None:
            raise Unfit(
                "a model of tokens needs integers below some number of levels, and this data is real-valued; "
                "try a dataset with levels",
                lambda space: space.levels is not None,
            )
        if not 0 < rate <= 1 or min(mask, random) < 0 or mask + random > 1:
            raise ValueError(
                f"rate={rate}, mask={mask}, random={random} are no shares; rate is in (0, 1], and mask and "
                "random are at least 0 and at most 1 together"
            )
        self.shape, self.levels = tuple(shape), levels
        self.rate, self.mask, self.random = rate, mask, random
        self.embed = nn.Embedding(levels + 2, dim)
        self.backbone = Backbone(
            dim,
            depth,
            mixer,
            position=position,
            mlp=mlp,
            norm=norm,
            norm_first=norm_first,
            dropout=dropout,
            causal=False,
            grid=grid(shape),
        )
        self.head = None if tie else nn.Linear(dim, levels, bias=False)
        self.bias = nn.Parameter(torch.zeros(levels))
        for part in (self.embed, self.head):
            if part is not None:
                nn.init.normal_(part.weight, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute."""
        return self.backbone.blocks

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits of every token, with all of x in sight.  x (B, *shape) -> (B, T, V)"""
        tokens = sequence(x)
        return self.logits(self.backbone(self.embed(self.padded(tokens))))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per chosen token."""
        logits, tokens = self.told(x)
        chosen = per_rank(torch.ones_like(tokens).sum(), self.training)
        return {"loss": F.cross_entropy(wide(logits), tokens, reduction="sum") / chosen}

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How many tokens were chosen, and of how many the most probable level was the right one."""
        logits, tokens = self.told(x)
        return {
            "right": (logits.argmax(-1) == tokens).sum(),
            "chosen": torch.ones_like(tokens).sum(),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """masked_accuracy: how often the most probable level was the right one, of the chosen tokens."""
        return {"masked_accuracy": float(sums["right"]) / max(float(sums["chosen"]), 1.0)}

    def told(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the N tokens that were chosen, and those tokens (N,)."""
        tokens = sequence(x)
        shown, chosen = self.hide(tokens)
        return self.logits(self.backbone(self.embed(shown))[chosen]), tokens[chosen]

    def hide(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is shown, and where something was chosen.  (B, T) -> (B, T), (B, T) of booleans"""
        chosen = scored(tokens) & (torch.rand(tokens.shape, device=tokens.device) < self.rate)
        share = torch.rand(tokens.shape, device=tokens.device)
        masked = chosen & (share < self.mask)
        swapped = chosen & (share >= self.mask) & (share < self.mask + self.random)
        shown = torch.where(swapped, torch.randint_like(tokens, self.levels), self.padded(tokens))
        return shown.masked_fill(masked, self.levels), chosen

    def padded(self, tokens: Tensor) -> Tensor:
        """Tokens, with PAD as the symbol that the network knows."""
        return tokens.masked_fill(tokens == PAD, self.levels + 1)

    def logits(self, h: Tensor) -> Tensor:
        weight = self.embed.weight[: self.levels] if self.head is None else self.head.weight
        return F.linear(h, weight, self.bias)
