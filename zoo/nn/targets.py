"""What a network is asked for: the velocity, the noise, the data, the score, or EDM's mixture. All say the same.

x_t = alpha x_0 + sigma x_1 is known, and a target is o = a x_0 + b x_1. These are two equations of x_0 and x_1:
with det = alpha b - sigma a, x_0 = (b x_t - sigma o) / det and x_1 = (alpha o - a x_t) / det.
A time is () or (B,), x_0, x_1, x_t and o are (B, *shape).
"""

import torch
from torch import Tensor

from zoo.nn.paths import Path, spread


class Target:
    """What all targets share. One has `mix(path, t) -> a, b`, in float64, of t in float64."""

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        """a, b of o = a x_0 + b x_1."""
        raise NotImplementedError

    def scale(self, path: Path, t: Tensor) -> Tensor:
        """By what x_t is multiplied before a network sees it."""
        return torch.ones_like(t)

    def of(self, x_0: Tensor, x_1: Tensor, t: Tensor, path: Path) -> Tensor:
        """The target o of data and noise: what a network is trained to tell."""
        a, b = self.mix(path, t.double())
        return spread(a, x_0) * x_0 + spread(b, x_0) * x_1

    def ends(self, o: Tensor, x_t: Tensor, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        """x_0 and x_1, of what a network told and of what it was shown."""
        alpha, sigma = path.coefficients(t.double())
        a, b = self.mix(path, t.double())
        det = alpha * b - sigma * a
        x_0 = spread(b / det, o) * x_t - spread(sigma / det, o) * o
        x_1 = spread(alpha / det, o) * o - spread(a / det, o) * x_t
        return x_0, x_1

    def gain(self, path: Path, t: Tensor) -> Tensor:
        """By how much an error of o is one of x_0: |sigma / det|, float64."""
        alpha, sigma = path.coefficients(t.double())
        a, b = self.mix(path, t.double())
        return (sigma / (alpha * b - sigma * a)).abs()

    def check(self, path: Path) -> None:
        """Raises ValueError where a path's span has an end at which o does not tell x_0 and x_1."""
        for t in path.span:
            time = torch.tensor(t, dtype=torch.float64)
            alpha, sigma = path.coefficients(time)
            a, b = self.mix(path, time)
            det = alpha * b - sigma * a
            if not det.isfinite() or det == 0:
                raise ValueError(
                    f"{type(self).__name__} tells nothing of data or noise at t={t:g} of {type(path).__name__}; try "
                    f"{'low=0.001' if t == path.span[0] else 'high=0.999'} there, or another target"
                )


class Velocity(Target):
    """o = alpha' x_0 + sigma' x_1, the slope of x_t: Liu et al. 2022, Lipman et al. 2022."""

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return path.slopes(t)


class Noise(Target):
    """o = x_1: Ho et al. 2020, epsilon."""

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


class Data(Target):
    """o = x_0."""

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)


class Score(Target):
    """o = -x_1 / sigma, whose mean given x_t is the slope of log p(x_t) for Gaussian x_1: Song et al. 2020."""

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        _, sigma = path.coefficients(t)
        return torch.zeros_like(t), -1 / sigma


class Preconditioned(Target):
    """EDM's: a network F of unit input and unit target, x_0 = c_skip y + c_out F(c_in y): Karras et al. 2022, table 1.

    y = x_t / alpha has the noise s = sigma / alpha, and with data of deviation d
    c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2).

    deviation   d, of the data as the network's path has them: 0.5 for images in [-1, 1]
    """

    def __init__(self, deviation: float = 0.5) -> None:
        if deviation <= 0:
            raise ValueError(
                f"deviation={deviation}: data spread by more than nothing, images in [-1, 1] by 0.5"
            )
        self.deviation = deviation

    def mix(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        # o = (x_0 - c_skip y) / c_out with y = x_0 + s x_1
        alpha, sigma = path.coefficients(t)
        s, d = sigma / alpha, self.deviation
        root = (s.square() + d**2).sqrt()
        return s / (d * root), -d / root

    def scale(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t)
        return 1 / (sigma.square() + (self.deviation * alpha).square()).sqrt()


class PlainWeight:
    """Weight 1 on the error of what the network tells: L_simple of Ho et al. 2020, flow matching."""

    def __call__(self, path: Path, t: Tensor, gain: Tensor) -> Tensor:
        """path, t (B,), gain (B,) of Target.gain -> weights of |o - target|^2, (B,), float64."""
        return torch.ones_like(gain)


class EDMWeight:
    """(s^2 + d^2) / (s d)^2 on the error of x_0, s = sigma / alpha: Karras et al. 2022; d as in Preconditioned.

    With that target it is weight 1 on what the network tells.
    """

    def __init__(self, deviation: float = 0.5) -> None:
        self.deviation = deviation

    def __call__(self, path: Path, t: Tensor, gain: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t.double())
        # (s^2 + d^2) / (s d)^2 = 1 / d^2 + 1 / s^2; without noise the error of x_0 is 0, and 0 is its weight
        return gain.square() * (self.deviation**-2 + (alpha / sigma.clamp(min=1e-12)).square())


class MinSNR:
    """min(SNR, gamma) on the error of x_0, SNR = (alpha / sigma)^2: Hang et al. 2023, gamma = 5."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, path: Path, t: Tensor, gain: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t.double())
        return gain.square() * (alpha / sigma).square().clamp(max=self.gamma)
