"""From noise to data and back: solvers of dx/dt = v(x, t), and samplers that ask a network for x_0 and x_1.

times (N + 1,) are where a solver stops, in either direction, in float64; v is any function of x (B, ...) and a time ().
The first five need v alone. The last three step along a path's own alpha and sigma, by `field.ends(x, t)`, the
estimates of x_0 and x_1: their last step may end at t = 0, where only x_0 is left.

    watch   if given, watch(i, t, x) is called with the beginning and after each step: for samples along the path, or
            to show progress
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.nn.paths import Path, spread
from zoo.nn.targets import Velocity

Function = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, Tensor, Tensor], Any] | None
Variance = Literal["small", "large"]
Solver = Literal["euler", "heun", "midpoint", "rk4", "rk45", "ddpm", "ddim", "dpm_solver"]


class Field:
    """What a network says of a path: the velocity v(x, t), and the ends x_0 and x_1; counts how often it is asked.

    ends    ends(x, t), t (B,) -> x_0, x_1
    cost    evaluations of the network for each time that it is asked: 2 where it is guided
    """

    def __init__(
        self, path: Path, ends: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], *, cost: int = 1
    ) -> None:
        self.path, self.cost, self.evaluations = path, cost, 0
        self._ends = ends

    @classmethod
    def of(cls, velocity: Function, path: Path) -> "Field":
        """The field of a velocity v(x, t), t (B,), that is known itself."""
        return cls(path, lambda x, t: Velocity().ends(velocity(x, t), x, t, path))

    def ends(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of x_0 and x_1."""
        self.evaluations += self.cost
        return self._ends(x, t.to(x.device).expand(len(x)))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """alpha' x_0 + sigma' x_1."""
        x_0, x_1 = self.ends(x, t)
        alpha, sigma = self.path.slopes(t.double())
        return spread(alpha, x_0) * x_0 + spread(sigma, x_1) * x_1


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


def ddpm(
    field: Field, x: Tensor, times: Tensor, *, variance: Variance = "small", watch: Watch = None
) -> Tensor:
    """The ancestral sampler: x_s drawn from q(x_s | x_t, x_0) with the estimate of x_0. Ho et al. 2020, algorithm 2.

    mean = alpha_s b / sigma_t^2 x_0 + (alpha_t / alpha_s) sigma_s^2 / sigma_t^2 x_t,
    with b = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2: beta of the step, whatever its length. Nothing is drawn in
    the step to t = 0.

    variance    small: b sigma_s^2 / sigma_t^2, right where x_0 is one point; large: b, right where x_0 ~ N(0, 1), by
                which their FID is. ValueError for another
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance={variance}: small or large")

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, _ = field.ends(x, t)
        part = (sigma_s / sigma_t).square()
        beta = sigma_t.square() - (alpha_t / alpha_s).square() * sigma_s.square()
        mean = (alpha_s * beta / sigma_t.square()) * x_0 + (alpha_t / alpha_s * part) * x
        if sigma_s == 0:
            return mean
        spread_out = beta * part if variance == "small" else beta
        return mean + spread_out.clamp(min=0).sqrt() * torch.randn_like(x)

    return stepped(step, x, times, watch)


def ddim(field: Field, x: Tensor, times: Tensor, *, eta: float = 0.0, watch: Watch = None) -> Tensor:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - q^2) x_1 + q n with the estimates of x_0 and x_1: Song et al. 2020.

    q = eta (sigma_s / sigma_t) sqrt(b), b as in ddpm. eta = 0 is deterministic, and may walk towards the noise: from
    data to the noise that gives them, the inversion. eta = 1 is ddpm. A step from t = 0 asks the network at the least
    time of the path's span.
    """
    low = field.path.span[0]

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, x_1 = field.ends(x, t.clamp(min=low))
        if eta == 0 or sigma_s == 0:
            return alpha_s * x_0 + sigma_s * x_1
        beta = (sigma_t.square() - (alpha_t / alpha_s).square() * sigma_s.square()).clamp(min=0)
        q = eta * sigma_s / sigma_t * beta.sqrt()
        rest = (sigma_s.square() - q.square()).clamp(min=0).sqrt()
        return alpha_s * x_0 + rest * x_1 + q * torch.randn_like(x)

    return stepped(step, x, times, watch)


def dpm_solver(field: Field, x: Tensor, times: Tensor, *, watch: Watch = None) -> Tensor:
    """DPM-Solver++(2M), of order 2 at an evaluation a step: Lu et al. 2022 (2211.01095), algorithm 2.

    With l = log(alpha / sigma), h = l_s - l_t and h' the step before,
    D = x_0 + h / (2 h') (x_0 - x_0'),  x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D.
    The first step is of order 1, and so is one to t = 0, where h is infinite.
    """
    before: tuple[Tensor, Tensor] | None = None  # x_0 and h of the last step

    def step(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        nonlocal before
        (alpha_t, sigma_t), (alpha_s, sigma_s) = field.path.coefficients(t), field.path.coefficients(t + h)
        x_0, _ = field.ends(x, t)
        ratio = sigma_s / sigma_t
        length = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
        D = x_0
        if before is not None and length.isfinite():
            D = x_0 + (length / (2 * before[1])) * (x_0 - before[0])
        before = (x_0, length)
        return ratio * x + (alpha_s - alpha_t * ratio) * D

    return stepped(step, x, times, watch)


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


SOLVERS = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "rk45": rk45,
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
}
FOLLOW = ("ddpm", "ddim", "dpm_solver")  # those that step along a path, to t = 0


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
    own = {"ddim": {"eta": eta}, "ddpm": {"variance": variance}, "rk45": {"tolerance": tolerance}}
    options: dict[str, Any] = own.get(solver, {})
    if solver in FOLLOW or not path.span[0]:
        return SOLVERS[solver](field, x, times, watch=watch, **options)
    x = SOLVERS[solver](field, x, times[:-1], watch=watch, **options)
    x, _ = field.ends(x, times[-2])
    if watch:
        watch(len(times) - 1, times[-1], x)
    return x
