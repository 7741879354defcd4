"""Models whose law is what an ODE makes of noise: Chen et al. 2018; Song et al. 2020 call it the probability flow.

x is data as the dataset gives it, x_0 the same in real numbers, D of them, x_1 noise of a known law. dx/dt = v(x, t)
leads from x_0 at the first time of `span` to sigma x_1 at the last.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.nn.divergence import log_density, rademacher
from zoo.nn.interval import Interval
from zoo.nn.runge_kutta import Function
from zoo.nn.solvers import in_use
from zoo.types import Kind

SMALL = 16  # dimensions of data for which the trace is exact: a backward pass for each


class ProbabilityFlow(nn.Module):
    """What such models share: their noise, the numbers they are solved in, and their likelihood.

    Each has a network, `backbone`, and sets `span` and `sigma` where they are others than (0, 1) and 1.

    source      makes the law of x_1: zoo.nn.Gaussian or EightGaussians
    """

    kind: ClassVar[Kind] = "estimate"
    backbone: nn.Module
    span: tuple[float, float] = (0.0, 1.0)
    sigma: float = 1.0

    def __init__(self, shape: Sequence[int], levels: int | None, source: Callable[[], Any]) -> None:
        super().__init__()
        self.shape, self.levels = tuple(shape), levels
        self.interval = Interval(levels)
        self.source = source()
        self.exact = math.prod(self.shape) <= SMALL
        self.protocol = {"trace": "exact" if self.exact else "Hutchinson's, Rademacher probes"}
        if levels is not None:
            self.protocol["dequantization"] = "uniform"
        self.on_request = not self.exact  # a likelihood takes hundreds of passes of the network

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute: the network's."""
        return list(getattr(self.backbone, "blocks", []))

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Those of them that are called one after the other."""
        return getattr(self.backbone, "runs", [self.blocks])

    @property
    def precision(self) -> torch.dtype:
        """The type of x_t and of all that is solved: float32, whatever the network computes in, or float64."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def of_use(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of the options of `sample` those that its solver has a use for (zoo.types.Sampler)."""
        return in_use(options)

    def noise(self, n: int, upsample: int = 1) -> Tensor:
        """n draws of the source, (n, *shape), the sides of images so many times as long."""
        shape = [side * (upsample if i else 1) for i, side in enumerate(self.shape)]
        device = next(self.parameters()).device
        return self.source.sample(torch.empty(n, *shape, dtype=self.precision, device=device))

    def likelihood(
        self, v: Function, x: Tensor, *, tolerance: float = 1e-5, probes: int = 1, draws: int = 1
    ) -> Tensor:
        """log p(x) in nats, (B,), float64, by rk45 along v(x, t); called outside of inference mode.

        log p(x_0) = log p(x_1) - D log sigma + integral of div v from data to noise. Of integers it is of the bound by
        uniform dequantization, log P(x) >= log p(x_0 + u) + D log(2 / (levels - 1)), u even within the bin.

        probes      of Hutchinson's estimate of the trace, drawn once for each solve; unused where it is exact
        draws       of u, log of the mean of whose densities is taken; of real numbers nothing is drawn
        """

        def density(x_0: Tensor) -> Tensor:
            e = None if self.exact else rademacher(probes, x_0)
            return log_density(
                v, x_0, self.source, self.span, sigma=self.sigma, tolerance=tolerance, probes=e
            )

        return self.interval.log_prob(density, x.clone(), self.precision, draws=draws)
