"""Bounds of several draws, two stochastic layers and priors: against closed forms and their definitions."""

import math
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from test_vae import DENSE, images, linear_gaussian
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from zoo.models import VAE
from zoo.nn import (
    MLP,
    Bernoulli,
    DoublyReparameterized,
    GaussianMixture,
    ImportanceWeighted,
    StandardNormal,
    StochasticLayer,
    VampPrior,
    priors,
)

SHAPE = (1, 8, 8)


def small(**options) -> VAE:
    torch.manual_seed(0)
    return VAE(shape=SHAPE, levels=2, latent=3, **(DENSE | options)).double()


def seeded(model: VAE, x: torch.Tensor, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return model.loss(x)


def test_the_loss_is_minus_the_log_of_the_mean_weight():
    vae, x = small(samples=7, bound=ImportanceWeighted()), images(5, SHAPE, 2)
    terms = seeded(vae, x)
    mu, lv = vae.posterior(x)
    torch.manual_seed(1)
    z = mu + (lv / 2).exp() * torch.stack([torch.randn_like(mu) for _ in range(7)])
    log_p = torch.stack([Bernoulli(2).log_prob(vae.decoder(one), x) for one in z])
    log_w = log_p + (Normal(0.0, 1.0).log_prob(z) - Normal(mu, (lv / 2).exp()).log_prob(z)).sum(-1)
    torch.testing.assert_close(terms["loss"], -log_w.exp().mean(0).log().mean())
    torch.testing.assert_close(terms["reconstruction"] + terms["kl"], -log_w.mean())
    assert terms["loss"] < terms["reconstruction"] + terms["kl"]


def test_one_weighted_draw_is_the_elbo():
    vae, x = small(samples=1, bound=ImportanceWeighted()), images(5, SHAPE, 2)
    terms = seeded(vae, x)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["kl"])
    elbo = small()
    many = x[:1].expand(20_000, -1, -1, -1)
    torch.testing.assert_close(vae.loss(many)["loss"], elbo.loss(many)["loss"], rtol=0, atol=0.05)


def test_the_mean_bound_over_all_subsets_of_the_same_draws_grows():
    vae, x = small(), images(4, SHAPE, 2)
    log_w, z = vae.log_weights(x, 6), torch.zeros(6, 4, 3)
    bound = ImportanceWeighted()
    means = [
        torch.stack([bound(log_w[list(some)], z) for some in combinations(range(6), k)]).mean(0)
        for k in range(1, 7)
    ]
    torch.testing.assert_close(means[0], log_w.mean(0))
    for fewer, more in pairwise(means):
        assert (fewer < more).all()


def test_the_trained_bound_comes_to_log_p_of_a_linear_gaussian():
    vae, truth = linear_gaussian(wider=1.0)
    x = images(64, (1, 2, 3), 5)
    expected = -truth.log_prob(x.flatten(1).double() / 4).mean()
    vae.bound, gaps = ImportanceWeighted(), []
    for vae.samples in (1, 10, 3000):
        gaps.append((vae.loss(x)["loss"] - expected).item())
    assert gaps[0] > gaps[1] > abs(gaps[2])
    assert gaps[0] > 0.5
    assert abs(gaps[2]) < 0.02


def test_several_unweighted_draws_are_the_mean_of_their_elbos():
    vae, x = small(samples=3), images(5, SHAPE, 2)
    terms = seeded(vae, x)
    torch.manual_seed(1)
    mu, lv = vae.posterior(x)
    z = mu + (lv / 2).exp() * torch.randn(3, 5, 3, dtype=torch.float64)
    each = torch.stack([-Bernoulli(2).log_prob(vae.decoder(one), x).mean() for one in z])
    torch.testing.assert_close(terms["reconstruction"], each.mean())


def gradients(model: VAE, x: torch.Tensor, part: str) -> torch.Tensor:
    found = torch.autograd.grad(seeded(model, x)["loss"], list(getattr(model, part).parameters()))
    return torch.cat([one.flatten() for one in found])


def test_the_doubly_reparameterized_bound_has_the_same_value_and_decoders_gradient():
    x = images(5, SHAPE, 2)
    plain, double = (small(samples=4, bound=bound()) for bound in (ImportanceWeighted, DoublyReparameterized))
    torch.testing.assert_close(seeded(plain, x)["loss"], seeded(double, x)["loss"])
    torch.testing.assert_close(gradients(plain, x, "decoder"), gradients(double, x, "decoder"))
    assert not torch.allclose(gradients(plain, x, "encoder"), gradients(double, x, "encoder"), rtol=0.01)


