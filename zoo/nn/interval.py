"""Integers as numbers in [-1, 1] and back, with their exact constant."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.nn.likelihood import whole


class Interval:
    """x in [0, levels) -> 2 x / (levels - 1) - 1 in [-1, 1]; real numbers (levels None) are left as they are.

    An integer is in the middle of its bin: log P(x) >= E_u log p(h) + constant, h = 2 (x + u) / (levels - 1) - 1 with u
    even on [-1/2, 1/2).

    ValueError for fewer than two levels.
    """

    def __init__(self, levels: int | None) -> None:
        if levels is not None and levels < 2:
            raise ValueError(f"levels={levels}: an interval has two ends")
        self.levels = levels

    def real(self, x: Tensor, kind: torch.dtype, *, dequantize: bool = False) -> Tensor:
        """Data in a floating type; with dequantize each integer anywhere in its bin."""
        x = x.to(kind)
        if self.levels is None:
            return x
        if dequantize:
            x = x + torch.rand_like(x) - 0.5
        return 2 / (self.levels - 1) * x - 1

    def data(self, h: Tensor) -> Tensor:
        """The nearest data of their own kind: integers, where they are integers."""
        if self.levels is None:
            return h
        x = ((h + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return whole(x, self.levels)

    def log_prob(
        self, density: Callable[[Tensor], Tensor], x: Tensor, kind: torch.dtype, *, draws: int = 1
    ) -> Tensor:
        """log of the mean of the densities of dequantized x, (B,), as a probability; of real numbers, their density.

        density   (B, *shape) in `kind` -> log p in nats, (B,)
        draws     of u; of real numbers nothing is drawn
        """
        told = [density(self.real(x, kind, dequantize=True)) for _ in range(draws if self.levels else 1)]
        return torch.stack(told).logsumexp(0) - math.log(len(told)) + self.constant(x[0].numel())

    def constant(self, dim: int) -> float:
        """log|det dh/dx| of D elements in nats, D log(2 / (levels - 1)); 0 of real numbers."""
        return dim * math.log(2 / (self.levels - 1)) if self.levels else 0.0
