"""Runge and Kutta's methods, of one to four evaluations a step and of steps that follow an error: dx/dt = v(x, t).

v is any function of x (B, ...) and a time (). times (N + 1,) are where a solver stops, in either direction, in float64.

    watch   if given, watch(i, t, x) is called with the beginning and after each step: for samples along the path, or
            to show progress
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, Tensor, Tensor], Any] | None


def euler(field: Function, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """Of order 1, an evaluation a step: x + h v(x, t)."""
    return stepped(lambda x, t, h: x + h * field(x, t), x, times, watch)


def heun(field: Function, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """Of order 2, two evaluations a step: by the mean of the slopes at both ends."""

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        first = field(x, t)
        return x + h / 2 * (first + field(x + h * first, t + h))

    return stepped(step, x, times, watch)


def midpoint(field: Function, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """Of order 2, two evaluations a step: by the slope in its middle."""
    return stepped(lambda x, t, h: x + h * field(x + h / 2 * field(x, t), t + h / 2), x, times, watch)


def rk4(field: Function, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """Of order 4, four evaluations a step: Runge and Kutta's."""

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        a = field(x, t)
        b = field(x + h / 2 * a, t + h / 2)
        c = field(x + h / 2 * b, t + h / 2)
        d = field(x + h * c, t + h)
        return x + h / 6 * (a + 2 * b + 2 * c + d)

    return stepped(step, x, times, watch)


def rk45(
    field: Function, x: Tensor, times: Tensor, *, tolerance: float = 1e-5, watch: Watch = None
) -> Tensor:
    """Dormand and Prince's, of order 5, with steps as small as the tolerance asks: torchdiffeq's dopri5.

    The error is that of the whole batch, relative and absolute, so what becomes of an example depends on the others
    within the tolerance. Only the first and the last of times are kept to. Time is in x's type.
    """
    from torchdiffeq import odeint

    ends = torch.stack([times[0], times[-1]]).to(x)
    low, high = ends.aminmax()
    if watch:
        watch(0, ends[0], x)
    x = odeint(
        lambda t, x: field(x, t.clamp(low, high)),  # which a first step is tried beyond
        x,
        ends,
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
        options={"step_t": ends[-1:]},  # it would step over the end and interpolate
    )[-1]
    if watch:
        watch(1, ends[1], x)
    return x


def stepped(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, times: Tensor, watch: Watch = None
) -> Tensor:
    """x after one step from each time to the next: step(x, t, h), t and h numbers (), in float64 on the CPU."""
    times = times.double()
    if watch:
        watch(0, times[0], x)
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        x = step(x, t, s - t)
        if watch:
            watch(i + 1, s, x)
    return x
