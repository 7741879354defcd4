"""Gaussian data, for which the optimal velocity, the law of the samples and the likelihood are known in closed form.

x_0 ~ N(mu, diag(s^2)), x_1 ~ N(0, 1), independent; so x_t ~ N(alpha mu, alpha^2 s^2 + sigma^2).
"""

import math

import torch
from torch import Tensor, nn

from zoo.models import Diffusion
from zoo.nn.samplers import Field

MU = torch.tensor([0.3, -0.5], dtype=torch.float64)
S = torch.tensor([0.4, 0.7], dtype=torch.float64)


def law(path, t: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of x_t."""
    alpha, sigma = path.coefficients(torch.tensor(t, dtype=torch.float64))
    return alpha * MU, (alpha**2 * S**2 + sigma**2).sqrt()


def ends(path):
    """E[x_0 | x_t] and E[x_1 | x_t]."""

    def of(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (c.unsqueeze(1) for c in path.coefficients(t.double()))
        rest = (x - alpha * MU) / (alpha**2 * S**2 + sigma**2)
        return MU + alpha * S**2 * rest, sigma * rest

    return of


def field(path) -> Field:
    """The optimal velocity field."""
    return Field(path, ends(path))


def log_normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log N(x; mean, deviation^2), (B,)."""
    z = (x - mean) / deviation
    return (-0.5 * z.square() - deviation.log() - 0.5 * math.log(2 * math.pi)).sum(1)


class Optimal(nn.Module):
    """A network that tells the mean of the target, given x_t: what training on Gaussian data ends in."""

    def __init__(self, path, target) -> None:
        super().__init__()
        self.path, self.target = path, target
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, seen: Tensor, t: Tensor, c=None) -> Tensor:
        time = (4 * t).exp() if hasattr(self.path, "rho") else t
        x = seen / self.target.scale(self.path, time.double()).unsqueeze(1)
        x_0, x_1 = ends(self.path)(x, time)
        return self.one * self.target.of(x_0, x_1, time, self.path)


def optimal(path, target, **options) -> Diffusion:
    """The model that training on Gaussian data ends in, in float64."""
    return Diffusion(
        shape=(2,),
        levels=None,
        backbone=lambda shape, context: Optimal(path, target),
        path=path,
        target=target,
        **options,
    )
