"""Attention from one sequence to another.

x (B, T, D) asks, memory (B, S, D) is read. H heads of d = D / H features.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.feedforward import FeedForward, scaled_init

Memory = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Every token takes a mean of what another sequence has: softmax(q k' / sqrt(d)) v, for each head.

    q comes from x (B, T, D), k and v from memory (B, S, D), once for all steps, by `remember`. Vaswani et al.
    2017, section 3.2.3. Raises ValueError if dim is no multiple of heads.
    """

    def __init__(self, dim: int, heads: int = 8, *, bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.q, self.kv, self.out):
            scaled_init(linear)

    def remember(self, memory: Tensor) -> Memory:
        """Keys and values of what is read, (B, H, S, d) each."""
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, *memory).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Read another sequence, then mix channels: what a decoder's block does after its own attention.

    x = x + cross(norm(x), memory);  x = x + mlp(norm(x)).  x (B, T, D), a memory that `remember` made -> same

    Raises ValueError for an mlp with a state, as zoo.nn.RWKVFeedForward: a decoder goes on token by token, and this
    block remembers none.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        mlp: Callable[..., Any] | None = FeedForward,
        norm: Callable[..., Any] = nn.LayerNorm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cross_norm = norm(dim)
        self.cross = CrossAttention(dim, heads)
        self.mlp_norm = None if mlp is None else norm(dim)
        self.mlp = None if mlp is None else mlp(dim)
        self.dropout = nn.Dropout(dropout)
        if hasattr(self.mlp, "step"):
            raise ValueError(
                f"mlp={type(self.mlp).__name__} sees the token before too, which a block that reads a source does not "
                "keep; try mlp=gelu"
            )

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = x + self.dropout(self.cross(self.cross_norm(x), memory))
        if self.mlp is None or self.mlp_norm is None:
            return x
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
