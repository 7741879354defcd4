"""Solvers on Gaussian data, whose way from noise to data is known: x_t = mean_t + deviation_t z, z standing still."""

import math

import gaussian
import pytest
import torch
from test_paths import PATHS, close

from zoo.nn import Straight, VariancePreserving
from zoo.nn.divergence import divergence, rademacher, transported
from zoo.nn.runge_kutta import euler, rk4, rk45
from zoo.nn.samplers import Field, ddim, ddpm
from zoo.nn.solvers import SOLVERS, in_use, solve, straightness

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "ddim": 1, "dpm_solver": 2}
SPANS = {
    "straight": (0.9, 0.2),
    "linear": (0.8, 0.2),
    "cosine": (0.8, 0.2),
    "edm": (3.0, 0.5),
}  # away from the ends


@pytest.fixture(params=PATHS, name="name")
def _name(request):
    return request.param


def points(n=64):
    torch.manual_seed(0)
    return torch.randn(n, 2, dtype=torch.float64)


def between(name, solver, steps, **options):
    """How far a solver ends from where it should, in the path's middle."""
    path, (start, stop) = PATHS[name], SPANS[name]
    (mean, deviation), (to, spread) = gaussian.law(path, start), gaussian.law(path, stop)
    z = points()
    times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    x = SOLVERS[solver](gaussian.field(path), mean + deviation * z, times, **options)
    return (x - (to + spread * z)).abs().max().item()


@pytest.mark.parametrize("solver", ORDERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, solver):
    errors = [between(name, solver, steps) for steps in (40, 80)]
    assert errors[1] > 1e-13
    order = math.log2(errors[0] / errors[1])
    assert order > ORDERS[solver] - 0.25
    assert (
        order < ORDERS[solver] + 0.25 or solver == "midpoint"
    )  # 3 where lines stay lines: the straight path, EDM's


def test_the_adaptive_solver_keeps_its_tolerance(name):
    assert between(name, "rk45", 1, tolerance=1e-8) < 1e-6
    assert between(name, "rk45", 1, tolerance=1e-3) > 1e-9


@pytest.mark.parametrize("solver", ["heun", "midpoint", "rk4", "rk45", "ddim", "dpm_solver"])
def test_noise_becomes_the_data_that_the_closed_form_says(name, solver):
    """mu + Sigma^(1/2) z: from one end of the path to the other."""
    path, z = PATHS[name], points()
    x = solve(gaussian.field(path), z, solver=solver, steps=300, tolerance=1e-6)
    mean, deviation = gaussian.law(path, path.span[1])
    start = (path.coefficients(torch.tensor(path.span[1], dtype=torch.float64))[1] * z - mean) / deviation
    close(x, gaussian.MU + gaussian.S * start, 2e-2)


def test_the_ancestral_sampler_gives_the_law_of_the_data(name):
    torch.manual_seed(0)
    z = torch.randn(20_000, 2, dtype=torch.float64)
    x = solve(gaussian.field(PATHS[name]), z, solver="ddpm", steps=200)
    close(x.mean(0), gaussian.MU, 0.02)
    close(x.std(0), gaussian.S, 0.02)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_thousand_ancestral_steps_are_ddpms(variance):
    """Ho et al. 2020, eq. 6 and 7, with their betas and each of their variances, step by step."""
    path, z = VariancePreserving(), points()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    seen, field = [], gaussian.field(path)
    torch.manual_seed(1)
    end = ddpm(field, z, path.grid(1000), variance=variance, watch=lambda i, t, x: seen.append(x))
    torch.manual_seed(1)
    x = z
    for i in reversed(range(1000)):
        beta, now = betas[i], bar[i]
        last = bar[i - 1] if i else torch.ones(())
        x_0, _ = gaussian.field(path).ends(x, torch.tensor((i + 1) / 1000, dtype=torch.float64))
        mean = last.sqrt() * beta / (1 - now) * x_0 + (1 - beta).sqrt() * (1 - last) / (1 - now) * x
        squared = beta if variance == "large" else beta * (1 - last) / (1 - now)
        x = mean + squared.sqrt() * torch.randn_like(x) if i else mean
        close(seen[1000 - i], x, 1e-6)
    close(end, x, 1e-6)
    assert field.evaluations == 1000


