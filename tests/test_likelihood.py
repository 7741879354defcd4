"""Likelihoods of images of integers: they are probabilities, and their samples follow them."""

from itertools import product

import pytest
import torch

from zoo.nn import Bernoulli, Categorical, DiscretizedGaussian, DiscretizedLogisticMixture
from zoo.nn.likelihood import Likelihood, likelihood_for


def parameters_of(likelihood: Likelihood, shape: tuple[int, int, int], *lead: int, spread: float = 1.0):
    return spread * torch.randn(*lead, likelihood.features(shape), *shape[1:], dtype=torch.float64)


def every_pixel(channels: int, levels: int) -> torch.Tensor:
    """All pixels there are: (levels^C, C, 1, 1)."""
    return torch.tensor(list(product(range(levels), repeat=channels))).reshape(-1, channels, 1, 1)


SUBJECTS = [
    pytest.param(Bernoulli(2), 2, 1, id="bernoulli"),
    pytest.param(Bernoulli(2), 2, 3, id="bernoulli-rgb"),
    pytest.param(Categorical(17), 17, 1, id="categorical-17"),
    pytest.param(Categorical(4), 4, 3, id="categorical-rgb"),
    *(
        pytest.param(DiscretizedGaussian(v, scale=scale), v, C, id=f"gaussian-{v}-{C}-{scale}")
        for v, C, scale in [(2, 1, None), (17, 1, None), (256, 1, None), (256, 1, 0.01), (5, 3, None)]
    ),
    *(
        pytest.param(DiscretizedLogisticMixture(v, components=5), v, C, id=f"mixture-{v}-{C}")
        for v, C in [(2, 1), (3, 1), (17, 1), (256, 1), (1024, 1), (16, 2), (7, 3), (12, 3), (3, 4)]
    ),
]


@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
@pytest.mark.parametrize(("likelihood", "levels", "channels"), SUBJECTS)
def test_probabilities_of_all_pixels_sum_to_one(likelihood, levels, channels, spread):
    torch.manual_seed(0)
    parameters = parameters_of(likelihood, (channels, 1, 1), 1, spread=spread)
    total = likelihood.log_prob(parameters, every_pixel(channels, levels)).logsumexp(0)
    assert total.abs() < 1e-10


@pytest.mark.parametrize(
    ("likelihood", "levels", "channels"),
    [
        pytest.param(Bernoulli(2), 2, 1, id="bernoulli"),
        pytest.param(Categorical(5), 5, 1, id="categorical"),
        pytest.param(DiscretizedGaussian(17), 17, 1, id="gaussian-grey"),
        pytest.param(DiscretizedGaussian(3, scale=0.5), 3, 3, id="gaussian-rgb"),
        pytest.param(DiscretizedLogisticMixture(17, components=3), 17, 1, id="mixture-grey"),
        pytest.param(DiscretizedLogisticMixture(3, components=3), 3, 3, id="mixture-rgb"),
    ],
)
def test_samples_follow_the_probabilities(likelihood, levels, channels):
    torch.manual_seed(1)
    n = 40_000
    parameters = parameters_of(likelihood, (channels, 1, 1), 1)
    pixels = every_pixel(channels, levels)
    p = likelihood.log_prob(parameters, pixels).exp()
    draws = likelihood.sample(parameters.expand(n, -1, -1, -1)).long().flatten(1)
    index = (draws * torch.tensor([levels ** (channels - 1 - c) for c in range(channels)])).sum(1)
    share = torch.bincount(index, minlength=len(p)) / n
    deviation = (share - p) / (p * (1 - p) / n).sqrt().clamp(min=1e-9)
    assert deviation[p > 1e-3].abs().max() < 4.5
    assert share[p <= 1e-3].sum() < 0.03


@pytest.mark.parametrize(("likelihood", "levels", "channels"), SUBJECTS)
def test_samples_and_modes_are_integers_of_the_data(likelihood, levels, channels):
    torch.manual_seed(2)
    shape = (channels, 3, 2)
    parameters = parameters_of(likelihood, shape, 4, spread=5.0)
    for x in (likelihood.sample(parameters), likelihood.mode(parameters)):
        assert x.shape == (4, *shape)
        assert x.dtype == (torch.uint8 if levels <= 256 else torch.int64)
        assert 0 <= int(x.min()) <= int(x.max()) < levels


@pytest.mark.parametrize(("likelihood", "levels", "channels"), SUBJECTS)
def test_a_sample_at_temperature_zero_is_the_mode(likelihood, levels, channels):
    torch.manual_seed(2)
    parameters = parameters_of(likelihood, (channels, 3, 2), 4)
    assert torch.equal(likelihood.sample(parameters, temperature=0), likelihood.mode(parameters))


