"""How alike two pictures are, for one pair at a time: a and b (B, C, H, W) in [0, 1] -> (B,)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def mse(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared error."""
    return (a - b).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB: -10 log10 of the mean squared error, at most 100."""
    return -10 * mse(a, b).clamp(min=1e-10).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, the mean over windows and channels: Wang et al. 2004, eq. 13.

    (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2)) with means, variances and covariance
    under a Gaussian window of 11 x 11, sigma 1.5, wholly inside the picture; smaller pictures have smaller windows.
    """
    C = a.shape[1]
    rows, columns = (bell(min(WINDOW, side - 1 + side % 2), a) for side in a.shape[2:])
    window = (rows[:, None] * columns).expand(C, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=C)

    m_a, m_b = mean(a), mean(b)
    s_a, s_b, s_ab = mean(a * a) - m_a * m_a, mean(b * b) - m_b * m_b, mean(a * b) - m_a * m_b
    similar = (2 * m_a * m_b + C1) * (2 * s_ab + C2) / ((m_a * m_a + m_b * m_b + C1) * (s_a + s_b + C2))
    return similar.flatten(1).mean(1)


def sums(x: Tensor, back: Tensor, levels: int) -> dict[str, Tensor]:
    """Sums over a batch of what tells images of integers from their reconstructions: (B, C, H, W) twice."""
    a, b = (image.double() / (levels - 1) for image in (x, back))
    return {
        "count": torch.tensor(len(x), device=x.device),
        "mse": mse(a, b).sum(),
        "psnr": psnr(a, b).sum(),
        "ssim": ssim(a, b).sum(),
        "x": a.mean((1, 2, 3)).sum(),
        "square": a.square().mean((1, 2, 3)).sum(),
    }


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Errors of reconstructions, of `sums` over a whole split, with pixels from 0 to 1.

    mse, psnr (dB), ssim are means over images; normalized_mse is the mse over the variance of all pixels.
    """
    told = {name: float(sums[name]) / float(sums["count"]) for name in ("mse", "psnr", "ssim", "x", "square")}
    variance = told.pop("square") - told.pop("x") ** 2
    return {**told, "normalized_mse": told["mse"] / max(variance, 1e-12)}


def bell(size: int, like: Tensor) -> Tensor:
    """A Gaussian's values at `size` places around its middle, which sum to 1."""
    t = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    return (-t.square() / (2 * SIGMA**2)).softmax(0)
