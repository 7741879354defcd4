"""What a mixer that only looks back needs in a bidirectional network: a second one that looks ahead."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Bidirectional(nn.Module):
    """Two mixers, one of them on the reversed sequence, and their sum.  (B, T, D) -> (B, T, D)

    y = f(x) + reverse(g(reverse(x))): Schuster & Paliwal 1997. A backbone that is not causal makes one of any
    mixer that has no argument `causal`, and so looks back whatever it is told.
    """

    def __init__(self, dim: int, mixer: Callable[..., Any]) -> None:
        super().__init__()
        self.back = mixer(dim)
        self.ahead = mixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(x) + self.ahead(x.flip(1)).flip(1)