def test_ddim_with_all_its_noise_is_the_ancestral_sampler(name):
    drawn = []
    for sampler, options in ((ddpm, {}), (ddim, {"eta": 1.0})):
        torch.manual_seed(2)
        path = PATHS[name]
        start = path.coefficients(torch.tensor(path.span[1], dtype=torch.float64))[1] * points()
        # from alpha = 0 on the two divide zero by zero in different places
        times = path.grid(20)[1:]
        drawn.append(sampler(gaussian.field(path), start, times, **options))
    close(*drawn, 1e-9)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("ddim", {"eta": 0.7}), ("ddpm", {"variance": "large"}), ("rk45", {"tolerance": 1e-2})],
)
def test_a_solvers_own_options_reach_it(solver, options):
    path, z = Straight(), points()
    ends = []
    for told in (options, {}):
        torch.manual_seed(2)
        solved = solve(gaussian.field(path), z, solver=solver, steps=7, **told)
        torch.manual_seed(2)
        close(solved, SOLVERS[solver](gaussian.field(path), z, path.grid(7), **told))
        ends.append(solved)
    assert (ends[0] - ends[1]).abs().max() > 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_options_in_use_are_those_that_change_something(solver):
    plain = {"steps": 4, "shift": 1.0, "eta": 0.0, "variance": "small", "tolerance": 1e-3}
    other = {"steps": 5, "shift": 2.0, "eta": 0.5, "variance": "large", "tolerance": 1e-1}

    def solved(**options):
        torch.manual_seed(2)
        return solve(gaussian.field(VariancePreserving()), points(), solver=solver, **{**plain, **options})

    def changes(name):
        try:
            return not torch.equal(solved(**{name: other[name]}), solved())
        except ValueError:  # it is another solver's, and refused
            return False

    assert set(in_use({"solver": solver, **plain})) == {"solver", *filter(changes, plain)}


def test_one_ddim_step_to_the_data_is_the_estimate_of_the_data(name):
    path, x = PATHS[name], points()
    t = torch.tensor(path.span[1], dtype=torch.float64)
    field = gaussian.field(path)
    for sampler in ("ddim", "ddpm", "dpm_solver"):
        x_0 = SOLVERS[sampler](field, x, torch.stack([t, t.new_zeros(())]))
        close(x_0, field.ends(x, t)[0])


def test_inversion_errs_less_with_more_steps(name):
    path = PATHS[name]
    x = gaussian.MU + gaussian.S * points()
    errors = []
    for steps in (20, 40, 80):
        times = path.grid(steps)
        noise = ddim(gaussian.field(path), x, times.flip(0))
        errors.append((ddim(gaussian.field(path), noise, times) - x).abs().mean().item())
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]
    assert errors[2] < 0.1


def test_evaluations_are_counted():
    for solver, each in (
        ("euler", 1),
        ("heun", 2),
        ("midpoint", 2),
        ("rk4", 4),
        ("ddim", 1),
        ("dpm_solver", 1),
    ):
        field = gaussian.field(Straight())
        solve(field, points(), solver=solver, steps=7)
        assert field.evaluations == 7 * each
    field = gaussian.field(PATHS["edm"])
    solve(field, points(), solver="heun", steps=18)
    assert field.evaluations == 35  # Karras et al. 2022
    few, many = gaussian.field(Straight()), gaussian.field(Straight())
    solve(few, points(), solver="rk45", tolerance=1e-3)
    solve(many, points(), solver="rk45", tolerance=1e-7)
    assert 8 <= few.evaluations < many.evaluations


