"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) x_1.

x_0 is data, x_1 is noise or a draw of another source, t runs from data to noise. alpha and sigma are of the shape and
type of t; they are computed in float64. v = alpha'(t) x_0 + sigma'(t) x_1 is the velocity of a path, and
log SNR = 2 log(alpha / sigma) says how much of the data is left.
"""

import math

import torch
from torch import Tensor


class Path:
    """What all paths share: where they begin and end, what a network is told of the time, and steps to walk in.

    span   the least and the greatest t at which a network is asked; where the least is above 0 the last step of a
           sampler leads from there to the network's own estimate of x_0
    A path has `coefficients(t) -> alpha, sigma` and `slopes(t) -> alpha', sigma'` in float64.
    """

    span: tuple[float, float] = (0.0, 1.0)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t), sigma(t) of t in float64."""
        raise NotImplementedError

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(t), sigma'(t) of t in float64."""
        raise NotImplementedError

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t), sigma(t)."""
        alpha, sigma = self.coefficients(t.double())
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(t), sigma'(t)."""
        alpha, sigma = self.slopes(t.double())
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def clock(self, t: Tensor) -> Tensor:
        """What a network is told of the time, of order one."""
        return t

    def grid(self, steps: int, *, shift: float = 1.0) -> Tensor:
        """Times from the noisiest to 0, (steps + 1,) in float64; with a span above 0 it ends in its least time and 0.

        shift   of `shifted`. ValueError for steps < 1.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: a sampler takes at least one step")
        low, high = self.span
        last = [0.0] if low else []
        count = steps + 1 - len(last)
        inner = self.between(count) if count > 1 else torch.tensor([high], dtype=torch.float64)
        return torch.cat([shifted(self, inner, shift), torch.tensor(last, dtype=torch.float64)])

    def between(self, count: int) -> Tensor:
        """Times of the span, from the noisiest on: (count,), float64, evenly spread."""
        low, high = self.span
        return torch.linspace(high, low, count, dtype=torch.float64)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        """The t where sigma / alpha is so much, by bisection between 0 and the end of the span."""
        below = torch.zeros_like(ratio, dtype=torch.float64)
        above = torch.full_like(below, self.span[1])
        for _ in range(60):
            middle = 0.5 * (below + above)
            alpha, sigma = self.coefficients(middle)
            less = sigma < ratio.double() * alpha
            below, above = torch.where(less, middle, below), torch.where(less, above, middle)
        return (0.5 * (below + above)).to(ratio.dtype)


class Straight(Path):
    """x_t = (1 - t) x_0 + t x_1, whose velocity x_1 - x_0 does not change: Liu et al. 2022, rectified flow.

    They have t = 1 at the data; here it is at the noise, as in Esser et al. 2024.

    low, high   the span; targets that say nothing of x_0 or x_1 at an end (Noise at 1, Data at 0) ask for less

    Raises ValueError unless 0 <= low < high <= 1.
    """

    def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"low={low}, high={high}: a straight path runs from 0 to 1, as low=0.001 high=0.999"
            )
        self.span = (low, high)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)  # 1 where the ratio is infinite


class VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1: diffusion, Ho et al. 2020 (DDPM) and Nichol & Dhariwal 2021, continuous in t.

    A schedule, LinearBetas or CosineBetas, gives log alpha^2(t); at t = n / 1000 it is DDPM's own product of n factors.

    low     the least t at which a network is asked: DDPM's first of 1,000 steps
    """

    def __init__(self, schedule: "LinearBetas | CosineBetas | None" = None, *, low: float = 1e-3) -> None:
        if not 0 < low < 1:
            raise ValueError(f"low={low}: at t = 0 sigma has no slope; try low=0.001")
        self.schedule = schedule or LinearBetas()
        self.span = (low, 1.0)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_square, _ = self.schedule(t)
        return (0.5 * log_square).exp(), (-torch.expm1(log_square)).sqrt()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.coefficients(t)
        _, rate = self.schedule(t)
        return 0.5 * rate * alpha, -0.5 * rate * alpha.square() / sigma


