"""Which times a network is trained at: t of a path's span, drawn anew for every example.

A sampler is a quantile function of u, even on (0, 1): t = quantile(u). Drawn with a density pi(t) and weight 1 is the
same loss as drawn evenly and weighted by pi(t), with another variance.
"""

import torch
from torch import Tensor


class TimeSampler:
    """What all samplers share: u, one of it for each example.

    stratified  u of example i lies in (i, i + 1) / B: the batch covers all times, and the loss varies less from one
                step to the next (Kingma et al. 2021 have one offset for all). Examples come in random order.
    A sampler has `quantile(u, low, high)`.
    """

    def __init__(self, *, stratified: bool = False) -> None:
        self.stratified = stratified

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        """u in (0, 1) -> t in [low, high]."""
        raise NotImplementedError

    def __call__(
        self, count: int, span: tuple[float, float], *, device: torch.device | None = None
    ) -> Tensor:
        """count times in [low, high] = span: (count,), float32."""
        u = torch.rand(count, device=device)
        if self.stratified:
            u = (u + torch.arange(count, device=device)) / count
        return self.quantile(u, *span).clamp(*span)


class Uniform(TimeSampler):
    """Even over the span."""

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * u


class LogitNormal(TimeSampler):
    """t = sigmoid(mean + scale n), n ~ N(0, 1), most in the middle: Esser et al. 2024, best with mean 0 and scale 1.

    Of a path that runs from 0 to 1.
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.0, *, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        self.mean, self.scale = mean, scale

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * (self.mean + self.scale * normal(u)).sigmoid()


class LogNormal(TimeSampler):
    """ln t = mean + scale n, n ~ N(0, 1): Karras et al. 2022, of a path whose time is the noise.

    ValueError where the path ends at 1, on which all times beyond would fall.
    """

    def __init__(self, mean: float = -1.2, scale: float = 1.2, *, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        self.mean, self.scale = mean, scale

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        if high <= 1:
            raise ValueError(
                "time_sampler=log_normal is of paths whose time is the noise, as path=edm, and this one ends at "
                f"{high:g}; try logit_normal"
            )
        return (self.mean + self.scale * normal(u)).exp()


class At(TimeSampler):
    """Always one time, a part of the span: distillation to one step asks at the noise alone, at=1."""

    def __init__(self, at: float = 1.0, *, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        self.at = at

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        return torch.full_like(u, low + (high - low) * self.at)


def normal(u: Tensor) -> Tensor:
    """The number below which a standard normal lies with probability u; u = 0, which torch.rand may give, is finite."""
    return torch.special.ndtri(u.double().clamp(1e-12, 1 - 1e-12)).to(u.dtype)
