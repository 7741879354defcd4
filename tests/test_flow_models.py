"""Flows: NICE, RealNVP and Glow are bijections of whole images, and their bounds are bounds."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from zoo import chance
from zoo.data import Digits
from zoo.evaluation.likelihood import likelihood
from zoo.jobs.tell import told
from zoo.models import NICE, VAE, Flow, Glow, RealNVP
from zoo.nn import (
    LU,
    ActNorm,
    Additive,
    Affine,
    Chain,
    Checkerboard,
    Coupling,
    Flatten,
    Gaussian,
    Logistic,
    Logit,
    Rescale,
    ResidualNet,
    RunningNorm,
    Scaling,
    Spline,
    VariationalDequantization,
    Whitening,
    checkpoint_blocks,
)
from zoo.training.loaders import Loaders
from zoo.types import Codec, Density, Measured, Prepared, Sampler, Scheduled, Space, Trainable, Unfit, can

LEARNED = partial(VariationalDequantization, couplings=2, network=partial(ResidualNet, hidden=4, depth=1))
SMALL = {
    "nice": partial(NICE, hidden=(8,)),
    "nice, whitened": partial(NICE, hidden=(8,), whitening=True, interval=(-1.0, 1.0)),
    "nice, splines": partial(NICE, hidden=(8,), coupling=partial(Spline, bins=4), base=Gaussian),
    "realnvp": partial(RealNVP, hidden=4, depth=1),
    "realnvp, actnorm": partial(RealNVP, hidden=4, depth=1, norm=ActNorm),
    "glow": partial(Glow, hidden=6, steps=2, scales=2),
    "glow, additive": partial(Glow, hidden=6, steps=2, scales=1, coupling=Additive, matrix=LU),
    "glow, standard prior": partial(Glow, hidden=6, steps=1, scales=2, learned_prior=False),
    "glow, learned noise": partial(Glow, hidden=6, steps=1, scales=1, dequantization=LEARNED),
}


def images(n: int, shape: tuple[int, ...], levels: int) -> Tensor:
    return torch.randint(levels, (n, *shape), dtype=torch.uint8)


def small(
    name: str, shape: tuple[int, ...] = (1, 4, 4), levels: int = 17, *, double: bool = True, **options
) -> Flow:
    """A prepared model, shaken away from where it starts."""
    torch.manual_seed(0)
    model = SMALL[name](shape=shape, levels=levels, **options)
    model = model.double() if double else model
    torch.manual_seed(1)
    model.prepare([{"x": images(30, shape, levels)} for _ in range(3)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("shape", "levels"), [((1, 4, 4), 17), ((3, 4, 4), 256), ((1, 3, 4), 2)])
@pytest.mark.parametrize("name", SMALL)
def test_a_whole_model_is_undone_and_its_log_determinant_is_the_jacobians(name, shape, levels):
    model = small(name, shape, levels)
    v, _ = model._dequantized(images(2, shape, levels))
    z, log_det = model.transform(v)
    assert z.shape == (2, *model.latent.shape)
    back = model.preprocess.inverse(model.bijection.inverse(z))
    torch.testing.assert_close(back, v, rtol=0, atol=1e-9 * levels)
    D = z.shape[1]
    for one, expected in zip(v, log_det):
        found = torch.autograd.functional.jacobian(lambda u: model.transform(u)[0], one[None])
        torch.testing.assert_close(found.reshape(D, D).slogdet().logabsdet, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_a_flow_has_all_its_abilities_and_knows_its_images_exactly(name):
    model, x = small(name, (3, 4, 6), 17, double=False), images(6, (3, 4, 6), 17)
    for contract in (Trainable, Sampler, Density, Codec, Prepared, Measured, Scheduled):
        assert can(model, contract)
    z = model.encode(x)
    assert z.shape == (6, *model.latent.shape)
    assert torch.equal(model.decode(z), x)
    for options in ({}, {"temperature": 0.7}, {"temperature": 0.0}):
        drawn = model.sample(5, **options)
        assert (drawn.shape, drawn.dtype) == ((5, 3, 4, 6), torch.uint8)
        assert int(drawn.max()) < 17
    assert len(model.sample(5, temperature=0.0).unique(dim=0)) == 1
    terms = model.loss(x)
    torch.testing.assert_close(terms["nats"], terms["base"] + terms["log_det"] + terms["dequantization"])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = small(name)
    model.loss(images(8, (1, 4, 4), 17))["loss"].backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.any() or parameter.numel() == 0, part


def test_the_loss_is_minus_log_prob_on_average_over_the_noise():
    model, x = small("glow, learned noise"), images(1, (1, 4, 4), 17)
    nats = model.loss(x.expand(8_000, -1, -1, -1))["nats"]
    expected = model.log_prob(x.expand(8_000, -1, -1, -1)).mean()
    torch.testing.assert_close(-nats, expected, rtol=0, atol=0.1)


def pixel(transform, dequantization=None, levels: int = 5) -> Flow:
    """A flow of one pixel, whose coupling has nothing to be told from: z rises with v, so bins have exact masses."""
    torch.manual_seed(3)
    network = partial(ResidualNet, hidden=4, depth=1)
    coupling = Coupling((1, 1, 1), mask=Checkerboard(swap=True), network=network, transform=transform)
    options = {} if dequantization is None else {"dequantization": dequantization}
    model = Flow(
        Chain(coupling, Flatten((1, 1, 1)), Scaling(1)),
        shape=(1, 1, 1),
        levels=levels,
        preprocess=[Rescale(levels, 0.0, 1.0), Logit()],
        **options,
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # weights p / q of a narrow q take long to come to their mean
            by = 0.1 if name.startswith("dequantization") else 0.4
            parameter.add_(by * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("transform", [Affine, Additive, partial(Spline, bins=4)])
def test_the_density_over_a_levels_bin_is_its_mass_and_all_bins_are_the_mass_of_the_datas_range(transform):
    model, levels = pixel(transform), 5
    edges = torch.arange(levels + 1).double().view(-1, 1, 1, 1)
    with torch.no_grad():
        mass = Normal(0.0, 1.0).cdf(model.transform(edges)[0]).flatten().diff()
        fine = ((torch.arange(levels * 4000) + 0.5) / 4000).double().view(-1, 1, 1, 1)
        z, log_det = model.transform(fine)
        density = (model.base.log_prob(z) + log_det).exp().view(levels, 4000)
    torch.testing.assert_close(density.mean(1), mass, rtol=1e-5, atol=0)
    within = Normal(0.0, 1.0).cdf(model.transform(edges)[0])[[0, -1]].flatten().diff()
    torch.testing.assert_close(density.mean(1).sum(), within.squeeze(), rtol=1e-5, atol=0)
    assert 0.5 < within < 1
    # what every draw is bounded by on average: Jensen's inequality, bin by bin
    assert (density.log().mean(1) < mass.log()).all()


@pytest.mark.parametrize("dequantization", [None, LEARNED], ids=["uniform", "learned"])
def test_a_dequantization_bound_lies_below_its_levels_log_probability_and_its_weights_mean_it(dequantization):
    model = pixel(Affine, dequantization)
    edges = torch.arange(6).double().view(-1, 1, 1, 1)
    with torch.no_grad():
        mass = Normal(0.0, 1.0).cdf(model.transform(edges)[0]).flatten().diff()
    # a fine grid stands for all draws: of u, or of the Gaussian noise that u is made of
    u = ((torch.arange(20_000) + 0.5) / 20_000).double()
    noise = 20 * u - 10
    share = u.new_full(u.shape, 1 / 20_000)
    if dequantization is not None:
        share = Normal(0.0, 1.0).log_prob(noise).exp() * 20 / 20_000
    for level in range(5):
        x = torch.full((20_000, 1, 1, 1), level, dtype=torch.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand_like", lambda x: u.view(-1, 1, 1, 1))
            patch.setattr(torch, "randn_like", lambda x: noise.view(-1, 1, 1, 1))
            bound = model.log_prob(x)
        torch.testing.assert_close((share * bound.exp()).sum(), mass[level], rtol=1e-3, atol=0)
        assert (share * bound).sum() < mass[level].log()


def test_more_draws_come_to_log_p_from_below():
    model = pixel(Affine)
    x = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    edges = torch.arange(6).double().view(-1, 1, 1, 1)
    truth = Normal(0.0, 1.0).cdf(model.transform(edges)[0].detach()).flatten().diff().log()
    torch.manual_seed(4)
    one, five = (model.log_prob(x.repeat(800, 1, 1, 1), samples=k).view(800, 5).mean(0) for k in (1, 5))
    assert (one < five).all()
    assert (five < truth + 0.003).all()
    torch.testing.assert_close(model.log_prob(x, samples=2000), truth, rtol=0, atol=0.05)


def test_the_probabilities_of_all_images_sum_to_less_than_one_padded_or_not():
    x = torch.tensor(list(product([0, 1], repeat=4)), dtype=torch.uint8)
    for name, shape in (("glow", (1, 2, 2)), ("realnvp", (1, 1, 4)), ("nice", (1, 2, 2))):
        torch.manual_seed(5)
        model = SMALL[name](shape=shape, levels=2)
        model.prepare([{"x": images(200, shape, 2)}])
        total = model.log_prob(x.view(-1, *shape), samples=100).exp().sum().item()
        assert 0.0 < total < 1.0


@pytest.mark.parametrize(
    ("levels", "interval", "bits"), [(256, (0.0, 1.0), 8), (256, (-1.0, 1.0), 7), (32, (-0.5, 0.5), 5)]
)
def test_bits_per_dim_count_the_interval_and_the_levels(levels, interval, bits):
    # a flow that does nothing: what is left is the base's density, and the constant
    model = Flow(
        Chain(Flatten((1, 2, 3)), Scaling(6)),
        shape=(1, 2, 3),
        levels=levels,
        preprocess=[Rescale(levels, *interval)],
    )
    x = images(50, (1, 2, 3), levels)
    torch.manual_seed(6)
    numbers = likelihood(
        model, [{"x": x}], facts={"unit": "bits/dim", "levels": levels, "shape": (1, 2, 3)}, split="test"
    )
    chance.at(0, "log_prob", "test", 0)  # the noise that log_prob drew
    v = x + torch.rand(x.shape)
    scaled = interval[0] + (interval[1] - interval[0]) * v / levels
    density = Normal(0.0, 1.0).log_prob(scaled).flatten(1).sum(1).mean().item()
    assert numbers[0]["name"] == "bits_per_dim"
    assert numbers[0]["kind"] == "lower bound"
    assert model.protocol == {"dequantization": "uniform"}
    assert numbers[0]["value"] == pytest.approx(-density / 6 / math.log(2) + bits, abs=1e-5)


def test_nices_published_densities_are_these_nats_and_bits():
    for D, density, (low, high), nats, bits in (
        (784, 1980.50, (0.0, 1.0), 2366.9, 4.36),
        (3072, 5371.78, (-1.0, 1.0), 9533.6, 4.48),
    ):
        log_det = Rescale(256, low, high)(torch.zeros(1, D))[1].item()
        assert -(density + log_det) == pytest.approx(nats, abs=0.1)
        assert -(density + log_det) / D / math.log(2) == pytest.approx(bits, abs=0.005)


def test_uniform_noise_costs_the_bits_that_it_has():
    # the logit of what is uniform is logistic: this flow is uniform over its 256 levels
    model = Flow(
        Chain(Flatten((3, 4, 4)), Scaling(48)),
        shape=(3, 4, 4),
        levels=256,
        preprocess=[Rescale(256, 0.0, 1.0), Logit(1e-6)],
        base=Logistic,
    ).double()
    bits = -model.log_prob(images(8, (3, 4, 4), 256)) / 48 / math.log(2)
    torch.testing.assert_close(bits, torch.full((8,), 8.0).double(), rtol=0, atol=1e-3)


def test_a_padded_image_pays_for_its_padding_over_its_own_dimensions():
    model = small("glow", (1, 6, 7), 256)
    assert model.protocol["padded"] == "to 8 x 8"
    assert model.latent == Space((64,))
    x = images(5, (1, 6, 7), 256)
    facts = {"unit": "bits/dim", "levels": 256, "shape": (1, 6, 7)}
    told = {n["name"]: n["value"] for n in likelihood(model, [{"x": x}], facts=facts, split="test")}
    assert told["bits_per_dim"] == pytest.approx(told["nats"] / 42 / math.log(2))
    # as if the zeros stood in the data
    whole = torch.nn.functional.pad(x, (0, 1, 1, 1))
    full = Glow(shape=(1, 8, 8), levels=256, hidden=6, steps=2, scales=2).double()
    full.load_state_dict(model.state_dict())
    torch.manual_seed(7)
    expected = full.log_prob(whole)
    torch.manual_seed(7)
    torch.testing.assert_close(model.log_prob(x), expected)


@pytest.mark.parametrize("name", ["realnvp", "realnvp, actnorm", "glow"])
def test_what_is_prepared_is_measured_and_the_same_on_every_rank(name):
    states = []
    for _ in range(2):
        torch.manual_seed(8)
        model = SMALL[name](shape=(1, 4, 4), levels=17)
        torch.manual_seed(9)
        x = images(600, (1, 4, 4), 5)
        model.prepare({"x": part} for part in x.split(100))
        states.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states)))
    first: list[Tensor] = []
    norm = next(part for part in model.modules() if isinstance(part, ActNorm | RunningNorm))
    slow = norm if not isinstance(model, Glow) else model.bijection.layers[0]
    if isinstance(model, Glow):
        v, _ = model._dequantized(x)
        first.append(norm(slow(model.preprocess(v)[0])[0])[0])
    else:
        norm.register_forward_hook(lambda module, args, out: first.append(out[0]))
        model.log_prob(x)
    rows = first[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), rtol=0, atol=0.1)
    torch.testing.assert_close(rows.var(1), torch.ones(len(rows)), rtol=0, atol=0.1)


def test_whitening_is_measured_on_the_whole_split_and_norms_on_its_beginning():
    torch.manual_seed(10)
    model = SMALL["nice, whitened"](shape=(1, 4, 4), levels=17).double()
    x = torch.randint(17, (2000, 1, 4, 1)).expand(-1, -1, -1, 4) + torch.randint(3, (2000, 1, 4, 4))
    left = iter({"x": part.clamp(max=16).to(torch.uint8)} for part in x.split(125))
    model.prepare(left)
    assert next(left, None) is None
    whitening = model.preprocess.layers[1]
    assert isinstance(whitening, Whitening)
    v, _ = model._dequantized(x.clamp(max=16))
    z = model.preprocess(v)[0].flatten(1)
    torch.testing.assert_close(z.T.cov(), torch.eye(16).double(), rtol=0, atol=0.15)

    left = iter([{"x": images(300, (1, 4, 4), 17)} for _ in range(4)])
    SMALL["glow"](shape=(1, 4, 4), levels=17).prepare(left)
    assert len(list(left)) == 2


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_is_finite_and_near(name):
    model, x = small(name, (3, 4, 4), 256, double=False), images(4, (3, 4, 4), 256)
    torch.manual_seed(11)
    exact = model.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(11)
        half = model.log_prob(x)
        terms = model.loss(x)
    terms["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert {value.dtype for value in terms.values()} == {torch.float32}
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_halves_that_have_no_digits_for_noise_are_refused(name):
    with pytest.raises(ValueError, match="a density in bfloat16 has no digits"):
        small(name, (3, 4, 4), 256).bfloat16().loss(images(4, (3, 4, 4), 256))


def gradients(model: Flow, x: Tensor) -> list[Tensor]:
    torch.manual_seed(12)
    return list(torch.autograd.grad(model.loss(x)["loss"], list(model.parameters())))


@pytest.mark.parametrize(
    ("name", "policy"),
    [*product(SMALL, ["full", "sqrt", "invertible"]), ("glow", 2), ("glow", "selective")],
)
def test_gradient_checkpointing_changes_no_gradient(name, policy):
    for double, rounding in ((True, 1e-8), (False, 1e-3)):
        model, x = small(name, double=double), images(6, (1, 4, 4), 17)
        assert len(model.blocks) > 1
        plain = gradients(model, x)
        checkpoint_blocks(model, policy)
        for a, b in zip(plain, gradients(model, x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=rounding * (1 + float(a.abs().max())))


def test_invertible_checkpointing_is_exact_under_autocast_as_far_as_halves_go():
    model, x = small("glow", double=False), images(6, (1, 4, 4), 17)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(model, x)
        checkpoint_blocks(model, "invertible")
        again = gradients(model, x)
    for a, b in zip(plain, again):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05 * (1 + float(a.abs().max())))


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")
def test_with_invertible_what_is_kept_does_not_grow_with_depth():
    def kept(depth: int, policy: str) -> int:
        torch.manual_seed(13)
        model = Glow(shape=(1, 8, 8), levels=17, hidden=6, steps=depth, scales=1)
        checkpoint_blocks(model, policy)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        places: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in weights:
                places[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(torch.zeros(16, 1, 8, 8))["loss"]
        assert loss.requires_grad
        return sum(places.values())

    assert kept(16, "invertible") <= kept(4, "invertible") * 1.05
    assert kept(16, "invertible") < kept(16, "none") / 20


def test_invertible_checkpointing_is_refused_where_nothing_can_be_inverted():
    with pytest.raises(ValueError, match="blocks of VAE have no inverse"):
        checkpoint_blocks(VAE(shape=(1, 8, 8), levels=17), "invertible")


@pytest.mark.parametrize("policy", ["none", "full", "sqrt", "invertible"])
def test_running_norms_move_once_a_step_by_what_was_trained_on(policy):
    model, x = small("realnvp"), images(6, (1, 4, 4), 17)
    checkpoint_blocks(model, policy)
    norms = [part for part in model.modules() if isinstance(part, RunningNorm)]
    before = [norm.mean.clone() for norm in norms]
    model.at(0)
    for _ in range(2):  # two micro-batches
        torch.manual_seed(14)
        model.loss(x)["loss"].backward()
        model.at(0)
    assert {float(norm.seen[0, 0]) for norm in norms} <= {2 * 6 * 16, 2 * 6 * 4}
    assert all(torch.equal(norm.mean, mean) for norm, mean in zip(norms, before))
    model.at(1)
    assert all((norm.mean != mean).all() for norm, mean in zip(norms, before))
    assert all(norm.seen is None for norm in norms)
    model.eval().loss(x)
    with torch.no_grad():
        model.train().loss(x)
    assert all(norm.seen is None for norm in norms)


def test_a_class_conditional_base_learns_what_a_class_is():
    model = small("nice", (1, 2, 2), 9, classes=2, conditional=True, double=False)
    x = torch.cat([torch.randint(0, 4, (400, 1, 2, 2)), torch.randint(5, 9, (400, 1, 2, 2))]).to(torch.uint8)
    y = torch.arange(2).repeat_interleave(400)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(x, y)["loss"].backward()
        optimizer.step()
    right, wrong = model.log_prob(x, y).mean(), model.log_prob(x, 1 - y).mean()
    assert right > wrong + 4
    for label, low, high in ((0, 0, 4), (1, 5, 9)):
        drawn = model.sample(200, torch.full((200,), label)).float()
        assert ((drawn >= low) & (drawn < high)).float().mean() > 0.75
    assert model.sample(3).shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match="needs y"):
        model.loss(x)
    with pytest.raises(ValueError, match="conditional=true"):
        NICE(shape=(1, 2, 2), levels=9, conditional=True)


def test_a_colder_sample_is_nearer_to_the_mode_and_a_warm_one_further():
    model = small("glow", levels=256)
    torch.manual_seed(15)
    mode = model.sample(1, temperature=0.0).float()
    spread = [(model.sample(60, temperature=t).float() - mode).abs().mean().item() for t in (0.2, 0.7, 1.2)]
    assert spread[0] < spread[1] < spread[2]


def test_the_health_of_a_flow_names_its_layers_and_tells_of_one_that_explodes():
    model = small("glow", (1, 4, 4), 17)
    x = images(8, (1, 4, 4), 17)
    told = model.summarize(model.statistics(x))
    assert model.unwell(told) == []
    assert told["inverse_error"] < 1e-9
    assert told["log_det_data_Rescale"] == pytest.approx(-math.log(17))
    by_layer = sum(
        value for key, value in told.items() if key.startswith("log_det") and "steepest" not in key
    )
    v, _ = model._dequantized(x)
    expected = model.transform(v)[1].mean().item() / 16
    assert by_layer == pytest.approx(expected, abs=0.5)
    with torch.no_grad():
        model.bijection.layers[-1].rest.layers[-2].log_scale.fill_(11.0)  # on half of the dimensions
    told = model.summarize(model.statistics(x))
    assert told["log_det_steepest"] == pytest.approx(5.5)
    (sentence,) = model.unwell(told)
    assert "ActNorm on scale 2, has a log-determinant of 5.5 nats" in sentence
    assert "explodes; try" in sentence


def test_a_small_error_is_told_and_not_shown_as_none():
    number = {"name": "inverse_error", "unit": "", "kind": "exact", "split": "test", "protocol": {}}
    assert "inverse_error    2.5e-06" in told([{**number, "value": 2.5e-6}])
    assert "inverse_error    0.0000" in told([{**number, "value": 0.0}])


def test_log_determinants_by_layer_add_up_to_the_whole():
    model = small("realnvp", (1, 4, 4), 17)
    x = images(8, (1, 4, 4), 17)
    torch.manual_seed(16)
    sums = model.statistics(x)
    torch.manual_seed(16)
    log_det = model.transform(model._dequantized(x)[0])[1]
    torch.testing.assert_close(sums["log_det"].sum(), log_det.sum())
    assert len(sums["log_det"]) == 2 + 20 + 2  # preprocessing, 10 couplings with norms, squeeze and flatten


def test_a_flow_fits_a_banana_to_the_nats_that_it_has():
    torch.manual_seed(17)

    def banana(n: int) -> Tensor:
        x = torch.randn(n, 2)
        return torch.stack([x[:, 0], x[:, 0].square() + 0.3 * x[:, 1]], 1)

    model = NICE(shape=(2,), levels=None, hidden=(32,), couplings=4, coupling=partial(Affine), base=Gaussian)
    assert model.kind == "exact"
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 400)
        optimizer.zero_grad()
        model.loss(banana(256))["loss"].backward()
        optimizer.step()
    nats = -model.log_prob(banana(20_000)).mean().item()
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)  # 1.634
    assert entropy - 0.03 < nats < entropy + 0.06
    drawn = model.sample(5000)
    assert (drawn[:, 1] - drawn[:, 0].square()).std().item() == pytest.approx(0.3, rel=0.25)


def test_reals_have_a_density_and_integers_a_bound():
    model = Glow(shape=(4, 8, 8), levels=None, hidden=6, steps=1, scales=2)
    x = torch.randn(5, 4, 8, 8)
    model.prepare([{"x": x}])
    assert (model.kind, model.protocol) == ("exact", {})
    assert torch.equal(model.log_prob(x), model.log_prob(x, samples=3))
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-4)
    assert model.sample(2).is_floating_point()
    assert small("nice").kind == "lower bound"
    with pytest.raises(ValueError, match="samples=0"):
        model.log_prob(x, samples=0)


def test_data_that_a_flow_cannot_model_are_refused_in_a_sentence():
    for make, shape, levels in (
        (NICE, (12,), 7),
        (RealNVP, (4, 8, 8), None),
        (RealNVP, (12,), 7),
        (Glow, (12,), 7),
        (Glow, (4, 6, 8), None),
    ):
        with pytest.raises(Unfit, match=f"{make.__name__} models images") as refused:
            make(shape=shape, levels=levels)
        assert not refused.value.fits(Space(shape, levels))
        assert refused.value.fits(Space((1, 8, 8), 17))


def test_actnorm_agrees_across_ranks(tmp_path):
    """What is measured, and what a step then makes of it, is the same on two ranks as in one process."""
    # forked: a fresh process takes seconds to import what it needs
    torch.multiprocessing.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = measured_and_stepped(lambda x: x)
    for name in ("glow", "realnvp"):
        for when in ("measured", "stepped"):
            a, b, expected = (states[f"{name}, {when}"] for states in (one, two, alone))
            assert all(torch.equal(a[key], b[key]) for key in expected)
            for key, value in expected.items():
                torch.testing.assert_close(a[key], value, rtol=0, atol=0 if when == "measured" else 1e-5)
        norms = [key for key in expected if key.endswith(("norm.shift", "layers.1.mean"))]
        assert any((alone[f"{name}, stepped"][key] != alone[f"{name}, measured"][key]).any() for key in norms)


def one_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(
        measured_and_stepped(lambda x: x[rank::2], torch.nn.parallel.DistributedDataParallel),
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def measured_and_stepped(part, wrap=lambda module: module) -> dict[str, dict[str, Tensor]]:
    """The states of two models after `prepare`, before anything is shared, and after a step on a part of a batch."""
    states = {}
    for name in ("glow", "realnvp"):
        chance.at("init", 0)
        model = SMALL[name](shape=(1, 8, 8), levels=17)
        data = Loaders(Digits, {"name": "digits", "shape": [1, 8, 8], "levels": 17}, batch_size=64, seed=0)
        torch.rand(len(part(torch.zeros(3))))  # processes need not stand at the same place of their chance
        model.prepare(data.measuring())
        states[f"{name}, measured"] = {key: value.clone() for key, value in model.state_dict().items()}
        loss = wrap(Loss(model))
        model.at(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
            loss(part(data.dataset("val")[torch.arange(40)]["x"])).backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        model.at(1)
        states[f"{name}, stepped"] = model.state_dict()
    return states


class Loss(torch.nn.Module):
    """A model's loss as a forward, which is what DistributedDataParallel looks at."""

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.loss(x)["loss"]
