"""Bijections that scale and shift each channel, or each dimension, by itself.

x is (B, C, ...): a channel is dimension 1, whether pixels follow it or not. log|det| counts a channel's scale once
for each of its pixels.
"""

from math import prod

import torch
from torch import Tensor, nn

from zoo.nn.ranks import summed

EPSILON = 1e-6  # added to a variance: the channel of a border may be constant


class Scaling(nn.Module):
    """A learned scale for every dimension, z = e^s x, log|det| = sum(s): the last layer of NICE (eq. 13)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale).exp()


class ActNorm(nn.Module):
    """A learned shift and scale by channel, z = (x + shift) e^s, that start where z has mean 0 and variance 1.

    log|det| = H W sum(s). Kingma and Dhariwal 2018, section 3.1; measured in initialize, on as many examples as
    it is given, never in forward.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x + along(self.shift, x)) * along(self.log_scale.exp(), x)
        return z, (prod(x.shape[2:]) * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * along((-self.log_scale).exp(), z) - along(self.shift, z)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Set shift and scale from x (B, C, ...), over which z then has mean 0 and variance 1."""
        count, total, square = moments(x)
        mean = total / count
        self.shift.copy_(-mean)
        self.log_scale.copy_(-0.5 * (square / count - mean.square() + EPSILON).log())
        return self(x)[0]


class RunningNorm(nn.Module):
    """Batch normalisation by running moments, z = (x - m) / sqrt(v + eps): Dinh et al. 2016, section 3.7.

    log|det| = -1/2 H W sum(log(v + eps)). m and v follow the batches, m <- rho m + (1 - rho) mean(x), from one
    optimizer step to the next: while `watching`, sums of what passes are noted, and `update` brings them in. Within
    a step they are constants. Theirs include the batch itself, with weight 1 - rho; ours lag a step behind, and so
    z is an exact bijection of x in training as well as after it.

    momentum    rho
    """

    def __init__(self, channels: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.watching = False  # set by who trains, for one pass: a recomputation must not count again
        self.seen: Tensor | None = None  # count, sum, sum of squares since the last update: (3, C), float64

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.watching:
            sums = torch.stack(moments(x.detach()))
            self.seen = sums if self.seen is None else self.seen + sums
        log_scale = -0.5 * (self.variance + EPSILON).log()
        z = (x - along(self.mean, x)) * along(log_scale.exp(), x)
        return z, (prod(x.shape[2:]) * log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * along((self.variance + EPSILON).sqrt(), z) + along(self.mean, z)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Start with the moments of x (B, C, ...)."""
        count, total, square = moments(x)
        self.mean.copy_(total / count)
        self.variance.copy_(square / count - (total / count).square())
        return self(x)[0]

    @torch.no_grad()
    def update(self) -> None:
        """Bring what was seen, on all ranks, into the running moments; nothing if nothing was."""
        if self.seen is None:
            return
        count, total, square = summed(self.seen)
        mean = total / count
        self.mean.lerp_(mean.to(self.mean), 1 - self.momentum)
        self.variance.lerp_((square / count - mean.square()).to(self.mean), 1 - self.momentum)
        self.seen = None


def along(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (C, 1, ...), to be broadcast over x (B, C, ...)."""
    return channels.reshape(-1, *[1] * (x.dim() - 2))


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many numbers each channel of x (B, C, ...) has, their sum and their sum of squares: (C,), float64."""
    rows = x.double().transpose(0, 1).flatten(1)  # (C, N)
    return torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)
