"""From noise to data: by a solver of the ODE (zoo.nn.runge_kutta) or a sampler of diffusion (zoo.nn.samplers)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.nn.runge_kutta import Function, Watch, euler, heun, midpoint, rk4, rk45, stepped
from zoo.nn.samplers import Field, Variance, ddim, ddpm, dpm_solver

Solver = Literal["euler", "heun", "midpoint", "rk4", "rk45", "ddpm", "ddim", "dpm_solver"]
ODE = {"euler": euler, "heun": heun, "midpoint": midpoint, "rk4": rk4, "rk45": rk45}
SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver}  # which step along a path, to t = 0
SOLVERS = ODE | SAMPLERS
GRID = ("steps", "shift")  # of those that stop at the path's times
OPTIONS = dict.fromkeys(SOLVERS, GRID) | {
    "rk45": ("tolerance",),
    "ddpm": (*GRID, "variance"),
    "ddim": (*GRID, "eta"),
}


def in_use(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a sampling, its solver among them, without those that are only other solvers'."""
    others = {name for names in OPTIONS.values() for name in names} - {*OPTIONS[options["solver"]]}
    return {name: value for name, value in options.items() if name not in others}


def solve(
    field: Field,
    x_1: Tensor,
    *,
    solver: Solver = "heun",
    steps: int = 50,
    shift: float = 1.0,
    eta: float = 0.0,
    variance: Variance = "small",
    tolerance: float = 1e-5,
    watch: Watch = None,
) -> Tensor:
    """x_0 of noise x_1 (B, *shape), from the noisy end of the field's path to its other.

    Where the span of the path begins above 0 the last of the steps is the estimate of x_0 there, which is also Euler's
    step on the straight path and on EDM's.

    steps       rk45 chooses its own
    shift       of the times (zoo.nn.paths.shifted)
    eta         of ddim
    variance    of ddpm
    tolerance   of rk45

    Raises ValueError for an unknown solver, for eta of another than ddim, and for variance of another than ddpm.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver}: there are {', '.join(SOLVERS)}")
    if eta and solver != "ddim":
        raise ValueError(f"eta={eta} is an option of solver=ddim, not of {solver}")
    if variance != "small" and solver != "ddpm":
        raise ValueError(f"variance={variance} is an option of solver=ddpm, not of {solver}")
    path = field.path
    times = path.grid(steps, shift=shift)
    x = path.coefficients(times[0])[1] * x_1
    if solver == "rk45":
        times = torch.tensor([path.span[1], path.span[0], 0.0] if path.span[0] else [path.span[1], 0.0])
    own = in_use({"solver": solver, "eta": eta, "variance": variance, "tolerance": tolerance})
    options = {name: value for name, value in own.items() if name != "solver"}
    if solver in SAMPLERS or not path.span[0]:
        return SOLVERS[solver](field, x, times, watch=watch, **options)
    x = SOLVERS[solver](field, x, times[:-1], watch=watch, **options)
    x, _ = field.ends(x, times[-2])
    if watch:
        watch(len(times) - 1, times[-1], x)
    return x


def along(field: Field, x_1: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The way of noise x_1 (B, *shape) to data: times (N + 1,), and x_t (N + 1, B, *shape).

    options     of solve: solver, steps ...
    """
    seen: list[tuple[Tensor, Tensor]] = []
    solve(field, x_1, watch=lambda i, t, x: seen.append((t.cpu(), x)), **options)
    times, x = zip(*seen)
    return torch.stack(times), torch.stack(x)


def straightness(field: Function, x: Tensor, times: Tensor) -> Tensor:
    """How far the ways from x are from straight lines, (B,): the mean over t of |(x_b - x_a) / (b - a) - v|^2.

    Along Euler's way from a = times[0] to b = times[-1]; 0 is straight. Liu et al. 2022, section 2.2.
    """
    velocities: list[Tensor] = []

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        velocities.append(field(x, t))
        return x + h * velocities[-1]

    end = stepped(step, x, times)
    mean = (end - x) / (times[-1] - times[0])
    return sum((v - mean).flatten(1).square().sum(1) for v in velocities) / len(velocities)
