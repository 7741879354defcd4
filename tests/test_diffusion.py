"""Diffusion models of Gaussian data, whose best network is known; of integers, of classes; and the peers' samplers."""

import math
from functools import partial

import gaussian
import pytest
import torch
from test_paths import PATHS, close
from torch import Tensor, nn

from zoo.models import Diffusion
from zoo.nn import (
    At,
    ClassCondition,
    Data,
    EDMPath,
    EDMWeight,
    EightGaussians,
    LogNormal,
    MinibatchOT,
    MinSNR,
    Noise,
    Preconditioned,
    Score,
    Straight,
    TimeMLP,
    VariancePreserving,
    Velocity,
)
from zoo.nn.divergence import rademacher, transported
from zoo.nn.interval import Interval
from zoo.nn.runge_kutta import rk4
from zoo.nn.samplers import Field
from zoo.nn.solvers import SOLVERS, along, solve
from zoo.types import Codec, Density, Sampler, Trainable, can

TARGETS = (Velocity, Noise, Data, Score, Preconditioned)
MLP = partial(TimeMLP, width=16, depth=2)


@pytest.fixture(params=PATHS, name="name")
def _name(request):
    return request.param


def told(path, target):
    """Whether a target tells data and noise at both ends of a path."""
    try:
        target.check(path)
    except ValueError:
        return False
    return True