def test_the_way_can_be_watched():
    for solver in SOLVERS:
        for path in PATHS.values():
            seen = []
            solve(
                gaussian.field(path), points(), solver=solver, steps=5, watch=lambda *a, s=seen: s.append(a)
            )
            assert [i for i, _, _ in seen] == list(range(len(seen)))
            assert seen[0][1].item() == pytest.approx(path.span[1])
            assert seen[-1][1] == 0
            assert len(seen) == (6 if solver != "rk45" else 2 + (path.span[0] > 0))


def test_what_a_solver_cannot_do_is_refused():
    for options, words in (
        ({"solver": "newton"}, "newton"),
        ({"eta": 0.5}, "eta=0.5"),
        ({"steps": 0}, "steps=0"),
    ):
        with pytest.raises(ValueError, match=words):
            solve(gaussian.field(Straight()), points(), **options)


def test_a_straight_flow_needs_one_step_and_a_curved_one_does_not():
    """Of pairs of a flow's own noise and data the velocity stands still along each way: one Euler step is exact."""
    path, z = Straight(), points()
    curved = gaussian.field(path)
    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    fine = path.grid(100)
    assert (euler(curved, z, times) - solve(curved, z, solver="rk4", steps=100)).abs().max() > 0.1
    assert straightness(curved, z, fine).mean() > 1e-2

    def reflowed(x, t):  # x_t = (1 - t) (mu + s z) + t z, so z is known from x_t
        t = t.unsqueeze(1)
        z = (x - (1 - t) * gaussian.MU) / ((1 - t) * gaussian.S + t)
        return z - (gaussian.MU + gaussian.S * z)

    field = Field.of(reflowed, path)
    close(euler(field, z, times), gaussian.MU + gaussian.S * z)
    assert straightness(field, z, fine).max() < 1e-20


def test_a_fields_velocity_is_what_it_was_made_of(name):
    path, x = PATHS[name], points()
    t = torch.tensor(SPANS[name][0], dtype=torch.float64)
    field = gaussian.field(path)
    same = Field.of(lambda x, t: field(x, t[0]), path)
    close(same(x, t), field(x, t), 1e-10)
    close(same.ends(x, t)[0], field.ends(x, t)[0], 1e-9)


def test_the_divergence_is_the_trace_of_the_jacobian():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    x = torch.randn(5, 3, dtype=torch.float64)

    def field(x, t):
        return t * net(x)

    t = torch.tensor(0.7, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: field(v, t), row) for row in x])
    v, exact = divergence(field, x, t)
    close(exact, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    close(v, field(x, t).detach())
    assert not exact.requires_grad
    guesses = torch.stack([divergence(field, x, t, rademacher(1, x))[1] for _ in range(400)])
    assert (guesses.std(0) > 0).all()
    assert ((guesses.mean(0) - exact).abs() < 4 * guesses.std(0) / 20).all()
    probes = rademacher(64, x)
    assert probes.square().eq(1).all()
    close(divergence(field, x, t, probes)[1], torch.einsum("kbi,bij,kbj->b", probes, jacobian, probes) / 64)
    _, graph = divergence(field, x, t, graph=True)
    graph.sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_density_is_told_along_the_way(name):
    """log p(x_a) = log p(x_b) + integral of div v, of the Gaussian law at both times."""
    path, (start, stop) = PATHS[name], SPANS[name]
    here, there = gaussian.law(path, stop), gaussian.law(path, start)
    x = here[0] + here[1] * points()
    times = torch.tensor([stop, start], dtype=torch.float64)

    def solver(field, x, times):
        return rk45(field, x, times, tolerance=1e-9)

    end, change = transported(solver, gaussian.field(path), x, times)
    close(end, there[0] + there[1] * points(), 1e-6)
    close(gaussian.log_normal(end, *there) + change, gaussian.log_normal(x, *here), 1e-6)
    # the field's Jacobian is diagonal, of which Rademacher probes tell the trace exactly
    _, guess = transported(solver, gaussian.field(path), x, times, rademacher(1, x))
    close(guess, change, 1e-6)
    fixed = torch.linspace(stop, start, 41, dtype=torch.float64)
    close(transported(rk4, gaussian.field(path), x, fixed)[1], change, 1e-4)
