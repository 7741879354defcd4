"""The fully visible sigmoid belief network: Frey 1998; its deep descendants: Gan, Henao, Carlson and Carin 2015.

x_t is the t-th of the T elements of an image, read by row, column and channel, as a number in [0, 1].
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible
from zoo.models.pixels import scaled
from zoo.models.tokens import sequence
from zoo.nn.likelihood import Likelihood
from zoo.nn.masked_linear import MaskedLinear


class FVSBN(FullyVisible):
    """Each element by a logistic regression on all elements before it.

    p(x_t = 1 | x_<t) = sigmoid(b_t + sum_{s<t} W_ts x_s), from W = 0 and b = 0. With more than two levels the same
    sums are the parameters of another likelihood of one element, each its own.

    likelihood  as zoo.models.fully_visible has it, which also says what data are Unfit
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__(shape, levels, likelihood=likelihood)
        self.features = self.likelihood.features((1, 1, 1))
        ranks = torch.arange(math.prod(shape)).unsqueeze(0)
        self.regressions = MaskedLinear(ranks, ranks, strict=True, features=self.features)
        for parameter in self.regressions.parameters():
            nn.init.zeros_(parameter)

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [self.regressions]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What is said of each element: (B, C, H, W) -> (B, F, T, 1)."""
        told = self.regressions(scaled(sequence(x), self.levels, self.regressions.weight.dtype))
        return told.unflatten(1, (self.features, -1)).unsqueeze(-1)

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each element from the sums of those before it; y is not used."""
        T = tokens.shape[1]
        known = scaled(tokens, self.levels, self.regressions.weight.dtype)
        for t in range(P, T):
            here = self.regressions.rows(known, slice(t, None, T))[:, :, None, None]
            tokens[:, t] = self.likelihood.sample(here, temperature=temperature).flatten()
            known[:, t] = scaled(tokens[:, t], self.levels, known.dtype)