def test_the_doubly_reparameterized_gradient_is_that_of_the_bound_on_average_and_less_noisy():
    vae, _ = linear_gaussian(wider=0.7)
    x = images(1, (1, 2, 3), 5)
    vae.samples, found = 5, {}
    for bound in (ImportanceWeighted(), DoublyReparameterized()):
        vae.bound, each = bound, []
        for seed in range(40):
            loss = seeded(vae, x.expand(500, -1, -1, -1), seed)["loss"]
            each.append(torch.autograd.grad(loss, vae.encoder.output.bias)[0])
        found[type(bound)] = torch.stack(each)
    plain, double = found[ImportanceWeighted], found[DoublyReparameterized]
    error = ((plain.var(0) + double.var(0)) / 40).sqrt()
    assert ((plain.mean(0) - double.mean(0)).abs() < 4 * error).all()
    assert (double.mean(0).abs() > 10 * error)[3:].all()  # of lv, which is too wide
    assert (double.var(0) < plain.var(0)).all()


def test_the_doubly_reparameterized_gradient_vanishes_at_the_exact_posterior():
    vae, _ = linear_gaussian()
    x = images(6, (1, 2, 3), 5)
    vae.samples, sizes = 4, []
    for vae.bound in (ImportanceWeighted(), DoublyReparameterized()):
        sizes.append(gradients(vae, x, "encoder").abs().max())
    assert sizes[1] < 1e-10 < 1e-3 < sizes[0]


def layer(b: float = 0.8, c: float = 0.6, wrong: float = 0.0) -> StochasticLayer:
    """z = b h + c noise for one number each; q(h|z) is exact, or wider by `wrong` in log variance."""
    linear = partial(MLP, hidden=())
    made = StochasticLayer(1, SHAPE, latent=1, encoder=linear, decoder=linear).double()
    variance = 1 / (1 + b**2 / c**2)
    with torch.no_grad():
        made.decoder.output.weight.copy_(torch.tensor([[b], [0.0]]))
        made.decoder.output.bias.copy_(torch.tensor([0.0, 2 * math.log(c)]))
        made.encoder.output.weight.copy_(torch.tensor([[variance * b / c**2], [0.0]]))
        made.encoder.output.bias.copy_(torch.tensor([0.0, math.log(variance) + wrong]))
    return made


def test_a_layers_log_prob_is_that_of_z_where_its_posterior_is_exact():
    z = torch.linspace(-3, 3, 12, dtype=torch.float64).view(3, 4, 1)
    exact = Normal(0.0, 1.0).log_prob(z).squeeze(-1)  # 0.8^2 + 0.6^2 = 1
    torch.testing.assert_close(layer().log_prob(z, None), exact)


def test_a_layers_log_prob_is_p_on_average_whatever_its_posterior():
    torch.manual_seed(2)
    z = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    estimates = layer(wrong=0.5).log_prob(z.expand(40_000, 2, 1), None)
    assert estimates.std(0).min() > 0.1
    torch.testing.assert_close(
        estimates.exp().mean(0).log(), Normal(0.0, 1.0).log_prob(z)[:, 0], rtol=0, atol=0.01
    )


def test_a_layers_samples_have_its_variance():
    torch.manual_seed(3)
    z = layer(b=2.0).sample(torch.zeros(50_000, 1, dtype=torch.float64), None)
    assert z.var().item() == pytest.approx(4.36, rel=0.03)
    assert (layer().sample(torch.zeros(5, 1, dtype=torch.float64), None, temperature=0.0) == 0).all()


def test_two_layers_come_to_the_log_p_of_one():
    """A layer whose p(z) is N(0, 1) changes no p(x), only the bound."""
    torch.manual_seed(4)
    one = VAE(shape=SHAPE, levels=2, latent=1, **DENSE).double()
    two = VAE(shape=SHAPE, levels=2, latent=1, prior=lambda dim, shape: layer(wrong=0.3), **DENSE).double()
    two.load_state_dict(one.state_dict(), strict=False)
    x = images(8, SHAPE, 2)
    bounds = [vae.log_prob(x, samples=4000) for vae in (one, two)]
    torch.testing.assert_close(*bounds, rtol=0, atol=0.05)


def test_layers_can_be_stacked():
    torch.manual_seed(5)
    top = partial(StochasticLayer, latent=2)
    vae = small(prior=partial(StochasticLayer, latent=4, prior=top), samples=3, bound=ImportanceWeighted())
    vae.loss(images(4, SHAPE, 2))["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())
    assert vae.sample(2).shape == (2, *SHAPE)


def test_a_mixture_is_that_of_torch_distributions(monkeypatch):
    torch.manual_seed(6)
    prior = GaussianMixture(3, SHAPE, components=4).double()
    with torch.no_grad():
        prior.logits.normal_()
        prior.lv.normal_()
    parts = Independent(Normal(prior.mean, (prior.lv / 2).exp()), 1)
    truth = MixtureSameFamily(Categorical(logits=prior.logits), parts)
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z, None), truth.log_prob(z))
    monkeypatch.setattr(priors, "AT_ONCE", 40)  # three rows at a time
    torch.testing.assert_close(prior.log_prob(z, None), truth.log_prob(z))
    draws = prior.sample(torch.zeros(60_000, 3, dtype=torch.float64), None)
    torch.testing.assert_close(draws.mean(0), truth.mean, rtol=0, atol=0.04)
    torch.testing.assert_close(draws.var(0), truth.variance, rtol=0.05, atol=0)


