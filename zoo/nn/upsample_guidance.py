"""Upsample guidance: images larger than those that a network was trained on, Hwang et al. 2024 (2404.01709).

m is how much larger a side is, D the mean over m by m pixels, U the repetition of each pixel. D keeps what an image
shows and divides the noise by m: D[x_t] = alpha D[x_0] + (sigma / m) x_1. The network knows it, from a time with less.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.guidance import Ends
from zoo.nn.paths import Path, spread


def upsampled(ends: Ends, path: Path, m: int, *, weight: float = 1.0, ratio: float = 2.0) -> Ends:
    """ends(x, t) -> x_0, x_1 of images m times as wide, whose coarse part is what it is at the trained size.

    x_0 + w U[x_0' - D[x_0]],  x_1 + w U[x_1' / m - D[x_1]],  x_0', x_1' = ends(D[x_t] alpha' / alpha, t'), where
    sigma' / alpha' = sigma / (m alpha). Theirs is of the noise of a variance preserving path; of both ends it holds on
    every path, also where alpha or sigma is 0.

    weight  w while there is much noise; afterwards nothing is changed, and details are drawn
    ratio   how much: sigma >= ratio alpha; 2 is the noisier 60 % of DDPM's steps, one of theirs, on any path
    """

    def guided(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_0, x_1 = ends(x, t)
        alpha, sigma = path.coefficients(t.double())
        if bool((sigma < ratio * alpha)[0]):  # all of a batch are at one time
            return x_0, x_1
        less = path.at_ratio(sigma / m / alpha).clamp(*path.span)
        alpha_less, sigma_less = path.coefficients(less)
        # alpha' / alpha, which is sigma' / (sigma / m): one of the two may be 0 / 0
        scale = torch.hypot(alpha_less, sigma_less) / torch.hypot(alpha, sigma / m)
        low_0, low_1 = ends(spread(scale, x) * F.avg_pool2d(x, m), less.to(t.dtype))
        x_0 = x_0 + weight * repeated(low_0 - F.avg_pool2d(x_0, m), m)
        return x_0, x_1 + weight * repeated(low_1 / m - F.avg_pool2d(x_1, m), m)

    return guided


def repeated(x: Tensor, m: int) -> Tensor:
    """Each pixel m by m times."""
    return x.repeat_interleave(m, -1).repeat_interleave(m, -2)
