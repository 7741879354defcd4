"""What is done to a network's estimates while it samples: classifier-free guidance, and a range that is kept.

A network tells o of x (B, *shape) at t (B,), tell(x, t) -> o; from it follow the ends x_0 and x_1 (zoo.nn.targets),
ends(x, t) -> x_0, x_1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.nn.paths import Path, spread

Tell = Callable[[Tensor, Tensor], Tensor]
Ends = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def guided(tell: Tell, weight: float) -> Tell:
    """o = o_without + w (o_with - o_without): Ho & Salimans 2022, whose own weight is w - 1. All targets are linear in
    x_0 and x_1, so that these and the velocity follow the same rule.

    tell    of 2 B examples: the first half is told the condition, the second is told nothing
    """

    def both(x: Tensor, t: Tensor) -> Tensor:
        with_it, without = tell(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return without + weight * (with_it - without)

    return both


def clipped(ends: Ends, path: Path) -> Ends:
    """x_0 kept within [-1, 1], and x_1 = (x_t - alpha x_0) / sigma, what then is left: Ho et al. 2020.

    Where sigma is 0, at the data's end of the straight path, nothing is left, and x_1 is what the network tells.
    """

    def kept(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_0, x_1 = ends(x, t)
        x_0 = x_0.clamp(-1, 1)
        alpha, sigma = (spread(c, x) for c in path(t.to(x.dtype)))
        return x_0, torch.where(sigma > 0, (x - alpha * x_0) / sigma, x_1)

    return kept
