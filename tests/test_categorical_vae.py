"""A VAE of categorical codes: against the sum over all codes, which a tiny one can take."""

import math
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from zoo.models import CategoricalVAE
from zoo.nn import MLP, GumbelSoftmax, ScoreFunction
from zoo.nn.estimators import one_hots
from zoo.types import Codec, Density, Measured, Prepared, Sampler, Scheduled, Space, Unfit, can

SHAPE = (1, 2, 2)


def tiny(estimator=None, *, latent: int = 3, categories: int = 2) -> CategoricalVAE:
    torch.manual_seed(0)
    net = partial(MLP, hidden=(5,))
    vae = CategoricalVAE(
        shape=SHAPE,
        levels=2,
        latent=latent,
        categories=categories,
        encoder=net,
        decoder=net,
        estimator=estimator,
    ).double()
    with torch.no_grad():
        vae.logits.normal_()
        for weight in vae.parameters():
            weight.mul_(2.0)
    return vae


def enumerated(vae: CategoricalVAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p(x|z), log p(z), log q(z|x) of all codes: (K^N, B) each."""
    N, K = vae.latent.shape[0], vae.latent.levels
    codes = torch.tensor(list(product(range(K), repeat=N)))
    z = F.one_hot(codes, K).double()
    log_p = torch.stack([vae.likelihood.log_prob(vae.decoder(one.expand(len(x), -1, -1)), x) for one in z])
    log_prior = (z * vae.logits.log_softmax(-1)).sum((1, 2))
    log_q = (z[:, None] * vae.posterior(x)).sum((2, 3))
    return log_p, log_prior[:, None].expand_as(log_p), log_q


def images(n: int = 4) -> torch.Tensor:
    return torch.randint(2, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_kl_is_exact_and_of_the_codes():
    vae, x = tiny(categories=3), images()
    log_q = vae.posterior(x)
    prior = Categorical(logits=vae.logits.expand(4, -1, -1))
    expected = kl_divergence(Categorical(logits=log_q), prior).sum(1).mean()
    torch.testing.assert_close(vae.loss(x)["kl"], expected)
    _, log_prior, log_q = enumerated(vae, x)
    torch.testing.assert_close((log_q.exp() * (log_q - log_prior)).sum(0).mean(), expected)


def test_the_bound_in_evaluation_is_the_elbo_of_whole_codes_on_average():
    vae, x = tiny().eval(), images(1)
    log_p, log_prior, log_q = enumerated(vae, x)
    elbo = (log_q.exp() * (log_p + log_prior - log_q)).sum()
    nats = vae.loss(x.expand(40_000, -1, -1, -1))["nats"]
    torch.testing.assert_close(-nats, elbo, rtol=0, atol=0.02)


def test_more_samples_come_to_log_p_from_below():
    torch.manual_seed(2)
    vae, x = tiny(), images(4).repeat(50, 1, 1, 1)
    log_p, log_prior, _ = enumerated(vae, x[:4])
    exact = (log_p + log_prior).logsumexp(0).mean()
    gaps = [(exact - vae.log_prob(x, samples=samples).mean()).item() for samples in (1, 10, 3000)]
    assert gaps[0] > gaps[1] > abs(gaps[2])
    assert abs(gaps[2]) < 0.01


def test_a_cold_relaxed_draw_is_a_draw_and_a_hot_one_says_nothing():
    torch.manual_seed(3)
    log_q = torch.randn(1, 1, 4, dtype=torch.float64).log_softmax(-1).expand(60_000, -1, -1)
    cold, hot = GumbelSoftmax(start=1e-3), GumbelSoftmax(start=1e4)
    y = cold.draw(log_q)[0, :, 0]
    assert (y.max(-1).values > 0.99).double().mean() > 0.99
    torch.testing.assert_close(y.mean(0), log_q[0, 0].exp(), rtol=0, atol=0.01)
    torch.testing.assert_close(one_hots(log_q)[0, :, 0].mean(0), log_q[0, 0].exp(), rtol=0, atol=0.01)
    torch.testing.assert_close(
        hot.draw(log_q), torch.full((1, 60_000, 1, 4), 0.25).double(), rtol=0, atol=0.01
    )


def test_a_draw_straight_through_is_whole_with_the_gradient_of_the_relaxed_one():
    log_q = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    towards, found = torch.randn(1, 6, 3, 4, dtype=torch.float64), []
    for hard in (False, True):
        torch.manual_seed(4)
        z = GumbelSoftmax(hard=hard, start=0.7).draw(log_q)
        found.append(torch.autograd.grad((z * towards).sum(), log_q)[0])
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert (z.sum(-1) == 1).all()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_the_score_functions_gradient_is_the_exact_one_on_average(samples):
    vae, x = tiny(ScoreFunction(samples=samples)), images(1)
    names, weights = zip(*vae.named_parameters())
    log_p, log_prior, log_q = enumerated(vae, x)
    exact = torch.autograd.grad(-(log_q.exp() * (log_p + log_prior - log_q)).sum(), weights)
    each = []
    for seed in range(20):
        torch.manual_seed(seed)
        each.append(torch.autograd.grad(vae.loss(x.expand(4_000, -1, -1, -1))["loss"], weights))
    for name, truth, *found in zip(names, exact, *each):
        found = torch.stack(found)
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - truth).abs() < 5 * error + 1e-9).all(), name
        assert truth.abs().max() > 5 * error.max(), name


def test_the_baseline_makes_the_score_functions_gradient_less_noisy():
    x, noise = images(1), []
    for estimator, batch in ((ScoreFunction(samples=1), 4), (ScoreFunction(samples=4), 1)):
        vae, found = tiny(estimator), []
        for seed in range(100):  # the same four draws' worth
            torch.manual_seed(seed)
            loss = vae.loss(x.expand(batch, -1, -1, -1))["loss"]
            found.append(torch.autograd.grad(loss, vae.encoder.output.bias)[0])
        noise.append(torch.stack(found).var(0).sum())
    assert noise[1] < 0.5 * noise[0]


def test_the_temperature_falls_in_steps_to_its_end():
    vae = tiny(GumbelSoftmax(start=1.0, end=0.5, rate=1e-4, every=500))
    assert can(vae, Scheduled)
    taus = []
    for step in (0, 499, 500, 5_000, 100_000):
        vae.at(step)
        taus.append(vae.estimator.tau)
    assert taus == [1.0, 1.0, pytest.approx(math.exp(-0.05)), pytest.approx(math.exp(-0.5)), 0.5]


def test_a_relaxed_draw_tells_no_bound():
    x = images()
    for estimator, told in (
        (GumbelSoftmax(), False),
        (GumbelSoftmax(hard=True), True),
        (ScoreFunction(), True),
    ):
        vae = tiny(estimator)
        assert ("nats" in vae.train().loss(x)) is told
        assert "nats" in vae.eval().loss(x)


@pytest.mark.parametrize("estimator", [GumbelSoftmax(), GumbelSoftmax(hard=True), ScoreFunction()])
def test_a_vae_of_codes_has_all_its_abilities(estimator):
    torch.manual_seed(5)
    vae = CategoricalVAE(shape=(3, 4, 4), levels=17, latent=5, categories=4, estimator=estimator)
    x = torch.randint(17, (6, 3, 4, 4), dtype=torch.uint8)
    for contract in (Sampler, Density, Codec, Prepared, Measured):
        assert can(vae, contract)
    vae.prepare([{"x": x}])
    vae.loss(x)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in vae.parameters())
    codes = vae.encode(x)
    assert codes.shape == (6, 5)
    assert vae.latent == Space((5,), 4)
    for image in (vae.decode(codes), vae.reconstruct(x), vae.sample(6), vae.sample(6, temperature=0.0)):
        assert image.shape == x.shape
        assert image.dtype == x.dtype
        assert int(image.max()) < 17


def test_health_is_of_the_split_and_told_in_words():
    vae, x = tiny(), images(40)
    with torch.no_grad():
        vae.encoder.output.weight.mul_(4.0)
    one, two = vae.statistics(x[:15]), vae.statistics(x[15:])
    told = vae.summarize({name: one[name] + two[name] for name in one})
    q = vae.posterior(x).exp()
    assert told["active_units"] == (q.var(0, correction=0).sum(1) > 0.01).sum() > 0
    assert told["kl_max_dim"] >= told["kl_min_dim"] >= 0
    assert vae.unwell(told) == []
    assert "active_units=0 of 3" in vae.unwell(told | {"active_units": 0.0})[0]


def test_what_it_cannot_model_is_refused_in_a_sentence():
    with pytest.raises(Unfit, match="images of integers"):
        CategoricalVAE(shape=(12,), levels=7)
    with pytest.raises(ValueError, match="categories=1"):
        tiny(categories=1)
    with pytest.raises(ValueError, match="samples=0"):
        ScoreFunction(samples=0)
    with pytest.raises(ValueError, match="samples=0"):
        tiny().log_prob(images(), samples=0)
