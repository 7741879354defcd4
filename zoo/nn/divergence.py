"""How a density changes along dx/dt = v(x, t): d log p(x) / dt = -div v, the trace of dv/dx. Chen et al. 2018.

x is (B, *shape) of D elements. log p(x_a) = log p(x_b) + integral of div v from a to b.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.nn.runge_kutta import Function, rk45


def divergence(
    field: Function, x: Tensor, t: Tensor, probes: Tensor | None = None, *, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """v(x, t) and its divergence, (B, *shape) and (B,).

    probes  e (K, B, *shape) of mean 0 and variance 1: the mean of e^T (dv/dx) e, of which the trace is the expectation
            (Hutchinson 1990; Grathwohl et al. 2018). None: the trace itself, at D backward passes
    graph   whether what is returned can be differentiated, to train by it
    """
    with torch.enable_grad():
        x = x if graph and x.requires_grad else x.detach().requires_grad_()
        v = field(x, t)

        def row(e: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(v, x, e, create_graph=graph, retain_graph=True)
            return (product * e).flatten(1).sum(1)

        if probes is None:
            units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).unflatten(1, x.shape[1:])
            trace = sum(row(unit.expand_as(x)) for unit in units)
        else:
            trace = sum(row(e) for e in probes) / len(probes)
    return (v, trace) if graph else (v.detach(), trace.detach())


def rademacher(count: int, like: Tensor) -> Tensor:
    """Probes of -1 and 1, (count, *like.shape): no others of independent elements have an estimate that varies less."""
    return 2 * torch.randint(2, (count, *like.shape), device=like.device).to(like.dtype) - 1


def transported(
    solver: Callable[..., Tensor],
    field: Function,
    x: Tensor,
    times: Tensor,
    probes: Tensor | None = None,
    *,
    graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """x at the last of times, and the integral of div v along its way: (B, *shape), (B,).

    solver  of zoo.nn.runge_kutta: solver(field, x, times). The integral is one element more of what it solves for
    probes  as `divergence` has them, the same at all times: others at each would make an adaptive solver follow noise
    """

    def both(state: Tensor, t: Tensor) -> Tensor:
        v, trace = divergence(field, state[:, :-1].unflatten(1, x.shape[1:]), t, probes, graph=graph)
        return torch.cat([v.flatten(1), trace.unsqueeze(1)], 1)

    state = solver(both, torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1), times)
    return state[:, :-1].unflatten(1, x.shape[1:]), state[:, -1]


def log_density(
    field: Function,
    x: Tensor,
    source: Any,
    span: tuple[float, float],
    *,
    sigma: float = 1.0,
    tolerance: float = 1e-5,
    probes: Tensor | None = None,
) -> Tensor:
    """log p(x) in nats, (B,), float64, of real data x (B, *shape) at the first time of `span`, solved by rk45.

    source      has log_prob((B, D)): the law of x / sigma at the last time of `span`
    tolerance   of rk45, whose error is that of the whole batch
    probes      as `divergence` has them
    """
    times = torch.tensor(span, dtype=torch.float64)
    x_1, change = transported(partial(rk45, tolerance=tolerance), field, x, times, probes)
    log_p = source.log_prob((x_1 / sigma).flatten(1)).double() + change.double()
    return log_p - x[0].numel() * math.log(sigma)