def test_a_vamp_prior_is_the_mean_of_the_posteriors_of_its_inputs():
    vae = small(prior=partial(VampPrior, components=5))
    with torch.no_grad():
        vae.prior.inputs.mul_(1.5).sub_(0.2)  # some are beyond what is clamped
    mu, lv = (part.detach() for part in vae._q(vae.prior.inputs.clamp(0, 1)))
    z = torch.randn(7, 3, dtype=torch.float64)
    each = torch.stack([Normal(m, (v / 2).exp()).log_prob(z).sum(1).exp() for m, v in zip(mu, lv)])
    torch.testing.assert_close(vae.prior.log_prob(z, vae._q), each.mean(0).log())
    cold = vae.prior.sample(torch.zeros(30, 3, dtype=torch.float64), vae._q, temperature=0.0)
    assert ((cold[:, None] - mu).abs().amax(2).amin(1) < 1e-12).all()


def test_a_vamp_prior_begins_at_training_images():
    vae = small(prior=partial(VampPrior, components=5), init_bias=False)
    x = images(8, SHAPE, 2)
    vae.prepare([{"x": x[:3]}, {"x": x[3:]}])
    assert torch.equal(vae.prior.inputs, x[:5].double())
    vae.prepare([{"x": x[:2]}])
    assert torch.equal(vae.prior.inputs, x[[0, 1, 0, 1, 0]].double())


def test_a_vamp_priors_images_learn_though_they_begin_in_black_and_white():
    vae, x = small(prior=partial(VampPrior, components=5)), images(8, SHAPE, 2)
    vae.prepare([{"x": x}])
    before = vae.prior.inputs.clone()
    optimizer = torch.optim.SGD(vae.prior.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        seeded(vae, x)["loss"].backward()
        assert (vae.prior.inputs.grad != 0).double().mean() > 0.9
        optimizer.step()
    inside = (before - vae.prior.images()).abs() > 0
    assert 0.2 < inside.double().mean() < 0.8  # others would leave [0, 1]


@pytest.mark.parametrize("prior", [GaussianMixture, partial(VampPrior, components=4), StochasticLayer])
def test_an_estimated_kl_is_that_of_the_same_draws(prior):
    vae, x = small(prior=prior, beta=3.0), images(6, SHAPE, 2)
    terms = seeded(vae, x)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 3 * terms["kl"])
    torch.testing.assert_close(terms["nats"], terms["reconstruction"] + terms["kl"])
    torch.manual_seed(1)
    torch.testing.assert_close(terms["nats"], -vae.log_weights(x, 1).mean())
    terms["loss"].backward()
    assert all(p.grad is not None for p in vae.prior.parameters())
    told = vae.summarize(vae.statistics(x))
    above = {"active_units_2"} if prior is StochasticLayer else set()
    assert set(told) == {"active_units", "kl_estimate"} | above


def test_active_units_are_told_of_each_layer():
    vae, x = small(prior=partial(StochasticLayer, latent=4)), images(30, SHAPE, 2)
    with torch.no_grad():
        vae.prior.encoder.output.weight.mul_(20.0)
        vae.prior.encoder.output.weight[1] = 0.0
    one, two = vae.statistics(x[:10]), vae.statistics(x[10:])
    told = vae.summarize({name: one[name] + two[name] for name in one})
    mu = vae.encode(x)
    assert told["active_units"] == (mu.var(0, correction=0) > 0.01).sum() > 0
    above = vae.prior.posterior(mu)[0].var(0, correction=0) > 0.01
    assert told["active_units_2"] == above.sum() > 0
    assert not above[1]


def test_an_estimated_kl_comes_to_the_closed_form():
    class Estimated(nn.Module):
        def __init__(self, dim, shape):
            super().__init__()
            self.normal = StandardNormal(dim, shape)

        def log_prob(self, z, encoder):
            return self.normal.log_prob(z, encoder)

    x = images(3, SHAPE, 2)
    exact, estimated = small().loss(x)["kl"], small(prior=Estimated, samples=20_000).loss(x)["kl"]
    torch.testing.assert_close(exact, estimated, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples=0"),
        ({"bound": ImportanceWeighted(), "beta": 2.0}, "beta=2.0 .* bound=null"),
        ({"bound": DoublyReparameterized(), "free_bits": 0.1}, "free_bits=0.1"),
        ({"prior": GaussianMixture, "free_bits": 0.1}, "GaussianMixture .* prior=normal"),
        ({"prior": partial(StochasticLayer, prior=VampPrior)}, "VampPrior is of images"),
    ],
)
def test_what_cannot_go_together_is_refused_with_a_cure(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_an_unused_latent_is_told_in_words():
    vae, x = small(), images(20, SHAPE, 2)
    assert vae.unwell(vae.summarize(vae.statistics(x))) == []
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
    (words,) = vae.unwell(vae.summarize(vae.statistics(x)))
    assert words.startswith("active_units=0 of 3: the decoder leaves the latent unused; try")
