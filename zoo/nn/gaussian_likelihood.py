"""The likelihood of integers by a Gaussian that is integrated over each one's bin (zoo.nn.likelihood)."""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from zoo.nn.likelihood import whole, wide


class DiscretizedGaussian:
    """Each element is drawn from a Gaussian, cut into as many bins as there are levels.

    With v = 2x / (levels - 1) - 1 in [-1, 1], h = 1 / (levels - 1) half a bin and Phi the standard normal's cdf:
    p(x) = Phi((v + h - mu) / s) - Phi((v - h - mu) / s), the first bin open below, the last one above.

    The probabilities sum to 1, so nats compare with those of other likelihoods; a density's do not.

    scale   s for all elements, in the units of v; None: the network tells log s of each, so F = 2 C features (mu,
            then log s), within [-7, 2] at 256 levels
    """

    def __init__(self, levels: int, *, scale: float | None = None) -> None:
        if scale is not None and scale <= 0:
            raise ValueError(f"scale={scale} must be above 0; None lets the network tell it")
        self.levels, self.scale = levels, scale
        finer = math.log(255 / (levels - 1))
        self.floor, self.ceiling = finer - 7.0, 2.0 + min(finer, 0.0)  # a bin's mass is no rounding error

    def features(self, shape: tuple[int, ...]) -> int:
        return shape[0] * (1 if self.scale else 2)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mu, log_s = self._split(parameters)
        rate, h = (-log_s).exp(), 1 / (self.levels - 1)
        centre = x.to(mu.dtype) * (2 * h) - 1 - mu
        # the bin mirrored to where the cdf is small: no difference of numbers close to 1
        high, low = log_ndtr((h - centre.abs()) * rate), log_ndtr((-h - centre.abs()) * rate)
        inside = high + torch.log(-torch.expm1(low - high))
        below, above = log_ndtr((centre + h) * rate), log_ndtr((h - centre) * rate)
        mass = torch.where(x == 0, below, torch.where(x == self.levels - 1, above, inside))
        return mass.sum((-3, -2, -1))

    def sample(self, parameters: Tensor, *, temperature: float = 1.0) -> Tensor:
        mu, log_s = self._split(parameters)
        return self._whole(mu + temperature * log_s.exp() * torch.randn_like(mu))

    def mode(self, parameters: Tensor) -> Tensor:
        return self._whole(self._split(parameters)[0])

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log s, (..., C, H, W)."""
        if self.scale:
            mu = wide(parameters)
            return mu, torch.full_like(mu, math.log(self.scale))
        mu, log_s = wide(parameters).chunk(2, -3)
        return mu, log_s.clamp(self.floor, self.ceiling)

    def _whole(self, v: Tensor) -> Tensor:
        level = ((v + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return whole(level, self.levels)