def small(**options) -> Diffusion:
    torch.manual_seed(0)
    model = Diffusion(**{"shape": (2,), "levels": None, "backbone": MLP, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_it_trains_samples_and_tells_densities_and_codes():
    assert all(can(small(), ability) for ability in (Trainable, Sampler, Density, Codec))


def test_samples_follow_the_law_of_gaussian_data(name):
    path = PATHS[name]
    for target in TARGETS:
        if told(path, target()):
            torch.manual_seed(0)
            x = gaussian.optimal(path, target()).sample(4_000, solver="heun", steps=20)
            close(x.mean(0), gaussian.MU, 0.03)
            close(x.std(0), gaussian.S, 0.03)


def test_the_likelihood_of_gaussian_data_is_the_closed_form(name):
    path = PATHS[name]
    mean, deviation = gaussian.law(path, path.span[0])
    torch.manual_seed(0)
    x = mean + deviation * torch.randn(16, 2, dtype=torch.float64)
    expected = gaussian.log_normal(x, mean, deviation)
    for target in (Velocity, Noise, Preconditioned):
        if told(path, target()):
            model = gaussian.optimal(path, target())
            log_p = model.log_prob(x)
            # what is left of the data in the noisy end counts as noise: alpha / sigma is 0.006 on DDPM's path
            close(log_p, expected, 1e-3 if name in ("straight", "cosine") else 2e-2)
            assert not log_p.requires_grad
    assert model.protocol == {"trace": "exact"}


def test_hutchinsons_estimate_is_drawn_once_for_a_solve_and_agrees():
    torch.manual_seed(0)
    model = small().double()
    x = torch.randn(8, 2, dtype=torch.float64)
    exact = model.log_prob(x, tolerance=1e-4)
    model.exact = False
    guesses = torch.stack([model.log_prob(x, tolerance=1e-4) for _ in range(20)])
    assert (guesses.std(0) > 1e-4).all()
    close((guesses.mean(0) - exact) / (guesses.std(0) / math.sqrt(20)), torch.zeros(8).double(), 4.0)
    many = torch.stack([model.log_prob(x, probes=16, tolerance=1e-4) for _ in range(8)])
    assert many.std(0).mean() < 0.5 * guesses.std(0).mean()
    torch.manual_seed(1)
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    same = rademacher(1, x)
    twice = [transported(rk4, model.field(), x, times, same)[1] for _ in range(2)]
    assert torch.equal(*twice)


def test_likelihoods_are_told_where_nothing_is_differentiated():
    model, x = small(), torch.randn(5, 2)
    expected = model.log_prob(x)
    with torch.inference_mode():
        close(model.log_prob(x + 0), expected, 1e-6)


def test_the_best_network_has_the_loss_of_what_cannot_be_known(name):
    """E |o - E[o | x_t]|^2, at one time: b^2 of the variance of x_1 given x_t, and more for any other network."""
    path = PATHS[name]
    for target in (Velocity(), Noise(), Preconditioned()):
        if not told(path, target):
            continue
        model = gaussian.optimal(path, target, time_sampler=At(0.01 if name == "edm" else 0.4))
        low, high = path.span
        t = torch.tensor(low + (high - low) * model.time_sampler.at, dtype=torch.float64)
        (alpha, sigma), (a, b) = path.coefficients(t), target.mix(path, t)
        rest = gaussian.S**2 / (alpha**2 * gaussian.S**2 + sigma**2)  # of x_0, given x_t, in parts of sigma^2
        expected = ((a - b * alpha / sigma).square() * sigma**2 * rest).mean()
        torch.manual_seed(0)
        x = gaussian.MU + gaussian.S * torch.randn(100_000, 2, dtype=torch.float64)
        loss = model.loss(x)["loss"]
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)
        with torch.no_grad():
            model.backbone.one.mul_(1.2)
        assert model.loss(x)["loss"] > loss


def test_weights_make_losses_of_different_targets_one():
    """Weighted on the error of x_0, it does not matter in what the network tells it."""
    path, losses = VariancePreserving(), []
    for target in (Noise(), Velocity(), Data(), Preconditioned()):
        for weight in (EDMWeight(), MinSNR()):
            model = gaussian.optimal(path, target, weighting=weight)
            torch.manual_seed(3)
            losses.append(model.loss(torch.randn(512, 2, dtype=torch.float64))["loss"].detach())
    close(torch.stack(losses[2:]), torch.stack(losses[:2]).repeat(3), 1e-8)


def of_a_line(coupling=None, pairs=None) -> Diffusion:
    """A flow from 8 Gaussians to a line, or of pairs, trained in a second."""
    torch.manual_seed(0)
    network = partial(TimeMLP, width=32)
    model = Diffusion(shape=(2,), levels=None, backbone=network, source=EightGaussians, coupling=coupling)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(160):
        batch = {"x": torch.rand(64, 1) * torch.tensor([4.0, 0.0]) + torch.tensor([1.0, 2.0])}
        if pairs is not None:
            some = torch.randint(len(pairs["x"]), (64,))
            batch = {name: part[some] for name, part in pairs.items()}
        optimizer.zero_grad()
        model.loss(**batch)["loss"].backward()
        optimizer.step()
    return model


def test_a_network_learns_to_make_its_data():
    """8 Gaussians become a line; on ways that are straighter with optimal transport, and of a flow's own pairs."""
    first = of_a_line()
    noise = first.noise(512)
    with torch.no_grad():
        pairs = {"x": solve(first.field(), noise, steps=10), "noise": noise}
    bends = []
    for model in (first, of_a_line(MinibatchOT()), of_a_line(pairs=pairs)):
        x = model.sample(500, steps=10)
        assert (x.mean(0) - torch.tensor([3.0, 2.0])).abs().max() < 0.5
        assert x[:, 1].std() < 1.0
        bends.append(model.straightness(200, steps=10).mean())
    assert max(bends[1:]) < 0.5 * bends[0]


def test_pairs_of_noise_and_data_are_trained_on_as_they_are():
    model = small(coupling=None)
    x, noise = torch.randn(64, 2), torch.randn(64, 2)
    seen = []
    model.backbone.register_forward_hook(lambda net, args, out: seen.append((*args[:2], out)))
    loss = model.loss(x, noise=noise)["loss"]
    ((x_t, t, o),) = seen
    close(x_t, (1 - t)[:, None] * x + t[:, None] * noise, 1e-6)
    close(loss, (o - (noise - x)).square().mean(), 1e-6)


class TestGuidance:
    """w of v_without + w (v_with - v_without)."""

    def model(self):
        model = small(condition=partial(ClassCondition, 3, dim=4))
        self.sizes = []
        model.backbone.register_forward_hook(lambda net, args, out: self.sizes.append(len(args[0])))
        return model

    def by_hand(self, model, y, keep):
        torch.manual_seed(5)
        x = model.noise(6)
        c = model.condition(y, torch.full((6,), keep))
        for i in range(4):
            t = torch.full((6,), 1 - i / 4)
            v = model.backbone(x, t, c)
            x_0, x_1 = model.target.ends(v, x, t, model.path)
            x = x - 0.25 * (x_1 - x_0)
        return x

    def sample(self, model, y, **options):
        torch.manual_seed(5)
        return model.sample(6, y, solver="euler", steps=4, **options)

    @torch.no_grad()
    def test_at_one_the_condition_alone_is_asked_and_at_zero_nothing_of_it(self):
        model, y = self.model(), torch.tensor([0, 1, 2, 0, 1, 2])
        for w, keep in ((1.0, True), (0.0, False)):
            expected = self.by_hand(model, y, keep)
            self.sizes.clear()
            assert torch.equal(self.sample(model, y, guidance=w), expected)
            assert self.sizes == [6] * 4
            assert model.evaluations == 4

    @torch.no_grad()
    def test_between_both_are_asked(self):
        model, y = self.model(), torch.tensor([0, 1, 2, 0, 1, 2])
        assert not torch.allclose(self.sample(model, y, guidance=3.0), self.sample(model, y))
        self.sizes.clear()
        self.sample(model, y, guidance=3.0)
        assert self.sizes == [12] * 4
        assert model.evaluations == 8
        x, t = torch.randn(6, 2), torch.tensor(0.5)
        v = [model.field(y, guidance=w)(x, t) for w in (0.0, 1.0, 3.0)]
        close(v[2], v[0] + 3 * (v[1] - v[0]), 1e-5)

    def test_a_model_without_condition_has_no_guidance(self):
        with pytest.raises(ValueError, match="guidance=2"):
            small().sample(2, guidance=2.0)

    def test_a_model_that_was_always_told_has_no_guidance(self):
        model = small(condition=partial(ClassCondition, 3, dim=4), drop=0.0)
        assert model.sample(2).shape == (2, 2)
        for guidance in (0.0, 2.0):
            with pytest.raises(ValueError, match="with drop=0 this model never learned"):
                model.sample(2, guidance=guidance)

    def test_conditions_are_dropped_as_often_as_it_says(self):
        seen = []
        model = small(condition=partial(ClassCondition, 3, dim=4), drop=0.25)
        model.condition.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
        model.loss(torch.randn(4000, 2), torch.randint(3, (4000,)))
        assert seen[0].float().mean().item() == pytest.approx(0.75, abs=0.03)
        with pytest.raises(ValueError, match="needs y"):
            model.loss(torch.randn(4, 2))
        with pytest.raises(ValueError, match="needs y"):
            model.log_prob(torch.randn(4, 2))

    def test_classes_are_drawn_where_none_is_asked_for(self):
        model = small(condition=partial(ClassCondition, 3, dim=4))
        assert model.sample(5).shape == (5, 2)
        assert model.log_prob(torch.randn(4, 2), torch.tensor([0, 1, 2, 0])).shape == (4,)

    def test_a_class_that_there_is_not_is_refused(self):
        """3 of 3 classes is the place of the null condition."""
        model = small(condition=partial(ClassCondition, 3, dim=4))
        for ask in (model.sample, lambda n, y: model.log_prob(torch.randn(n, 2), y)):
            with pytest.raises(ValueError, match="labels go from 0 to 2, and those asked for from 0 to 3"):
                ask(2, torch.tensor([0, 3]))

    def test_the_code_of_an_example_is_that_of_its_class(self):
        """Classes that were drawn for the way there and for the way back would be two."""
        model, x = small(condition=partial(ClassCondition, 3, dim=4)), torch.randn(4, 2)
        assert not can(model, Codec)
        for ask in (model.encode, model.decode):
            with pytest.raises(ValueError, match="needs y"):
                ask(x)
        y = torch.tensor([0, 1, 2, 0])
        close(model.decode(model.encode(x, y, steps=1000), y, steps=1000), x, 0.1)


class TestIntegers:
    """Images of integers: scaled to [-1, 1], rounded back, their probability bounded."""

    def model(self, levels, shape=(1, 2, 2), **options):
        return small(shape=shape, levels=levels, **options)

    @pytest.mark.parametrize("levels", [2, 17, 256, 1000])
    def test_integers_survive_the_way_to_real_numbers_and_back(self, levels):
        interval = Interval(levels)
        x = torch.arange(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        h = interval.real(x, torch.float32)
        assert (h.min(), h.max()) == (-1, 1)
        assert torch.equal(interval.data(h).long(), x)
        noisy = interval.real(x, torch.float32, dequantize=True)
        assert (
            interval.data(noisy).long() == x
        ).float().mean() > 0.999  # the bin's edge is a matter of the last bit
        assert (noisy - h).abs().max() <= 1.001 / (levels - 1)
        assert interval.data(9 * h).max() == levels - 1

    def test_probabilities_of_all_levels_sum_to_one(self):
        """With the exact field of a Gaussian between the levels' ends, nearly all of which lies within."""
        path = Straight()
        model = gaussian.optimal(path, Velocity())
        model.levels, model.interval, levels = 12, Interval(12), 12
        x = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
        torch.manual_seed(0)
        log_p = model.log_prob(x, samples=16, tolerance=1e-4)
        inside = torch.erf(((1 + 1 / 11) - gaussian.MU) / gaussian.S / math.sqrt(2)) / 2
        inside = inside + torch.erf(((1 + 1 / 11) + gaussian.MU) / gaussian.S / math.sqrt(2)) / 2
        assert log_p.exp().sum().item() == pytest.approx(inside.prod().item(), rel=0.02)

    def test_the_mean_of_more_draws_is_no_worse_a_bound(self):
        model = self.model(8)
        x = torch.randint(8, (64, 1, 2, 2), dtype=torch.uint8)
        torch.manual_seed(0)
        one = torch.stack([model.log_prob(x, tolerance=1e-3) for _ in range(4)]).mean()
        assert model.log_prob(x, samples=8, tolerance=1e-3).mean() > one - 0.02
        assert model.protocol == {"trace": "exact", "dequantization": "uniform"}
        with pytest.raises(ValueError, match="samples=0"):
            model.log_prob(x, samples=0)

    def test_training_takes_noise_within_the_bin_if_it_is_to(self):
        for dequantize in (False, True):
            model = self.model(2, dequantize=dequantize, time_sampler=At(0.0))
            seen = []
            model.backbone.register_forward_pre_hook(lambda net, args, s=seen: s.append(args[0]))
            model.loss(torch.ones(4, 1, 2, 2, dtype=torch.uint8))
            assert bool((seen[0] == 1).all()) != dequantize

    def test_estimates_are_kept_within_the_range(self):
        model = self.model(256, path=VariancePreserving(), target=Noise())
        assert model.sample(3, solver="ddpm", steps=5, clip=True).dtype == torch.uint8
        x_0, x_1 = model.field(clip=True).ends(9 * torch.randn(3, 1, 2, 2), torch.tensor(0.5))
        assert x_0.abs().max() <= 1
        alpha, sigma = model.path(torch.tensor(0.5))
        x = torch.randn(3, 1, 2, 2)
        x_0, x_1 = model.field(clip=True).ends(x, torch.tensor(0.5))
        close(alpha * x_0 + sigma * x_1, x, 1e-5)

    def test_estimates_are_kept_within_the_range_at_the_datas_end_too(self):
        model, x = self.model(256), torch.randn(3, 1, 2, 2)
        field = model.field(clip=True)
        assert field(x, torch.tensor(0.0)).isfinite().all()
        assert field.ends(x, torch.tensor(0.0))[0].abs().max() <= 1
        torch.manual_seed(0)
        seen = along(field, model.noise(3), solver="heun", steps=4)[1]
        assert seen.isfinite().all()

    def test_the_noise_of_data_is_the_closed_forms(self, name):
        """Of unit size, whatever a path multiplies it by."""
        path = PATHS[name]
        z = torch.randn(64, 2, dtype=torch.float64)
        mean, deviation = gaussian.law(path, path.span[1])
        sigma = path.coefficients(torch.tensor(path.span[1], dtype=torch.float64))[1]
        target = Velocity() if told(path, Velocity()) else Noise()
        noise = gaussian.optimal(path, target).encode(gaussian.MU + gaussian.S * z, steps=400)
        close(noise, (mean + deviation * z) / sigma, 0.05)

    def test_images_come_back_from_their_noise(self):
        model = gaussian.optimal(VariancePreserving(), Noise())
        model.interval = Interval(256)
        x = torch.randint(60, 200, (64, 2))
        errors = []
        for steps in (20, 80):
            z = model.encode(x, steps=steps)
            errors.append((model.decode(z, steps=steps).long() - x).abs().double().mean().item())
        assert z.is_floating_point()
        assert errors[1] < 0.5 * errors[0]
        assert errors[1] < 5


def test_samples_along_the_path_begin_with_noise_and_end_in_the_sample():
    model = small(path=EDMPath(), target=Preconditioned(), time_sampler=LogNormal())
    torch.manual_seed(0)
    times, x = along(model.field(), model.noise(4), solver="heun", steps=6)
    torch.manual_seed(0)
    assert torch.equal(x[-1], model.sample(4, steps=6))
    assert (x.shape, times[0].item(), times[-1].item()) == ((7, 4, 2), 80.0, 0.0)
    assert model.straightness(4).shape == (4,)


def test_a_shift_of_the_training_is_that_of_the_samples():
    model, plain = small(shift=3.0), small()
    torch.manual_seed(0)
    own = model.sample(4, steps=3)
    torch.manual_seed(0)
    assert torch.equal(plain.sample(4, steps=3, shift=3.0), own)
    torch.manual_seed(0)
    assert not torch.equal(model.sample(4, steps=3, shift=1.0), own)


def test_every_option_of_a_sampler_matters():
    model = small(path=VariancePreserving(), target=Noise())

    def drawn(**options):
        torch.manual_seed(0)
        return model.sample(4, **{"steps": 3, **options})

    for plain, more in (
        ({"solver": "ddim"}, {"eta": 0.5}),
        ({"solver": "ddpm"}, {"variance": "large"}),
        ({"solver": "rk45"}, {"tolerance": 1e-1}),
        ({}, {"steps": 4}),
        ({}, {"shift": 2.0}),
    ):
        assert not torch.equal(drawn(**plain), drawn(**plain, **more)), more


def test_noise_of_another_law_has_no_ancestral_sampler():
    model = small(source=EightGaussians)
    assert model.sample(4, solver="rk4", steps=2).shape == (4, 2)
    assert model.log_prob(torch.randn(3, 2)).isfinite().all()
    for options in ({"solver": "ddpm"}, {"solver": "ddim", "eta": 0.5}):
        with pytest.raises(ValueError, match="Gaussian noise"):
            model.sample(4, **options)
    with pytest.raises(ValueError, match="clip=true"):
        model.sample(4, clip=True)
    with pytest.raises(ValueError, match=r"points of the plane, and the data have shape=\[1, 2, 2\]"):
        small(source=EightGaussians, shape=(1, 2, 2)).sample(4)
    with pytest.raises(ValueError, match=r"drop=1\.5"):
        small(drop=1.5)
    with pytest.raises(ValueError, match=r"high=0\.999"):
        small(target=Noise())


def test_half_precision_is_the_networks_alone():
    model = small(shape=(1, 4, 4), levels=256, condition=partial(ClassCondition, 3, dim=4))
    x, y = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8), torch.randint(3, (8,))
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.loss(x, y)["loss"])
    assert losses[1].dtype == torch.float32
    close(losses[1], losses[0], 2e-2)
    losses[1].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    half = model.to(torch.bfloat16)
    assert half.noise(2).dtype == torch.float32
    assert half.sample(2, solver="rk45", tolerance=1e-2).dtype == torch.uint8
    with torch.autocast("cpu", torch.bfloat16):
        assert model.log_prob(x, y, tolerance=1e-2).isfinite().all()


