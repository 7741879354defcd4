"""Monotone rational-quadratic splines: Gregory and Delbourgo 1982; Durkan et al. 2019, section 3.1."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # width and height of a bin, as a share of the whole, and slope at a knot


def rational_quadratic(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """A spline through K + 1 knots from (-bound, -bound) to (bound, bound), the identity outside of them.

    x               any shape (...)
    widths, heights (..., K) free numbers, whose softmax divides the interval
    slopes          (..., K - 1) free numbers, whose softplus is the slope at the inner knots, 1 at zero; it is 1
                    at the outer knots too, where the identity goes on. All zeros make the identity
    inverse         go from y back to x

    Returns y and log dy/dx, both (...); where inverse, x and log dx/dy. With xi = (x - x_k) / w in bin k,
    s = h / w, d the slopes at its two ends and e = d_k + d_k+1 - 2 s:
    y = y_k + h (s xi^2 + d_k xi (1 - xi)) / (s + e xi (1 - xi)).
    """
    left, width = _knots(widths, bound)
    low, height = _knots(heights, bound)
    one = math.log(math.expm1(1 - LEAST))
    slope = F.pad(LEAST + F.softplus(slopes + one), (1, 1), value=1.0)

    inside = (x > -bound) & (x < bound)
    within = torch.where(inside, x, 0.0)  # what is outside must not make nans, in gradients either
    edges = low if inverse else left
    k = (within[..., None] >= edges[..., 1:]).sum(-1, keepdim=True)
    x_k, w, y_k, h, d, d_next = (
        part.gather(-1, k).squeeze(-1) for part in (left, width, low, height, slope[..., :-1], slope[..., 1:])
    )
    s = h / w
    e = d + d_next - 2 * s
    if inverse:
        up = within - y_k
        a = h * (s - d) + up * e
        b = h * d - up * e
        c = -s * up
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())  # eq. 8: nothing cancels
        result = x_k + w * xi
    else:
        xi = (within - x_k) / w
        result = y_k + h * (s * xi.square() + d * xi * (1 - xi)) / (s + e * xi * (1 - xi))
    rise = s.square() * (d_next * xi.square() + 2 * s * xi * (1 - xi) + d * (1 - xi).square())
    log_slope = rise.log() - 2 * (s + e * xi * (1 - xi)).log()
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, 0.0)
    return torch.where(inside, result, x), log_slope


def _knots(free: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The left ends (..., K) and the sizes (..., K) of bins that divide [-bound, bound]."""
    sizes = 2 * bound * (LEAST + (1 - LEAST * free.shape[-1]) * free.softmax(-1))
    return F.pad(sizes[..., :-1].cumsum(-1), (1, 0)) - bound, sizes
