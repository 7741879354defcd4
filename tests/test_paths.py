"""Paths, targets, times and couplings: conversions are exact, schedules are the papers'."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from zoo.nn import (
    At,
    CosineBetas,
    Data,
    EDMPath,
    EDMWeight,
    EightGaussians,
    Independent,
    LogitNormal,
    LogNormal,
    MinibatchOT,
    MinSNR,
    Noise,
    PlainWeight,
    Preconditioned,
    Score,
    Straight,
    Uniform,
    VariancePreserving,
    Velocity,
)
from zoo.nn.paths import shifted, spread
from zoo.nn.transport import assignment, squared_distances

PATHS = {
    "straight": Straight(),
    "linear": VariancePreserving(),
    "cosine": VariancePreserving(CosineBetas()),
    "edm": EDMPath(),
}
TARGETS = (Velocity(), Noise(), Data(), Score(), Preconditioned())
T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.fixture(params=PATHS, name="path")
def _path(request):
    return PATHS[request.param]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def pairs(path):
    torch.manual_seed(0)
    x_0, x_1 = torch.randn(2, len(T), 3, dtype=torch.float64)
    alpha, sigma = path(T)
    return x_0, x_1, spread(alpha, x_0) * x_0 + spread(sigma, x_1) * x_1


def test_every_target_tells_every_other(path):
    x_0, x_1, x_t = pairs(path)
    for one, other in itertools.product(TARGETS, TARGETS):
        told = one.ends(one.of(x_0, x_1, T, path), x_t, T, path)
        close(told[0], x_0)
        close(told[1], x_1)
        expected = other.of(x_0, x_1, T, path)
        # a score is as large as 1 / sigma, and its digits are counted from there
        close(other.of(*told, T, path) / expected.abs().max(), expected / expected.abs().max())


def test_a_velocity_is_the_slope_of_the_path(path):
    x_0, x_1, _ = pairs(path)
    h = 1e-5
    (a, b), (c, d) = path.coefficients(T + h), path.coefficients(T - h)
    slope = spread((a - c) / (2 * h), x_0) * x_0 + spread((b - d) / (2 * h), x_0) * x_1
    close(Velocity().of(x_0, x_1, T, path), slope, 1e-5)


def test_targets_are_the_papers():
    """eps, v and EDM's F of a variance preserving path and of EDM's, written out."""
    path = PATHS["linear"]
    x_0, x_1, x_t = pairs(path)
    alpha, sigma = (c.unsqueeze(1) for c in path(T))
    close(Noise().ends(x_1, x_t, T, path)[0], (x_t - sigma * x_1) / alpha, 1e-10)
    close(Score().of(x_0, x_1, T, path), -x_1 / sigma)
    path, d = PATHS["edm"], 0.5
    x_0, x_1, x_t = pairs(path)
    sigma = T.unsqueeze(1)
    skip = d**2 / (sigma**2 + d**2)
    out, enter = sigma * d / (sigma**2 + d**2).sqrt(), 1 / (sigma**2 + d**2).sqrt()
    F = torch.randn_like(x_t)
    close(Preconditioned(d).ends(F, x_t, T, path)[0], skip * x_t + out * F)
    close(Preconditioned(d).scale(path, T), enter.squeeze(1))
    close(path.clock(T), T.log() / 4)
    close(Velocity().of(x_0, x_1, T, PATHS["straight"]), x_1 - x_0)


def test_weights_are_of_the_error_of_the_data(path):
    """min-SNR of a noise target is min(SNR, 5) / SNR; EDM's of its own target is 1."""
    alpha, sigma = path(T)
    close(Noise().gain(path, T), sigma / alpha, 1e-11)
    snr = (alpha / sigma).square()
    close(MinSNR()(path, T, Noise().gain(path, T)), snr.clamp(max=5) / snr, 1e-10)
    close(EDMWeight()(path, T, Preconditioned().gain(path, T)), torch.ones_like(T), 1e-10)
    close(PlainWeight()(path, T, Noise().gain(path, T)), torch.ones_like(T))
    ends = torch.tensor(path.span, dtype=torch.float64)
    for weight in (EDMWeight(), MinSNR(), PlainWeight()):
        assert weight(path, ends, Velocity().gain(path, ends)).isfinite().all()
    error = torch.randn(len(T), 3, dtype=torch.float64)
    x_0, x_1, x_t = pairs(path)
    for target in TARGETS:
        o = target.of(x_0, x_1, T, path)
        wrong = target.ends(o + error, x_t, T, path)[0] - x_0
        close(wrong.abs(), spread(target.gain(path, T), error) * error.abs(), 1e-9)


def test_ddpms_thousand_steps_are_on_the_linear_path():
    """Ho et al. 2020: beta from 1e-4 to 0.02, and what is left after all of them, 4.036e-5."""
    n = torch.arange(1, 1001, dtype=torch.float64) / 1000
    product = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    alpha, sigma = VariancePreserving()(n)
    close(alpha**2, product, 1e-9)
    close(sigma**2, 1 - product, 1e-9)
    assert alpha[-1].item() ** 2 == pytest.approx(4.036e-5, rel=1e-4)
    close(VariancePreserving().grid(1000)[:-1], n.flip(0))


