"""Base distributions of flows: what z is, once all structure is taken out of it.

z is (B, D). log_prob is in nats, (B,). A sample at temperature t is the noise scaled by t; 0 gives the mode.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.likelihood import wide


class Gaussian(nn.Module):
    """N(0, 1) in every dimension."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """-1/2 sum(z^2 + log(2 pi)); y is not used."""
        return -0.5 * (wide(z).square() + math.log(2 * math.pi)).sum(1)

    def sample(self, like: Tensor, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """z of the shape, type and device of like (n, D)."""
        return temperature * torch.randn_like(like)


class Logistic(nn.Module):
    """The standard logistic in every dimension: tails that fall as e^-|z|, kinder to outliers than a Gaussian's."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """-sum(softplus(z) + softplus(-z)); y is not used."""
        z = wide(z)
        return -(F.softplus(z) + F.softplus(-z)).sum(1)

    def sample(self, like: Tensor, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """z of the shape, type and device of like (n, D)."""
        return temperature * torch.rand_like(like).clamp(1e-6, 1 - 1e-6).logit()


class ByClass(nn.Module):
    """A base moved and scaled by the class, (z - mu_y) / e^(s_y): p(x | y). mu and s are learned, and start at 0.

    Glow's class-conditional prior does so at its last scale only, and equally at all pixels.
    """

    def __init__(self, base: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.base = base
        self.mean = nn.Parameter(torch.zeros(classes, dim))
        self.log_scale = nn.Parameter(torch.zeros(classes, dim))

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(z | y), y (B,)."""
        mean, s = self.mean[y], self.log_scale[y]
        return self.base.log_prob((z - mean) * (-s).exp()) - s.sum(1)

    def sample(self, like: Tensor, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """z given y (n,), of the shape, type and device of like (n, D)."""
        return self.mean[y] + self.log_scale[y].exp() * self.base.sample(like, temperature=temperature)
