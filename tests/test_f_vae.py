"""The f-VAE: without its flows it is a VAE, and with them its bound is one on a distribution that sums to one."""

import math
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from zoo.evaluation.likelihood import likelihood
from zoo.models import FVAE
from zoo.nn import (
    MLP,
    ActNorm,
    Additive,
    ConvDecoder,
    ConvEncoder,
    ResidualNet,
    Spline,
    VariationalDequantization,
    checkpoint_blocks,
)
from zoo.types import Codec, Density, Measured, Prepared, Sampler, Space, Trainable, Unfit, can

DENSE = partial(MLP, hidden=(8,))
TINY = partial(ResidualNet, hidden=4, depth=1)
LEARNED = partial(VariationalDequantization, couplings=2, network=TINY)
CONV = {"encoder": partial(ConvEncoder, widths=(4,)), "decoder": partial(ConvDecoder, widths=(4,))}
SMALL = {
    "all flows": {},
    "convolutions": CONV,
    "additive": {"coupling": Additive},
    "splines": {"coupling": partial(Spline, bins=4)},
    "learned noise": {"dequantization": LEARNED},
    "prior only": {"posterior": 0, "noise": 0},
    "no flow": {"prior": 0, "posterior": 0, "noise": 0},
}


def images(n: int, shape: tuple[int, ...] = (1, 4, 4), levels: int = 17) -> Tensor:
    return torch.randint(levels, (n, *shape), dtype=torch.uint8)


def made(shape: tuple[int, ...] = (1, 4, 4), levels: int = 17, **options) -> FVAE:
    torch.manual_seed(0)
    sizes = {"latent": 3, "prior": 2, "posterior": 2, "noise": 2, "noise_network": TINY}
    networks = {"encoder": DENSE, "decoder": DENSE, "network": DENSE}
    return FVAE(shape=shape, levels=levels, **(sizes | networks | options)).double()