def test_the_cosine_path_is_nichols():
    """beta_1 = 4.13e-5, alpha^2(0.5) = 0.4938, the last beta clipped to 0.999."""
    n = torch.arange(1001, dtype=torch.float64) / 1000
    f = torch.cos((n + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    alpha, _ = VariancePreserving(CosineBetas())(n)
    close(alpha[1:] ** 2, (1 - betas).cumprod(0))
    assert 1 - alpha[1].item() ** 2 == pytest.approx(4.13e-5, rel=1e-3)
    assert alpha[500].item() ** 2 == pytest.approx(0.4938, abs=5e-5)
    assert alpha[1000].item() ** 2 == pytest.approx(2.43e-9, rel=1e-2)


def test_edms_steps_are_its_own():
    """18 steps from 80 to 0.002 and then 0, by rho = 7."""
    times = EDMPath().grid(18)
    i = torch.arange(18, dtype=torch.float64)
    close(times[:-1], (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 1e-10)
    assert times[-1] == 0
    assert len(times) == 19


def test_a_shift_multiplies_the_noise(path):
    """sigma / alpha by s, log SNR by -2 log s; the straight path's is t' = s t / (1 + (s - 1) t)."""
    t = path.between(9)[1:-1]
    later = shifted(path, t, 2.0)
    (a, b), (c, d) = path(t), path(later)
    inside = later < path.span[1]
    close((2 * (c / d).log() - 2 * (a / b).log())[inside], torch.full_like(t, -2 * math.log(2))[inside], 1e-9)
    assert inside.sum() >= 4
    close(path.grid(6, shift=2.0)[[0, -1]], torch.tensor([path.span[1], 0.0], dtype=torch.float64))
    close(shifted(Straight(), T, 3.0), 3 * T / (1 + 2 * T))
    with pytest.raises(ValueError, match="shift=-1"):
        shifted(path, t, -1)


def test_an_end_at_which_nothing_is_told_is_refused():
    for target, word in ((Noise(), "high=0.999"), (Data(), "low=0.001"), (Score(), "low=0.001")):
        with pytest.raises(ValueError, match=word):
            target.check(Straight())
        target.check(Straight(low=1e-3, high=0.999))
    for path in list(PATHS.values())[1:]:
        for target in TARGETS:
            target.check(path)


@pytest.mark.parametrize(
    ("sampler", "mean", "deviation", "read"),
    [
        (Uniform(), 0.5, 1 / math.sqrt(12), lambda t: t),
        (LogitNormal(0.5, 0.8), 0.5, 0.8, torch.logit),
        (LogNormal(), -1.2, 1.2, torch.log),
        (At(), 1.0, 0.0, lambda t: t),
    ],
)
def test_times_follow_their_law(sampler, mean, deviation, read):
    torch.manual_seed(0)
    whole, part = ((1e-9, 80.0), (1.0, 2.0)) if isinstance(sampler, LogNormal) else ((0.0, 1.0), (0.2, 0.4))
    values = read(sampler(200_000, whole))
    assert values.mean().item() == pytest.approx(mean, abs=0.01)
    assert values.std().item() == pytest.approx(deviation, abs=0.01)
    inside = sampler(1000, part)
    assert part[0] <= inside.min() <= inside.max() <= part[1] + 1e-6


def test_log_normal_times_are_not_of_a_path_that_ends_at_1():
    with pytest.raises(ValueError, match="path=edm"):
        LogNormal()(8, (0.0, 1.0))


def test_stratified_times_cover_the_batch_and_vary_less():
    torch.manual_seed(0)
    t = Uniform(stratified=True)(64, (0.0, 1.0))
    assert torch.equal((t * 64).long(), torch.arange(64))
    deviations = [
        torch.stack([sampler(64, (0.0, 1.0)).square().mean() for _ in range(200)]).std()
        for sampler in (Uniform(), Uniform(stratified=True))
    ]
    assert deviations[1] < deviations[0] / 20


def test_optimal_transport_is_the_best_of_all_permutations():
    torch.manual_seed(0)
    x_0, x_1 = torch.randn(2, 6, 3)
    cost = squared_distances(x_0, x_1)
    close(cost, (x_0[:, None] - x_1).double().square().sum(-1), 1e-6)
    orders = [list(order) for order in itertools.permutations(range(6))]
    best = min(orders, key=lambda order: cost[range(6), order].sum().item())
    assert assignment(cost).tolist() == best
    assert torch.equal(MinibatchOT()(x_0, x_1), x_1[best])
    assert Independent()(x_0, x_1) is x_1
    on_a_line = torch.randn(50, 1)
    assert torch.equal(MinibatchOT()(torch.arange(50.0)[:, None], on_a_line), on_a_line.sort(0).values)


def test_eight_gaussians_are_spread_by_the_root_of_a_root():
    torch.manual_seed(0)
    source = EightGaussians()
    x = source.sample(torch.empty(40_000, 2, dtype=torch.float64))
    centres = source.centres(x)
    assert torch.allclose(centres.norm(dim=1), torch.tensor(5.0, dtype=torch.float64))
    near = squared_distances(x, centres).min(1)
    assert near.values.mean().item() == pytest.approx(2 * math.sqrt(0.1), rel=0.02)
    assert near.indices.bincount().min() > 4700
    grid = torch.cartesian_prod(*[torch.linspace(-9, 9, 400, dtype=torch.float64)] * 2)
    assert source.log_prob(grid).exp().sum().item() * (18 / 399) ** 2 == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_is_refused_in_words():
    for make, words in (
        (lambda: Straight(low=0.5, high=0.2), "low=0.5, high=0.2"),
        (lambda: VariancePreserving(low=0.0), "low=0.0"),
        (lambda: EDMPath(low=2.0, high=1.0), "noise grows"),
        (lambda: Preconditioned(0.0), "deviation=0.0"),
        (lambda: Straight().grid(0), "steps=0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
