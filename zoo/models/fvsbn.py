"""The fully visible sigmoid belief network: Frey 1998; its deep descendants: Gan, Henao, Carlson and Carin 2015.

x_t is the t-th of the T elements of an image, read by row, column and channel, as a number in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.models.pixels import ORDER, begun, drawn, elements, per_element, scaled, size_of, terms
from zoo.models.tokens import arranged, sequence
from zoo.nn.likelihood import Likelihood
from zoo.nn.masked_linear import MaskedLinear
from zoo.types import Kind


class FVSBN(nn.Module):
    """Each element by a logistic regression on all elements before it.

    p(x_t = 1 | x_<t) = sigmoid(b_t + sum_{s<t} W_ts x_s), from W = 0 and b = 0. With more than two levels the same
    sums are the parameters of another likelihood of one element, each its own.

    likelihood  likelihood(levels) makes p(x_t | x_<t); None: Bernoulli at 2 levels, else a softmax over all

    Unfit if the data are not images of integers.
    """

    kind: ClassVar[Kind] = "exact"
    together: ClassVar[int] = 1

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__()
        self.shape = C, H, W = size_of(self, shape, levels)
        self.levels = levels
        self.protocol = {"order": ORDER}
        self.likelihood = per_element(levels, likelihood)
        self.features = self.likelihood.features((1, 1, 1))
        ranks = torch.arange(C * H * W).unsqueeze(0)
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

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per element; nats: per example; y is not used."""
        return terms(self.log_prob(x), x[0].numel())

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x) in nats, (B,); y is not used."""
        return self.likelihood.log_prob(self(x), elements(x))

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, temperature: float = 1.0, prompt: Tensor | None = None
    ) -> Tensor:
        """n images, (n, C, H, W), element by element; zoo.models.pixels.recomputed is the slow way.

        temperature   divides logits; 0 takes the most probable level
        prompt        (n, P) first elements, which are kept

        ValueError for a temperature below 0 and a prompt that does not fit. y is not used.
        """
        tokens, P = begun(self, n, prompt, temperature)
        T = tokens.shape[1]
        known = scaled(tokens, self.levels, self.regressions.weight.dtype)
        for t in range(P, T):
            here = self.regressions.rows(known, slice(t, None, T))[:, :, None, None]
            tokens[:, t] = drawn(self.likelihood, here, temperature).flatten()
            known[:, t] = scaled(tokens[:, t], self.levels, known.dtype)
        return self.image(tokens)

    def image(self, tokens: Tensor) -> Tensor:
        """Elements in order as data: (n, T) -> (n, C, H, W)."""
        return arranged(tokens, self.shape, self.levels)
