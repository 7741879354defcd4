"""Samplers of diffusion: DDPM's ancestral one, DDIM and DPM-Solver++, which ask a network for x_0 and x_1.

They step along a path's own alpha and sigma, by `field.ends(x, t)`, the estimates of x_0 and x_1: their last step may
end at t = 0, where only x_0 is left. x is (B, ...); times and `watch` are those of zoo.nn.runge_kutta.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from zoo.nn.guidance import Ends
from zoo.nn.paths import Path, spread
from zoo.nn.runge_kutta import Function, Watch, stepped
from zoo.nn.targets import Velocity

Variance = Literal["small", "large"]


class Field:
    """What a network says of a path: the velocity v(x, t), and the ends x_0 and x_1; counts how often it is asked.

    ends    ends(x, t), t (B,) -> x_0, x_1
    cost    evaluations of the network for each time that it is asked: 2 where it is guided
    around  what asks it, as often as it likes, and makes other ends of the answers: zoo.nn.upsample_guidance
    """

    def __init__(
        self, path: Path, ends: Ends, *, cost: int = 1, around: Callable[[Ends], Ends] | None = None
    ) -> None:
        self.path, self.cost, self.evaluations = path, cost, 0
        self._network = ends
        self._ends = around(self._asked) if around else self._asked

    @classmethod
    def of(cls, velocity: Function, path: Path) -> "Field":
        """The field of a velocity v(x, t), t (B,), that is known itself."""
        return cls(path, lambda x, t: Velocity().ends(velocity(x, t), x, t, path))

    def ends(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of x_0 and x_1."""
        return self._ends(x, t.to(x.device).expand(len(x)))

    def _asked(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += self.cost
        return self._network(x, t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """alpha' x_0 + sigma' x_1."""
        x_0, x_1 = self.ends(x, t)
        alpha, sigma = self.path.slopes(t.double())
        return spread(alpha, x_0) * x_0 + spread(sigma, x_1) * x_1


def ddpm(
    field: Field, x: Tensor, times: Tensor, *, variance: Variance = "small", watch: Watch = None
) -> Tensor:
    """The ancestral sampler: x_s drawn from q(x_s | x_t, x_0) with the estimate of x_0. Ho et al. 2020, algorithm 2.

    mean = alpha_s b / sigma_t^2 x_0 + (alpha_t / alpha_s) sigma_s^2 / sigma_t^2 x_t,
    with b = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2: beta of the step, whatever its length. Nothing is drawn in
    the step to t = 0.

    variance    small: b sigma_s^2 / sigma_t^2, right where x_0 is one point; large: b, right where x_0 ~ N(0, 1), by
                which their FID is. ValueError for another
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance={variance}: small or large")

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, _ = field.ends(x, t)
        part = (sigma_s / sigma_t).square()
        beta = sigma_t.square() - (alpha_t / alpha_s).square() * sigma_s.square()
        mean = (alpha_s * beta / sigma_t.square()) * x_0 + (alpha_t / alpha_s * part) * x
        if sigma_s == 0:
            return mean
        spread_out = beta * part if variance == "small" else beta
        return mean + spread_out.clamp(min=0).sqrt() * torch.randn_like(x)

    return stepped(step, x, times, watch)


def ddim(field: Field, x: Tensor, times: Tensor, *, eta: float = 0.0, watch: Watch = None) -> Tensor:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - q^2) x_1 + q n with the estimates of x_0 and x_1: Song et al. 2020.

    q = eta (sigma_s / sigma_t) sqrt(b), b as in ddpm. eta = 0 is deterministic, and may walk towards the noise: from
    data to the noise that gives them, the inversion. eta = 1 is ddpm. A step from t = 0 asks the network at the least
    time of the path's span.
    """
    low = field.path.span[0]

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, x_1 = field.ends(x, t.clamp(min=low))
        if eta == 0 or sigma_s == 0:
            return alpha_s * x_0 + sigma_s * x_1
        beta = (sigma_t.square() - (alpha_t / alpha_s).square() * sigma_s.square()).clamp(min=0)
        q = eta * sigma_s / sigma_t * beta.sqrt()
        rest = (sigma_s.square() - q.square()).clamp(min=0).sqrt()
        return alpha_s * x_0 + rest * x_1 + q * torch.randn_like(x)

    return stepped(step, x, times, watch)


def dpm_solver(field: Field, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """DPM-Solver++(2M), of order 2 at an evaluation a step: Lu et al. 2022 (2211.01095), algorithm 2.

    With l = log(alpha / sigma), h = l_s - l_t and h' the step before,
    D = x_0 + h / (2 h') (x_0 - x_0'),  x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D.
    The first step is of order 1, and so is one to t = 0, where h is infinite.
    """
    before: tuple[Tensor, Tensor] | None = None  # x_0 and h of the last step

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        nonlocal before
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, _ = field.ends(x, t)
        ratio = sigma_s / sigma_t
        length = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
        D = x_0
        if before is not None and length.isfinite():
            D = x_0 + (length / (2 * before[1])) * (x_0 - before[0])
        before = (x_0, length)
        return ratio * x + (alpha_s - alpha_t * ratio) * D

    return stepped(step, x, times, watch)
