"""Continuous normalizing flows: Chen et al. 2018, Grathwohl et al. 2018 (FFJORD). The ancestor of flow matching.

x is data, x_0 the same in real numbers, dx/dt = v(x, t) leads from x_0 at t = 0 to x_1 of a known law at t = 1. v is a
network, the same that flow matching trains without solving anything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.models.probability_flow import SMALL, ProbabilityFlow
from zoo.nn.bases import Gaussian
from zoo.nn.divergence import transported
from zoo.nn.runge_kutta import rk4
from zoo.nn.solvers import ODE
from zoo.types import Space, Unfit


class CNF(ProbabilityFlow):
    """A velocity field trained by the likelihood of what it makes of noise: gradients go through the solver's steps.

    log p(x_0) = log p(x_1) + integral of div v from 0 to 1, the trace exact. Of integers the bound by uniform
    dequantization, in [-1, 1] (zoo.nn.interval). Training takes `steps` steps of rk4, and what is sampled or told later
    is by rk45: the two agree where the field is smooth.

    backbone    backbone(shape, context) makes the network: x (B, *shape), t (B,), None -> (B, *shape)
    source      makes the law of x_1: zoo.nn.Gaussian or EightGaussians
    steps       of rk4 in training; four evaluations each

    Unfit for data of more than 16 dimensions.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        backbone: Callable[..., nn.Module],
        source: Callable[[], Any] = Gaussian,
        steps: int = 8,
    ) -> None:
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"model=cnf has an exact trace, of up to {SMALL} dimensions, and shape={list(shape)} has more; "
                "try model=rectified_flow",
                _fits,
            )
        if steps < 1:
            raise ValueError(f"steps={steps}: a solver takes at least one step")
        super().__init__(shape, levels, source)
        self.steps = steps
        self.backbone = backbone(shape=self.shape, context=None)

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """nats, and its parts: -log p(x_1), and -log|det| of the way there; y is not used."""
        x_0 = self.interval.real(x, self.precision, dequantize=True)
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        x_1, change = transported(rk4, self.velocity, x_0, times, graph=torch.is_grad_enabled())
        base = -self.source.log_prob(x_1.flatten(1)).mean()
        log_det = -change.mean() - self.interval.constant(x_0[0].numel())
        return {"loss": base + log_det, "nats": base + log_det, "base": base, "log_det": log_det}

    @torch.inference_mode(False)  # the trace needs gradients, which inference has not
    @torch.no_grad()
    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, tolerance: float = 1e-5, samples: int = 1
    ) -> Tensor:
        """log p(x) in nats, (B,), float64, without gradients, by rk45; y is not used.

        tolerance   of rk45, whose error is that of the whole batch
        samples     draws of the noise within an integer's bin, log of the mean of whose densities is taken

        ValueError for samples < 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples}: the bound takes at least one draw")
        return self.likelihood(self.velocity, x, tolerance=tolerance, draws=samples)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        solver: Literal["euler", "heun", "midpoint", "rk4", "rk45"] = "rk45",
        steps: int = 50,
        tolerance: float = 1e-5,
    ) -> Tensor:
        """n examples, (n, *shape), the data's own kind of numbers; y is not used. Options as zoo.models.Diffusion's.

        ValueError for a solver that needs more than a velocity.
        """
        if solver not in ODE:
            raise ValueError(f"solver={solver}: a CNF has a velocity alone, for {', '.join(ODE)}")
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        options = {"tolerance": tolerance} if solver == "rk45" else {}
        return self.interval.data(ODE[solver](self.velocity, self.noise(n), times, **options))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (B, *shape), t ()."""
        kind = next(self.backbone.parameters()).dtype
        time = t.to(x).expand(len(x))
        return self.backbone(x.to(kind), time, None).to(x.dtype)


def _fits(space: Space) -> bool:
    return math.prod(space.shape) <= SMALL