def peer(name, **options):
    schedulers = pytest.importorskip("diffusers", reason="diffusers is a peer of the benchmarks")
    return getattr(schedulers, name)(beta_schedule="linear", **options)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_samplers_are_diffusers(name):
    """Of the same noise predictor; their time n is our (n + 1) / 1000."""
    common = {"timestep_spacing": "leading"}  # the only one whose steps their DDIM takes as it lists them
    own = {
        "DDPMScheduler": {"clip_sample": False, "variance_type": "fixed_small"},
        "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": True},
        "DPMSolverMultistepScheduler": {"final_sigmas_type": "zero"},
    }[name]
    scheduler = peer(name, **common, **own)
    steps = 250 if name == "DDPMScheduler" else 20
    scheduler.set_timesteps(steps)
    path = VariancePreserving()
    exact = gaussian.ends(path)

    def predict(x: Tensor, n: Tensor) -> Tensor:
        t = ((n.double() + 1) / 1000).expand(len(x))
        return exact(x.double(), t)[1].to(x)

    torch.manual_seed(0)
    start = torch.randn(16, 2)
    x, torch_noise = start, torch.Generator().manual_seed(1)
    options = {} if "Multistep" in name else {"generator": torch_noise}
    for n in scheduler.timesteps:
        x = scheduler.step(predict(x, n), n, x, **options).prev_sample
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1).double()])
    field = Field(path, lambda x, t: tuple(end.to(x) for end in exact(x.double(), t)))
    solver = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}.get(name, "dpm_solver")
    torch.manual_seed(1)
    ours = SOLVERS[solver](field, start, times)
    close(ours, x, 2e-3)
