"""A classifier of sequences, by any token mixer.

x is data, read as T tokens below `levels`; y (B,) are labels below `classes`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.tokens import grid, sequence
from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.nn.feedforward import FeedForward
from zoo.types import PAD, Unfit, scored


class SequenceClassifier(nn.Module):
    """p(y | x) = softmax(head(mean of backbone(x) over the tokens that are there)).

    The form of Long Range Arena (Tay et al. 2020), with images read by row, column and channel. Where a text is
    PAD the network sees a symbol that says so, and the mean leaves it out. It tells y, not how likely x is.

    classes     how many there are
    causal      whether a token sees only those before it, as recurrences do
    dim, depth, mixer, position, mlp, norm, norm_first, dropout   as zoo.nn.Backbone has them

    Raises Unfit for real-valued data, and for data without classes.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None,
        dim: int = 512,
        depth: int = 6,
        mixer: Callable[..., Any] | Sequence[Callable[..., Any]] = Attention,
        position: Callable[..., Any] | None = None,
        mlp: Callable[..., Any] | None = FeedForward,
        norm: Callable[..., Any] = nn.LayerNorm,
        norm_first: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if levels is None or not classes:
            raise Unfit(
                f"a classifier of sequences needs integers and their labels, and this data has levels={levels}, "
                f"classes={classes}; try a dataset with both",
                lambda space: space.levels is not None and bool(classes),
            )
        self.shape, self.levels, self.classes = tuple(shape), levels, classes
        self.embed = nn.Embedding(levels + 1, dim)  # the last stands for PAD
        self.backbone = Backbone(
            dim,
            depth,
            mixer,
            position=position,
            mlp=mlp,
            norm=norm,
            norm_first=norm_first,
            dropout=dropout,
            causal=causal,
            grid=grid(shape),
        )
        self.head = nn.Linear(dim, classes)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute."""
        return self.backbone.blocks

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes.  x (B, *shape) -> (B, classes)"""
        tokens = sequence(x)
        h = self.backbone(self.embed(tokens.masked_fill(tokens == PAD, self.levels)))
        here = scored(tokens).unsqueeze(-1)
        return self.head((h * here).sum(1) / here.sum(1).clamp(min=1))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: -log p(y | x) in nats per example."""
        return {"loss": F.cross_entropy(self(x), labels(y))}

    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How many examples there are, and how many were told right."""
        y = labels(y)
        right = self(x).argmax(-1) == y
        return {"right": right.sum(), "examples": right.new_ones(len(y), dtype=y.dtype).sum()}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """accuracy: how often the most probable class was the right one."""
        return {"accuracy": float(sums["right"]) / max(float(sums["examples"]), 1.0)}


def labels(y: Tensor | None) -> Tensor:
    """y (B,), which a classifier cannot do without."""
    if y is None or y.ndim != 1:
        found = "none" if y is None else f"y of shape {tuple(y.shape)}"
        raise ValueError(f"a classifier needs one label for each example, y (B,); there is {found}")
    return y.long()