@pytest.mark.parametrize("likelihood", [Bernoulli(2), Categorical(2)])
def test_a_temperature_divides_logits(likelihood):
    p = torch.tensor([0.2, 0.8])
    logits = (p.log() if isinstance(likelihood, Categorical) else p.logit()[1:]).view(1, -1, 1, 1)
    torch.manual_seed(0)
    seen = likelihood.sample(logits.expand(20_000, -1, 1, 1), temperature=0.5).double().mean()
    expected = p[1] ** 2 / (p**2).sum()
    assert abs(seen - expected) < 4 * (expected * (1 - expected) / 20_000).sqrt()


@pytest.mark.parametrize(
    ("likelihood", "parameters"),
    [
        pytest.param(DiscretizedGaussian(256), [0.1, -3.0], id="gaussian"),
        pytest.param(DiscretizedGaussian(256, scale=0.05), [0.1], id="gaussian of one scale"),
        pytest.param(DiscretizedLogisticMixture(256, components=1), [0.0, 0.1, -3.0], id="logistic"),
        pytest.param(
            DiscretizedLogisticMixture(256, components=1), [0.0, 0.1, 0.1, -3.0, -3.0, 0.0], id="two channels"
        ),
    ],
)
def test_a_temperature_multiplies_scales_and_moves_no_mean(likelihood, parameters):
    torch.manual_seed(0)
    parameters = torch.tensor(parameters).view(1, -1, 1, 1).expand(8000, -1, 1, 1)
    warm, cold = (likelihood.sample(parameters, temperature=t).double() for t in (1.0, 0.25))
    assert warm.std() / cold.std() == pytest.approx(4, rel=0.1)
    assert warm.mean() == pytest.approx(1.1 * 127.5, abs=0.5)
    assert cold.mean() == pytest.approx(1.1 * 127.5, abs=0.2)


@pytest.mark.parametrize(("likelihood", "levels"), [(Bernoulli(2), 2), (Categorical(6), 6)])
def test_the_mode_is_the_most_probable_image(likelihood, levels):
    torch.manual_seed(3)
    parameters = parameters_of(likelihood, (1, 1, 1), 1)
    best = likelihood.log_prob(parameters, every_pixel(1, levels)).argmax()
    assert likelihood.mode(parameters).item() == best


def test_the_mode_of_a_narrow_mixture_is_the_most_probable_pixel():
    torch.manual_seed(4)
    likelihood, pixels = DiscretizedLogisticMixture(9, components=1), every_pixel(3, 9)
    for _ in range(5):
        parameters = 0.7 * parameters_of(likelihood, (3, 1, 1), 1)
        parameters[:, 4:7] = -20.0  # the log scales of the three channels, which the floor catches
        best = pixels[likelihood.log_prob(parameters, pixels).argmax()]
        assert torch.equal(likelihood.mode(parameters)[0].long(), best)


@pytest.mark.parametrize(("likelihood", "levels", "channels"), SUBJECTS)
def test_one_image_is_scored_under_many_parameters_as_one_by_one(likelihood, levels, channels):
    torch.manual_seed(5)
    shape = (channels, 2, 3)
    parameters = parameters_of(likelihood, shape, 4, 2)
    x = torch.randint(levels, (2, *shape))
    alone = [[likelihood.log_prob(parameters[k, b], x[b]) for b in range(2)] for k in range(4)]
    torch.testing.assert_close(likelihood.log_prob(parameters, x), torch.tensor(alone, dtype=torch.float64))


def test_the_mixture_is_the_formula_of_the_paper():
    torch.manual_seed(6)
    K, levels = 2, 256
    parameters = parameters_of(likelihood := DiscretizedLogisticMixture(levels, components=K), (3, 1, 1))
    x = torch.tensor([17, 200, 255]).reshape(3, 1, 1)
    v = 2 * x.flatten().double() / 255 - 1
    p = torch.zeros((), dtype=torch.float64)
    each = parameters.reshape(K, 10)
    for weight, (_, m0, m1, m2, s0, s1, s2, a10, a20, a21) in zip(each[:, 0].softmax(0), each):
        means = m0, m1 + a10.tanh() * v[0], m2 + a20.tanh() * v[0] + a21.tanh() * v[1]
        mass = weight
        for c, (mean, log_scale) in enumerate(zip(means, (s0, s1, s2))):
            above = ((v[c] - mean + 1 / 255) / log_scale.exp()).sigmoid() if x[c] < 255 else 1.0
            below = ((v[c] - mean - 1 / 255) / log_scale.exp()).sigmoid() if x[c] > 0 else 0.0
            mass = mass * (above - below)
        p = p + mass
    torch.testing.assert_close(likelihood.log_prob(parameters, x), p.log())


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("likelihood", [Bernoulli(2), Categorical(4), DiscretizedLogisticMixture(256)])
def test_extreme_parameters_give_finite_numbers_and_gradients(likelihood, size):
    torch.manual_seed(7)
    parameters = (size * torch.randn(8, likelihood.features((3, 4, 4)), 4, 4)).requires_grad_()
    value = likelihood.log_prob(parameters, torch.randint(2, (8, 3, 4, 4)))
    (gradient,) = torch.autograd.grad(value.sum(), parameters)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_parameters_are_summed_in_float32():
    torch.manual_seed(8)
    parameters = torch.randn(2, 1, 28, 28).bfloat16()
    x = torch.randint(2, (2, 1, 28, 28), dtype=torch.uint8)
    value = Bernoulli(2).log_prob(parameters, x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, Bernoulli(2).log_prob(parameters.float(), x))