def small(name: str, shape: tuple[int, ...] = (1, 4, 4), levels: int = 17) -> FVAE:
    """A prepared model, shaken away from where it starts."""
    model = made(shape, levels, **SMALL[name])
    torch.manual_seed(1)
    model.prepare([{"x": images(30, shape, levels)} for _ in range(3)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def vae_terms(model: FVAE, x: Tensor, u: Tensor, e: Tensor) -> tuple[Normal, Tensor, Tensor]:
    """q(z|x), z, and log p(v|z) of a plain Gaussian VAE with the same networks, in torch's own words."""
    h = 2 * (x + u) / model.levels - 1
    D = e.shape[1]
    mu, lv = model.encoder(h)[:, : 2 * D].chunk(2, 1)
    q = Normal(mu, (lv / 2).exp())
    z = mu + q.stddev * e
    log_p = Normal(model.decoder(z), model.log_sigma.exp()).log_prob(h).flatten(1).sum(1)
    return q, z, log_p + h[0].numel() * math.log(2 / model.levels)


@pytest.mark.parametrize("name", ["no flow", "all flows", "splines"])
def test_where_flows_are_identities_each_draw_is_a_gaussian_vaes(name, monkeypatch):
    model, x = made(**SMALL[name]), images(6)  # couplings start as identities, matrices as rotations
    u, e = torch.rand(6, 1, 4, 4).double(), torch.randn(6, 3).double()
    monkeypatch.setattr(torch, "rand_like", lambda x: u)
    monkeypatch.setattr(torch, "randn_like", lambda x: e)
    with torch.no_grad():
        q, z, log_p = vae_terms(model, x, u, e)
    expected = log_p + Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
    rounding = 1e-10 if name == "no flow" else 1e-5  # a random rotation is one to single precision
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=rounding)


def test_without_flows_the_kl_is_on_average_that_of_two_gaussians():
    model, x = made(prior=0, posterior=0, noise=0), images(1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(2)
        many = x.expand(10_000, -1, -1, -1)
        kl = model.loss(many)["kl"]
        u = torch.rand(10_000, 1, 4, 4).double()
        q, _, _ = vae_terms(model, many, u, torch.zeros(10_000, 3).double())
    expected = kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
    assert expected > 0.5
    torch.testing.assert_close(kl, expected, rtol=0, atol=0.06)


def linear(prior: int, **options) -> tuple[FVAE, MultivariateNormal]:
    """A linear decoder of orthogonal columns, its exact posterior, and p(h); F, if any, is one matrix and norm."""
    linear = partial(MLP, hidden=())
    model = made((1, 2, 2), 5, encoder=linear, decoder=linear, prior=prior, posterior=0, noise=0, **options)
    torch.manual_seed(3)
    variances = torch.ones(3).double()
    with torch.no_grad():
        sigma = torch.tensor(0.3).double()
        model.log_sigma.fill_(sigma.log())
        A = torch.linalg.qr(torch.randn(4, 3).double())[0] * torch.tensor([0.9, 0.5, 0.2])
        b = torch.rand(4).double()
        if prior:  # n = W diag(e^s) z, so that z has the variances e^(-2 s)
            scale = model.prior.layers[0].layers[0].norm.log_scale
            scale.copy_(torch.tensor([0.5, -0.3, 0.1]))
            variances = (-2 * scale).exp()
        precision = 1 / variances + A.square().sum(0) / sigma**2
        to_mean = A.T / sigma**2 / precision[:, None]
        model.decoder.output.weight.copy_(A)
        model.decoder.output.bias.copy_(b)
        model.encoder.output.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        model.encoder.output.bias.copy_(torch.cat([-to_mean @ b, -precision.log()]))
    return model, MultivariateNormal(b, A * variances @ A.T + sigma**2 * torch.eye(4).double())


@pytest.mark.parametrize("prior", [0, 1])
def test_where_the_posterior_is_exact_so_is_the_density(prior, monkeypatch):
    model, truth = linear(prior)
    x, u = images(16, (1, 2, 2), 5), torch.rand(16, 1, 2, 2).double()
    monkeypatch.setattr(torch, "rand_like", lambda x: u)
    expected = truth.log_prob((2 * (x + u) / 5 - 1).flatten(1)) + 4 * math.log(2 / 5)
    for samples in (1, 3):
        torch.testing.assert_close(model.log_prob(x, samples=samples), expected, rtol=0, atol=1e-5)


def pixel() -> FVAE:
    """One pixel, two latents, every flow moved."""
    model = made((1, 1, 1), 4, latent=2)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # weights p / q of a narrow q take long to come to their mean
            by = 0.08 if name.startswith(("encoder", "posterior")) else 0.25
            parameter.add_(by * torch.randn_like(parameter))
        model.encoder.output.bias[2:4] = 0.3
        model.log_sigma.fill_(-0.7)
    return model


WIDTH = 1 / 4
PLACES = torch.arange(-12, 16, WIDTH).double() + WIDTH / 2


@pytest.fixture(scope="module")
def density() -> Tensor:
    """p(v) of the pixel at PLACES, each by a sum over a grid of z."""
    model = pixel()
    side = torch.linspace(-6, 6, 25).double()
    z = torch.cartesian_prod(side, side)
    found = []
    with torch.no_grad():
        n, log_det = model.prior(z)
        log_p_z = model.base.log_prob(n) + log_det + 2 * math.log(side[1] - side[0])
        mean = model._decoded(z)
        for v in PLACES:
            residual = (2 * v / model.levels - 1 - mean) * (-model.log_sigma).exp()
            n, log_det = model.noise(torch.cat([mean, residual], 1))
            log_p = model.base.log_prob(n[:, 1:].flatten(1)) + log_det - model.log_sigma.sum()
            found.append((log_p + log_p_z).exp().sum() * 2 / model.levels)
    return torch.stack(found)


def test_a_pixels_density_is_one_and_the_bound_comes_to_its_levels_mass_from_below(density):
    torch.testing.assert_close(density.sum() * WIDTH, torch.tensor(1.0).double(), rtol=0, atol=1e-3)
    mass = density[(PLACES >= 0) & (PLACES < 4)].view(4, -1).mean(1)
    assert 0.2 < mass.sum() < 1
    x = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    torch.manual_seed(5)
    draws = pixel().log_prob(x.repeat(10_000, 1, 1, 1)).view(10_000, 4)
    torch.testing.assert_close(draws.exp().mean(0), mass, rtol=0.05, atol=0)
    assert (draws.mean(0) < mass.log()).all()


def test_samples_are_drawn_from_the_distribution_whose_bound_is_told(density):
    torch.manual_seed(6)
    drawn = pixel().sample(10_000).flatten().bincount(minlength=4) / 10_000
    level = PLACES.floor().clamp(0, 3).long()  # what lies outside is clamped
    expected = torch.zeros(4).double().index_add(0, level, density * WIDTH)
    torch.testing.assert_close(drawn.double(), expected, rtol=0, atol=0.02)


def test_the_bound_grows_with_samples_over_subsets_of_the_same_draws():
    model = small("all flows")
    torch.manual_seed(7)
    weights = torch.stack([model.log_prob(images(1).expand(8, -1, -1, -1)) for _ in range(32)])
    bounds = [
        (weights.reshape(32 // k, k, 8).logsumexp(1) - math.log(k)).mean(0) for k in (1, 2, 4, 8, 16, 32)
    ]
    for fewer, more in pairwise(bounds):
        assert (fewer < more).all()
    x = images(8)
    torch.manual_seed(8)
    each = torch.stack([model.log_prob(x) for _ in range(5)])
    torch.manual_seed(8)
    together = model.log_prob(x, samples=5)
    torch.testing.assert_close(together, each.logsumexp(0) - math.log(5))
    with pytest.raises(ValueError, match="samples=0"):
        model.log_prob(x, samples=0)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_and_the_terms_add_up(name):
    model = small(name)
    terms = model.loss(images(8))
    torch.testing.assert_close(terms["nats"], terms["reconstruction"] + terms["kl"] + terms["dequantization"])
    terms["loss"].backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.any(), part


@pytest.mark.parametrize(("shape", "levels"), [((3, 4, 6), 256), ((1, 6, 4), 2)])
@pytest.mark.parametrize("name", SMALL)
def test_an_f_vae_has_all_its_abilities_and_samples_are_of_the_datas_kind(name, shape, levels):
    model, x = small(name, shape, levels).float(), images(5, shape, levels)
    for contract in (Trainable, Sampler, Density, Codec, Prepared, Measured):
        assert can(model, contract)
    for options in ({}, {"temperature": 0.7}, {"noise": 0.0}, {"temperature": 0.0, "noise": 0.0}):
        drawn = model.sample(5, **options)
        assert (drawn.shape, drawn.dtype) == ((5, *shape), torch.uint8)
        assert int(drawn.max()) < levels
    assert len(model.sample(5, temperature=0.0, noise=0.0).unique(dim=0)) == 1
    z = model.encode(x)
    assert z.shape == (5, *model.latent.shape)
    assert torch.equal(model.decode(z), model.reconstruct(x))
    told = model.summarize(model.statistics(x))
    assert told["inverse_error"] < 1e-4
    assert 0 <= told["active_units"] <= 3
    facts = {"unit": "bits/dim", "levels": levels, "shape": shape}
    number = likelihood(model, [{"x": x}], facts=facts, split="test")[0]
    assert (number["name"], number["kind"]) == ("bits_per_dim", "lower bound")
    assert model.protocol["dequantization"] in ("uniform", "variational")


def test_what_is_prepared_is_measured_on_the_first_examples_only():
    left = iter([{"x": images(300)} for _ in range(4)])
    model = made()
    model.prepare(left)
    assert len(list(left)) == 2
    found: list[Tensor] = []
    norms = [part for part in model.prior.modules() if isinstance(part, ActNorm)]
    norms[0].register_forward_hook(lambda module, args, out: found.append(out[0]))
    residuals: list[Tensor] = []
    model.noise.register_forward_hook(lambda module, args, out: residuals.append(args[0][:, 1:]))
    x = images(2000)
    v = x.double() + 0.5
    z, _ = model._posterior(*model._encoded(v), torch.randn(2000, 3).double())
    norms[0](z)
    torch.testing.assert_close(found[0].mean(0), torch.zeros(3).double(), rtol=0, atol=0.15)
    torch.testing.assert_close(found[0].std(0), torch.ones(3).double(), rtol=0, atol=0.15)
    model.log_prob(x)
    torch.testing.assert_close(residuals[0].square().mean(0), torch.ones(1, 4, 4).double(), rtol=0, atol=0.2)


@pytest.mark.parametrize("name", ["all flows", "convolutions", "splines"])
def test_half_precision_is_finite_and_near(name):
    model, x = small(name, (3, 4, 4), 256).float(), images(4, (3, 4, 4), 256)
    torch.manual_seed(9)
    exact = model.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(9)
        half = model.log_prob(x)
        terms = model.loss(x)
    terms["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert {value.dtype for value in terms.values()} == {torch.float32}
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0)


def test_halves_that_have_no_digits_for_noise_are_refused():
    with pytest.raises(ValueError, match="a density in bfloat16 has no digits"):
        small("all flows", (3, 4, 4), 256).bfloat16().loss(images(4, (3, 4, 4), 256))


def gradients(model: FVAE, x: Tensor) -> list[Tensor]:
    torch.manual_seed(10)
    return list(torch.autograd.grad(model.loss(x)["loss"], list(model.parameters())))


@pytest.mark.parametrize(
    ("name", "policy"), [*product(["all flows", "convolutions", "no flow"], ["full", "sqrt", "selective", 2])]
)
def test_gradient_checkpointing_changes_no_gradient(name, policy):
    model, x = small(name), images(6)
    plain = gradients(model, x)
    checkpoint_blocks(model, policy)
    for a, b in zip(plain, gradients(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_invertible_checkpointing_is_refused_for_a_decoder_cannot_be_inverted():
    with pytest.raises(ValueError, match="blocks of FVAE have no inverse"):
        checkpoint_blocks(made(), "invertible")


def test_training_comes_towards_the_entropy_and_not_below_it():
    torch.manual_seed(11)
    x = (torch.randint(2, (1000, 1, 1, 1)) * 5 + torch.randint(3, (1000, 1, 1, 4))).to(torch.uint8)
    entropy = math.log(2) + 4 * math.log(3)  # two clusters of uniform noise: 5.09 nats
    model = made((1, 1, 4), 8, noise=0).float()
    model.prepare([{"x": x}])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = -model.log_prob(x, samples=10).mean()
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(x[torch.randint(1000, (100,))])["loss"].backward()
        optimizer.step()
    after = -model.log_prob(x, samples=10).mean()
    assert entropy < after < before - 1


def test_data_and_sizes_that_cannot_be_are_refused_in_a_sentence():
    for shape, levels in (((12,), 7), ((4, 8, 8), None)):
        with pytest.raises(Unfit, match="f-VAE models images") as refused:
            FVAE(shape=shape, levels=levels)
        assert not refused.value.fits(Space(shape, levels))
        assert refused.value.fits(Space((1, 8, 8), 17))
    with pytest.raises(ValueError, match="latent=1 has no two halves"):
        FVAE(shape=(1, 4, 4), levels=5, latent=1)