class LinearBetas:
    """DDPM's schedule: beta_i grows linearly over N steps, alpha^2(i / N) = prod_{j <= i} (1 - beta_j).

    1 - beta_j = b (c - j) with b the growth of a step, so the product is b^n Gamma(c) / Gamma(c - n), n = N t, which is
    defined between the steps too. Ho et al. 2020: 1e-4 to 0.02 in 1,000 steps.
    """

    def __init__(self, first: float = 1e-4, last: float = 0.02, *, steps: int = 1000) -> None:
        if not 0 < first < last < 1 or steps < 2:
            raise ValueError(
                f"first={first}, last={last}, steps={steps}: betas grow between 0 and 1, in two steps at least"
            )
        self.steps = steps
        self.growth = (last - first) / (steps - 1)
        self.c = (1 - first) / self.growth + 1

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha^2(t) and its slope, float64."""
        n = self.steps * t
        c = torch.full_like(n, self.c)
        log_square = n * math.log(self.growth) + torch.lgamma(c) - torch.lgamma(c - n)
        return log_square.clamp(max=0), self.steps * (math.log(self.growth) + torch.digamma(c - n))


class CosineBetas:
    """alpha^2(t) = cos^2(w(t)) / cos^2(w(0)), w = (t + s) / (1 + s) pi / 2: Nichol & Dhariwal 2021, section 3.2.

    alpha ends where the last of 1,000 betas, clipped to 0.999 as theirs, has it end: at 1e-3 of alpha^2(0.999).
    """

    def __init__(self, s: float = 0.008, *, clip: float = 0.999, steps: int = 1000) -> None:
        self.s = s
        before = self._log_square(torch.tensor(1 - 1 / steps, dtype=torch.float64))
        self.floor = float(before) + math.log(1 - clip)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha^2(t) and its slope, float64."""
        turn = 0.5 * math.pi / (1 + self.s)
        log_square = self._log_square(t).clamp(min=self.floor, max=0)
        # at t = 1 the tangent is infinite: there the slope is that of where alpha ends
        angle = turn * (t + self.s)
        end = math.acos(math.exp(0.5 * self.floor) * math.cos(turn * self.s))
        return log_square, -2 * turn * torch.tan(angle.clamp(max=end))

    def _log_square(self, t: Tensor) -> Tensor:
        turn = 0.5 * math.pi / (1 + self.s)
        return 2 * (torch.cos(turn * (t + self.s)).log() - math.log(math.cos(turn * self.s)))


class EDMPath(Path):
    """x_t = x_0 + t x_1, t being the noise's standard deviation: Karras et al. 2022.

    low, high   the span: 0.002 to 80 of data whose own deviation is about 0.5
    rho         of the steps of a sampler: t_i^(1 / rho) is evenly spread, 7 in the paper
    """

    def __init__(self, *, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> None:
        if not 0 < low < high:
            raise ValueError(f"low={low}, high={high}: noise grows from above 0, as low=0.002 high=80")
        self.span, self.rho = (low, high), rho

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """ln(sigma) / 4, their c_noise, of which zoo.nn.time_embedding has waves of 1000 to 0.1.

        Theirs are of 1 and slower in DDPM++, and of about 100, drawn, in NCSN++.
        """
        return t.log() / 4

    def between(self, count: int) -> Tensor:
        """Times of the span, (high^(1/rho) + i / (count - 1) (low^(1/rho) - high^(1/rho)))^rho: their eq. 5."""
        low, high = (end ** (1 / self.rho) for end in self.span)
        times = torch.linspace(high, low, count, dtype=torch.float64).pow(self.rho)
        times[0], times[-1] = self.span[1], self.span[0]
        return times

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio


def shifted(path: Path, t: Tensor, s: float) -> Tensor:
    """The time at which there is s times as much noise: sigma / alpha is multiplied by s, within the path's span.

    On the straight path t' = s t / (1 + (s - 1) t): Esser et al. 2024, eq. 23, with s = sqrt(m / n) for images of m
    pixels where n were good. log SNR falls by 2 log s. ValueError for s that is not above 0.
    """
    if s == 1:
        return t
    if s <= 0:
        raise ValueError(f"shift={s}: noise is multiplied by it; 3 for images of nine times as many pixels")
    low, high = path.span
    if isinstance(path, Straight):  # both ends exactly
        return (s * t / (1 + (s - 1) * t)).clamp(low, high)
    alpha, sigma = path(t.double())
    inside = path.at_ratio(s * sigma / alpha).clamp(low, high)
    return torch.where((t <= low) | (t >= high), t, inside.to(t.dtype))


def spread(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient () or (B,) of a batch, to multiply like (B, *shape) with."""
    return coefficient.reshape(-1, *[1] * (like.dim() - 1)).to(like)