def test_the_usual_likelihood_goes_by_levels():
    assert isinstance(likelihood_for(2), Bernoulli)
    assert isinstance(likelihood_for(8), Categorical)
    assert isinstance(likelihood_for(256), DiscretizedLogisticMixture)


def test_a_bernoulli_of_grey_values_is_refused():
    with pytest.raises(ValueError, match="2 levels, not 256"):
        Bernoulli(256)


def test_the_bias_gives_back_the_mean():
    mean = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(Bernoulli(2).bias(mean).sigmoid(), torch.tensor([0.001, 0.25, 0.999]))


def test_the_scale_of_a_mixture_has_the_floor_of_the_paper():
    torch.manual_seed(9)
    likelihood, x = DiscretizedLogisticMixture(256, components=1), every_pixel(1, 256)
    parameters = parameters_of(likelihood, (1, 1, 1), 1, spread=0.1)
    values = []
    for log_scale in (-50.0, -7.0, -6.9):
        parameters[:, 2] = log_scale
        values.append(likelihood.log_prob(parameters, x))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert (values[1] - values[2]).abs().max() > 1


def test_the_tails_of_a_mixture_are_as_exact_as_its_middle():
    torch.manual_seed(10)
    likelihood, x = DiscretizedLogisticMixture(256), torch.randint(256, (64, 3, 4, 4))
    parameters = parameters_of(likelihood, (3, 4, 4), 64, spread=3.0)
    exact = likelihood.log_prob(parameters, x)
    torch.testing.assert_close(likelihood.log_prob(parameters.float(), x), exact.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("lead", "of_x"), [((), (4,)), ((4,), (4,)), ((3, 4), (4,)), ((1, 4), (3, 4)), ((4,), ())]
)
def test_the_bernoullis_own_gradient_is_autograds(lead, of_x):
    torch.manual_seed(4)
    logits = (3 * torch.randn(*lead, 1, 2, 3, dtype=torch.float64)).requires_grad_()
    x = torch.randint(2, (*of_x, 1, 2, 3))
    value = Bernoulli(2).log_prob(logits, x)
    slow = torch.nn.functional.logsigmoid((2 * x - 1) * logits).sum((-3, -2, -1))
    torch.testing.assert_close(value, slow)
    weights = torch.randn_like(value)
    found = [torch.autograd.grad((one * weights).sum(), logits)[0] for one in (value, slow)]
    torch.testing.assert_close(*found)


def test_a_bernoulli_of_wild_logits_is_finite():
    logits = torch.tensor([1e4, -1e4, 60.0, -60.0]).reshape(4, 1, 1, 1).requires_grad_()
    value = Bernoulli(2).log_prob(logits, torch.tensor([0, 0, 1, 1]).reshape(4, 1, 1, 1))
    torch.testing.assert_close(value.detach(), torch.tensor([-1e4, 0.0, 0.0, -60.0]))
    value.sum().backward()
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor([-1.0, 0.0, 0.0, 1.0]))


def test_a_gaussian_integrated_over_bins_is_that_of_torch_distributions():
    torch.manual_seed(5)
    likelihood = DiscretizedGaussian(17)
    parameters = parameters_of(likelihood, (2, 3, 3), 6, spread=0.3)  # no tails, where cdfs say nothing
    x = torch.randint(17, (6, 2, 3, 3))
    mu, log_s = parameters.chunk(2, 1)
    truth = torch.distributions.Normal(mu, log_s.exp())
    v, h = x / 8 - 1, 1 / 16
    above = torch.where(x == 16, 1.0, truth.cdf(v + h))
    below = torch.where(x == 0, 0.0, truth.cdf(v - h))
    torch.testing.assert_close(likelihood.log_prob(parameters, x), (above - below).log().sum((1, 2, 3)))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_s", [-30.0, -7.0, 0.0, 30.0])
def test_a_gaussian_far_from_the_data_has_a_finite_slope_towards_it(levels, log_s):
    parameters = torch.tensor([-5.0, log_s]).reshape(1, 2, 1, 1).expand(levels, -1, -1, -1).clone()
    parameters.requires_grad_()
    value = DiscretizedGaussian(levels).log_prob(parameters, torch.arange(levels).reshape(-1, 1, 1, 1))
    assert value.isfinite().all()
    value.sum().backward()
    assert parameters.grad.isfinite().all()
    assert (parameters.grad[1:, 0] >= 0).all()


def test_a_gaussians_scale_is_positive():
    with pytest.raises(ValueError, match="scale=0"):
        DiscretizedGaussian(256, scale=0.0)
