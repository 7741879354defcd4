"""The VAE: its bound is what the paper says it is, on models whose likelihood is known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import zoo.models.vae as module
from zoo.models import VAE
from zoo.nn import (
    MLP,
    Bernoulli,
    Bilinear,
    Categorical,
    ConvDecoder,
    ConvEncoder,
    DiscretizedLogisticMixture,
    FieldDecoder,
    FieldEncoder,
    Nearest,
    Shuffle,
    Transposed,
)
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.types import Codec, Density, Measured, Prepared, Sampler, Space, Trainable, Unfit, can

CONV = {"encoder": partial(ConvEncoder, widths=(4, 6, 8)), "decoder": partial(ConvDecoder, widths=(4, 6, 8))}
DENSE = {"encoder": partial(MLP, hidden=(24,)), "decoder": partial(MLP, hidden=(24, 24), activation=nn.Tanh)}
SHAPES = [((1, 8, 8), 2), ((1, 8, 8), 17), ((1, 28, 28), 2), ((3, 32, 32), 256)]


def images(n: int, shape: tuple[int, ...], levels: int) -> torch.Tensor:
    return torch.randint(levels, (n, *shape), dtype=torch.uint8)


class Gaussian:
    """N(parameters, scale^2), for tests only: x / (levels - 1) is scored as a real number."""

    def __init__(self, levels: int, scale: float) -> None:
        self.levels, self.scale = levels, scale

    def features(self, shape):
        return shape[0]

    def log_prob(self, parameters, x):
        return Normal(parameters, self.scale).log_prob(x / (self.levels - 1)).sum((-3, -2, -1))

    def mode(self, parameters):
        return (parameters * (self.levels - 1)).round()

    sample = mode


def linear_gaussian(*, wider: float = 0.0) -> tuple[VAE, MultivariateNormal]:
    """A VAE with p(x|z) = N(A z + b, s^2) and its exact posterior (or one `wider` in log variance); its p(x).

    The columns of A are orthogonal, so that the posterior is diagonal: precision 1 + |a_d|^2 / s^2.
    """
    torch.manual_seed(0)
    scale, latent, shape = 0.3, 3, (1, 2, 3)
    vae = VAE(
        shape=shape,
        levels=5,
        latent=latent,
        encoder=partial(MLP, hidden=()),
        decoder=partial(MLP, hidden=()),
        likelihood=partial(Gaussian, scale=scale),
    ).double()
    A = torch.linalg.qr(torch.randn(6, latent, dtype=torch.float64))[0] * torch.tensor([0.9, 0.5, 0.2])
    b = torch.rand(6, dtype=torch.float64)
    precision = 1 + A.square().sum(0) / scale**2
    to_mean = A.T / scale**2 / precision[:, None]
    with torch.no_grad():
        vae.decoder.output.weight.copy_(A)
        vae.decoder.output.bias.copy_(b)
        vae.encoder.output.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        vae.encoder.output.bias.copy_(torch.cat([-to_mean @ b, wider - precision.log()]))
    return vae, MultivariateNormal(b, A @ A.T + scale**2 * torch.eye(6, dtype=torch.float64))


def test_the_bound_is_log_p_where_the_posterior_is_exact():
    vae, truth = linear_gaussian()
    x = images(16, (1, 2, 3), 5)
    expected = truth.log_prob(x.flatten(1).double() / 4)
    for samples in (1, 7):
        torch.testing.assert_close(vae.log_prob(x, samples=samples), expected, rtol=0, atol=1e-10)


def test_the_loss_is_minus_log_p_on_average_where_the_posterior_is_exact():
    vae, truth = linear_gaussian()
    x = images(1, (1, 2, 3), 5)
    expected = -truth.log_prob(x.flatten(1).double() / 4)
    nats = vae.loss(x.expand(40_000, -1, -1, -1))["nats"]
    torch.testing.assert_close(nats, expected.squeeze(), rtol=0, atol=0.03)


def test_more_samples_come_to_log_p_from_below():
    vae, truth = linear_gaussian(wider=1.0)
    x = images(64, (1, 2, 3), 5)
    expected = truth.log_prob(x.flatten(1).double() / 4).mean()
    gaps = [(expected - vae.log_prob(x, samples=samples).mean()).item() for samples in (1, 10, 100, 5000)]
    assert gaps[0] > gaps[1] > gaps[2] > abs(gaps[3])
    assert gaps[0] > 0.5
    assert abs(gaps[3]) < 0.01


def test_the_bound_grows_with_samples_over_subsets_of_the_same_draws():
    torch.manual_seed(1)
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE).double()
    weights = vae.log_weights(images(8, (1, 8, 8), 2), samples=64)
    bounds = [
        (weights.reshape(64 // k, k, 8).logsumexp(1) - math.log(k)).mean(0) for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    for fewer, more in pairwise(bounds):
        assert (fewer < more).all()


def test_log_prob_does_not_depend_on_how_many_draws_are_decoded_together(monkeypatch):
    torch.manual_seed(2)
    vae = VAE(shape=(1, 8, 8), levels=17, latent=4, **DENSE).double()
    x, values = images(5, (1, 8, 8), 17), []
    for together in (1, 7, 10_000):
        monkeypatch.setattr(module, "AT_ONCE", together * 5 * 17 * 64)
        torch.manual_seed(3)
        values.append(vae.log_prob(x, samples=50))
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(values[0], values[2], rtol=1e-12, atol=0)


def test_log_prob_is_the_mean_of_the_weights_and_at_one_sample_a_weight():
    torch.manual_seed(4)
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE).double()
    x = images(5, (1, 8, 8), 2)
    torch.manual_seed(5)
    value = vae.log_prob(x, samples=1)
    torch.manual_seed(5)
    torch.testing.assert_close(value, vae.log_weights(x)[0])

    with torch.no_grad():
        mu, lv = vae.posterior(x)
        torch.manual_seed(5)
        z = mu + (lv / 2).exp() * torch.randn_like(mu)
        prior, posterior = Normal(torch.zeros_like(mu), 1.0), Normal(mu, (lv / 2).exp())
        expected = Bernoulli(2).log_prob(vae.decoder(z), x) + (prior.log_prob(z) - posterior.log_prob(z)).sum(
            1
        )
    torch.testing.assert_close(value, expected)


def test_the_kl_is_that_of_torch_distributions():
    torch.manual_seed(6)
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE).double()
    x = images(9, (1, 8, 8), 2)
    mu, lv = vae.posterior(x)
    expected = kl_divergence(Normal(mu, (lv / 2).exp()), Normal(torch.zeros_like(mu), 1.0)).sum(1).mean()
    torch.testing.assert_close(vae.loss(x)["kl"], expected)


@pytest.mark.parametrize("options", [{}, {"beta": 4.0}, {"free_bits": 0.5}, {"beta": 0.1, "free_bits": 2.0}])
def test_nats_are_reconstruction_plus_kl_whatever_is_minimised(options):
    torch.manual_seed(7)
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE, **options).double()
    terms = vae.loss(images(9, (1, 8, 8), 2))
    torch.testing.assert_close(terms["nats"], terms["reconstruction"] + terms["kl"])
    assert (terms["loss"] == terms["nats"]).item() is (options == {})


def test_beta_weighs_the_kl_only():
    torch.manual_seed(8)
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE).double()
    x, decoders, encoders = images(9, (1, 8, 8), 2), [], []
    for beta in (0.0, 1.0, 5.0):
        vae.beta = beta
        torch.manual_seed(9)
        loss = vae.loss(x)["loss"]
        of = torch.autograd.grad(loss, [vae.decoder.output.weight, vae.encoder.output.weight])
        decoders.append(of[0])
        encoders.append(of[1])
    assert torch.equal(decoders[0], decoders[1])
    assert torch.equal(decoders[0], decoders[2])
    # linear in beta: the encoder's gradient is that of the reconstruction plus beta times that of the KL
    torch.testing.assert_close(encoders[2] - encoders[0], 5 * (encoders[1] - encoders[0]))
    assert (encoders[1] - encoders[0]).abs().max() > 1e-6


def test_free_bits_are_a_floor_under_the_mean_of_the_batch_by_dimension():
    vae = VAE(shape=(1, 1, 2), levels=3, latent=2, encoder=partial(MLP, hidden=()), free_bits=0.6).double()
    with torch.no_grad():
        vae.encoder.output.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
        vae.encoder.output.bias.zero_()
    x = torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8).reshape(2, 1, 1, 2)
    # mu is (0, 1/2) and (2, 0) with unit variance: KL_1 = (0 + 4/2) / 2 = 1, KL_2 = (1/8 + 0) / 2 = 1/16
    terms = vae.loss(x)
    torch.testing.assert_close(terms["kl"].item(), 1 + 1 / 16)
    torch.testing.assert_close((terms["loss"] - terms["reconstruction"]).item(), 1 + 0.6)
    slope = torch.autograd.grad(terms["loss"] - terms["reconstruction"], vae.encoder.output.bias)[0]
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("networks", [DENSE, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize(("shape", "levels"), SHAPES)
def test_a_vae_has_all_its_abilities_on_every_shape(networks, shape, levels):
    torch.manual_seed(10)
    vae = VAE(shape=shape, levels=levels, latent=5, **networks)
    x = images(6, shape, levels)
    for contract in (Trainable, Sampler, Density, Codec, Prepared, Measured):
        assert can(vae, contract)
    vae.prepare([{"x": x}])
    vae.loss(x)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in vae.parameters())
    assert vae.log_prob(x, samples=3).shape == (6,)
    z = vae.encode(x)
    assert z.shape == (6, *vae.latent.shape)
    assert vae.latent == Space((5,), None)
    for image in (vae.decode(z), vae.reconstruct(x), vae.sample(6), vae.sample(6, temperature=0.0)):
        assert image.shape == x.shape
        assert image.dtype == x.dtype
        assert int(image.max()) < levels


@pytest.mark.parametrize("networks", [DENSE, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("policy", ["full", "sqrt", "selective", 2])
def test_gradient_checkpointing_changes_no_gradient(networks, policy):
    vae, x, found = VAE(shape=(1, 8, 8), levels=2, latent=5, **networks), images(6, (1, 8, 8), 2), []
    assert len(vae.blocks) > 1
    for way in ("none", policy):
        checkpoint_blocks(vae, way)
        torch.manual_seed(17)
        found.append(torch.autograd.grad(vae.loss(x)["loss"], list(vae.parameters())))
    for plain, recomputed in zip(*found):
        torch.testing.assert_close(plain, recomputed)


def test_a_cold_sample_has_one_latent_and_a_warm_one_many():
    torch.manual_seed(11)
    vae = VAE(shape=(1, 2, 3), levels=5, latent=2, likelihood=partial(Gaussian, scale=1.0))
    assert len(vae.sample(20, temperature=0.0).unique(dim=0)) == 1
    assert len(vae.sample(20, temperature=30.0).unique(dim=0)) > 1


@pytest.mark.parametrize("networks", [DENSE, CONV], ids=["dense", "conv"])
def test_the_output_starts_at_the_mean_of_the_data(networks):
    torch.manual_seed(12)
    p = torch.rand(1, 8, 8)
    batches = [{"x": torch.bernoulli(p.expand(n, -1, -1, -1)).to(torch.uint8)} for n in (300, 300, 37)]
    vae = VAE(shape=(1, 8, 8), levels=2, **networks)
    vae.prepare(batches)
    mean = torch.cat([batch["x"] for batch in batches]).float().mean(0)
    expected = mean.flatten() if networks is DENSE else mean.mean((1, 2))
    torch.testing.assert_close(vae.decoder.output.bias.sigmoid(), expected)


@pytest.mark.parametrize("upsample", [Nearest, Bilinear, Transposed, Shuffle])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 9, 13)])
def test_every_upsampling_makes_every_size_and_has_gradients(upsample, shape):
    torch.manual_seed(18)
    decoder = ConvDecoder((5,), shape, widths=(4, 6, 8), upsample=upsample).double()
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    x = decoder(z)
    assert x.shape == (3, *shape)
    found = torch.autograd.grad(x.square().sum(), [z, *decoder.parameters()])
    assert all(one.isfinite().all() and one.any() for one in found)
    if upsample is not Nearest:
        assert len(x[0, 0].unique()) > 0.5 * x[0, 0].numel()


@pytest.mark.parametrize("upsample", [Nearest, Bilinear, Transposed, Shuffle])
def test_every_upsampling_can_start_at_the_mean_of_the_data(upsample):
    torch.manual_seed(19)
    networks = CONV | {"decoder": partial(ConvDecoder, widths=(4, 6), upsample=upsample)}
    vae = VAE(shape=(2, 8, 8), levels=2, **networks)
    x = torch.cat([torch.ones(20, 1, 8, 8), images(20, (1, 8, 8), 2)], 1).to(torch.uint8)
    vae.prepare([{"x": x}])
    with torch.no_grad():
        for weight in vae.decoder.output.parameters():
            if weight.dim() > 1:
                weight.zero_()
    means = vae.decoder(torch.randn(3, 40)).sigmoid().mean((0, 2, 3))
    expected = torch.tensor([0.999, x[:, 1].float().mean()])
    torch.testing.assert_close(means, expected)


def test_nothing_is_prepared_where_it_is_not_asked_for():
    for options in ({"levels": 2, "init_bias": False}, {"levels": 17}):
        vae = VAE(shape=(1, 8, 8), **options)
        before = vae.decoder.output.bias.clone()
        vae.prepare([{"x": images(10, (1, 8, 8), 2)}])
        assert torch.equal(vae.decoder.output.bias, before)


def test_networks_of_fields_are_refused_in_words():
    for networks in ({"encoder": FieldEncoder}, {"decoder": FieldDecoder}):
        with pytest.raises(ValueError, match=r"one vector for each image; take encoder=mlp or conv"):
            VAE(shape=(1, 8, 8), levels=2, **networks)


def test_active_units_are_those_whose_mean_moves():
    torch.manual_seed(13)
    vae, _ = linear_gaussian()
    with torch.no_grad():
        vae.encoder.output.weight[1] = 0.0
        vae.encoder.output.bias[1], vae.encoder.output.bias[4] = 3.0, 0.0
    x = images(64, (1, 2, 3), 5)
    sums = vae.statistics(x[:40])
    for key, value in vae.statistics(x[40:]).items():
        sums[key] = sums[key] + value
    found = vae.summarize(sums)
    moves = vae.encode(x).var(0, correction=0) > 0.01
    assert not moves[1]
    assert found["active_units"] == moves.sum() > 0
    torch.testing.assert_close(found["kl_max_dim"], 4.5, rtol=0, atol=1e-10)  # of N(3, 1) from N(0, 1)
    assert found["kl_min_dim"] < found["kl_max_dim"]


@pytest.mark.parametrize("networks", [DENSE, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize(("shape", "levels"), SHAPES)
def test_half_precision_is_finite(networks, shape, levels):
    torch.manual_seed(14)
    vae = VAE(shape=shape, levels=levels, **networks)
    x = images(4, shape, levels)
    torch.manual_seed(16)
    exact = vae.log_prob(x, samples=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(16)
        half = vae.log_prob(x, samples=2)
        terms = vae.loss(x)
    terms["loss"].backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    assert {value.dtype for value in terms.values()} == {torch.float32}
    torch.testing.assert_close(half, exact, rtol=0.01, atol=0)


def test_a_wild_encoder_gives_finite_numbers():
    vae = VAE(shape=(1, 8, 8), levels=2, latent=4, **DENSE)
    with torch.no_grad():
        vae.encoder.output.bias.copy_(torch.tensor([0.0] * 4 + [-1e6, -100.0, 100.0, 1e6]))
    terms = vae.loss(images(4, (1, 8, 8), 2))
    assert all(value.isfinite() for value in terms.values())


def test_the_usual_likelihood_is_taken_where_none_is_given():
    kinds = [type(VAE(shape=(1, 8, 8), levels=levels).likelihood) for levels in (2, 8, 256)]
    assert kinds == [Bernoulli, Categorical, DiscretizedLogisticMixture]
    given = partial(DiscretizedLogisticMixture, components=3)
    assert VAE(shape=(1, 8, 8), levels=17, likelihood=given).likelihood.components == 3


def test_data_that_are_no_images_of_integers_are_refused_in_a_sentence():
    for shape, levels in [((256,), 65), ((2,), None), ((3, 8, 8), None)]:
        with pytest.raises(Unfit, match="images of integers") as refused:
            VAE(shape=shape, levels=levels)
        assert not refused.value.fits(Space(shape, levels))
        assert refused.value.fits(Space((1, 8, 8), 2))


def test_images_too_small_for_the_stages_are_refused_with_a_cure():
    with pytest.raises(Unfit, match="fewer widths") as refused:
        VAE(shape=(1, 8, 6), levels=2, **CONV)
    assert refused.value.fits(Space((1, 8, 8), 2))


def test_a_tiny_vae_learns_which_of_four_patterns_it_sees():
    torch.manual_seed(15)
    patterns = (torch.rand(4, 1, 8, 8) < 0.5).to(torch.uint8)

    def draw(n: int) -> torch.Tensor:
        flips = (torch.rand(n, 1, 8, 8) < 0.05).to(torch.uint8)
        return patterns[torch.randint(4, (n,))] ^ flips

    vae = VAE(shape=(1, 8, 8), levels=2, latent=2, **DENSE)
    vae.prepare([{"x": draw(500)}])
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        vae.loss(draw(64))["loss"].backward()
        optimizer.step()
    x = draw(1000)
    nats = -vae.log_prob(x, samples=50).mean().item()
    entropy = math.log(4) - 64 * (0.05 * math.log(0.05) + 0.95 * math.log(0.95))  # 14.1 nats
    assert entropy - 0.7 < nats < entropy + 1.6
    assert (vae.reconstruct(x) == x).float().mean() > 0.94
