"""Bijections: each is undone by its inverse, and says truly how it stretches space."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution, Uniform

from zoo.nn import (
    LU,
    MLP,
    ActNorm,
    Additive,
    Affine,
    ByClass,
    Chain,
    Checkerboard,
    Coupling,
    Dense,
    Flatten,
    FreeScale,
    Gaussian,
    Given,
    GlowNet,
    Half,
    Invertible1x1,
    Logistic,
    Logit,
    NormedInvertible1x1,
    OddEven,
    Rescale,
    ResidualNet,
    RunningNorm,
    Scaling,
    SigmoidScale,
    Spline,
    Split,
    Squeeze,
    UniformDequantization,
    VariationalDequantization,
    Whitening,
    ZeroConv,
    rational_quadratic,
)
from zoo.nn.bijections import leaves, runs
from zoo.nn.coupling_nets import NormedConv

IMAGE, VECTOR = (4, 2, 4), (5,)
GLOW = partial(Affine, log_scale=SigmoidScale)
PRIOR = partial(Affine, log_scale=FreeScale)
DENSE = partial(MLP, hidden=(6,), activation=nn.Tanh)
LAYERS = {
    "scaling": (VECTOR, lambda: Scaling(5)),
    "actnorm of vectors": (VECTOR, lambda: ActNorm(5)),
    "actnorm of images": (IMAGE, lambda: ActNorm(4)),
    "running norm": (IMAGE, lambda: RunningNorm(4)),
    "dense mixing of vectors": (VECTOR, lambda: Invertible1x1(5)),
    "dense mixing": (IMAGE, lambda: Invertible1x1(4)),
    "LU mixing": (IMAGE, lambda: Invertible1x1(4, matrix=LU)),
    "normed mixing": (IMAGE, lambda: NormedInvertible1x1(4)),
    "normed LU mixing of vectors": (VECTOR, lambda: NormedInvertible1x1(5, matrix=LU)),
    "squeeze": (IMAGE, Squeeze),
    "flatten": (IMAGE, lambda: Flatten(IMAGE)),
    "split": (IMAGE, lambda: Split(IMAGE, Chain(Squeeze(), ActNorm(8), Flatten((8, 1, 2))))),
    "rescale": (IMAGE, lambda: Rescale(17, -0.5, 0.5)),
    "logit": (IMAGE, Logit),
    "whitening": (IMAGE, lambda: measured(Whitening(IMAGE))),
    "additive on halves": (VECTOR, lambda: Coupling(VECTOR, network=DENSE, transform=Additive)),
    "affine on odd and even": (VECTOR, lambda: Coupling(VECTOR, mask=OddEven(), network=DENSE)),
    "affine on even and odd": (VECTOR, lambda: Coupling(VECTOR, mask=OddEven(swap=True), network=DENSE)),
    "affine on channels": (IMAGE, lambda: Coupling(IMAGE, mask=Half(swap=True), network=RESIDUAL)),
    "affine on a checkerboard": (IMAGE, lambda: Coupling(IMAGE, mask=Checkerboard(), network=RESIDUAL)),
    "gated on a checkerboard": (
        IMAGE,
        lambda: Coupling(IMAGE, mask=Checkerboard(swap=True), network=RESIDUAL, transform=GLOW),
    ),
    "glow's coupling": (
        IMAGE,
        lambda: Coupling(IMAGE, network=partial(GlowNet, hidden=6), transform=GLOW),
    ),
    "learned prior": (IMAGE, lambda: Coupling(IMAGE, network=ZeroConv, transform=PRIOR)),
    "spline on halves": (VECTOR, lambda: Coupling(VECTOR, network=DENSE, transform=Spline)),
    "spline on a checkerboard": (
        IMAGE,
        lambda: Coupling(IMAGE, mask=Checkerboard(), network=RESIDUAL, transform=partial(Spline, bins=3)),
    ),
    "given two channels": (
        IMAGE,
        lambda: Chain(Coupling(IMAGE, mask=Given(2, Checkerboard()), network=RESIDUAL)),
    ),
}
RESIDUAL = partial(ResidualNet, hidden=4, depth=1)


def shaken(module: nn.Module, by: float = 0.3) -> nn.Module:
    """In float64, with parameters and running moments away from where they start."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, RunningNorm):
                part.mean.normal_()
                part.variance.uniform_(0.3, 3.0)
    return module


def measured(whitening: Whitening) -> Whitening:
    mixed = torch.randn(200, 32) @ torch.randn(32, 32) / 5 + 1
    whitening.double().measure([mixed[:150].unflatten(1, IMAGE), mixed[150:].unflatten(1, IMAGE)])
    return whitening


def jacobian(f, x: Tensor) -> Tensor:
    """log|det| of f at x (1, ...), by automatic differentiation."""
    found = torch.autograd.functional.jacobian(lambda v: f(v).flatten(), x)
    return found.reshape(x.numel(), x.numel()).slogdet().logabsdet


@pytest.mark.parametrize("name", LAYERS)
def test_a_bijection_is_undone_and_its_log_determinant_is_the_jacobians(name):
    torch.manual_seed(0)
    shape, make = LAYERS[name]
    layer = shaken(make())
    x = torch.rand(3, *shape, dtype=torch.float64) if name == "logit" else torch.randn(3, *shape).double()
    z, log_det = layer(x)
    assert log_det.shape == (3,)
    assert z.numel() == x.numel()
    torch.testing.assert_close(layer.inverse(z), x, rtol=0, atol=1e-9)
    expected = torch.stack([jacobian(lambda v: layer(v)[0], one[None]) for one in x])
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-9)
    if name not in ("squeeze", "flatten"):
        assert (z.flatten(1) - x.flatten(1)).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in LAYERS if "on " in name or "coupling" in name])
def test_a_coupling_keeps_what_its_mask_keeps_and_moves_the_rest(name):
    torch.manual_seed(1)
    shape, make = LAYERS[name]
    layer = shaken(make())
    x = torch.randn(1, *shape).double()
    changed = (layer(x)[0] != x).sum()
    moved = math.prod(shape) // 2
    assert changed == (moved if "even and odd" not in name else 5 - moved)
    first, second = layer.mask.split(x)
    assert torch.equal(layer.mask.join(first, second), x)


@pytest.mark.parametrize("transform", [Additive, Affine, Spline])
def test_a_coupling_starts_as_the_identity(transform):
    torch.manual_seed(2)
    layer = Coupling(VECTOR, network=DENSE, transform=transform).double()
    x = torch.randn(4, *VECTOR).double()
    z, log_det = layer(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_glows_coupling_starts_with_the_scale_of_its_code():
    layer = Coupling((2,), network=DENSE, transform=GLOW).double()
    z, _ = layer(torch.ones(1, 2).double())
    torch.testing.assert_close(z[0, 1].item(), 1 / (1 + math.exp(-2)))


def test_a_mask_and_its_swap_move_everything_between_them():
    torch.manual_seed(3)
    for mask, shape in ((Half, VECTOR), (OddEven, VECTOR), (Checkerboard, IMAGE)):
        network = RESIDUAL if shape == IMAGE else DENSE
        both = Chain(*(Coupling(shape, mask=mask(swap=swap), network=network) for swap in (False, True)))
        x = torch.randn(1, *shape).double()
        assert (shaken(both)(x)[0] != x).all()


def test_half_of_a_squeezed_images_channels_is_a_checkerboard():
    board = (torch.arange(4)[:, None] + torch.arange(6)) % 2
    squeezed, _ = Squeeze()(torch.stack([board, board + 10]).float()[None])
    first, second = squeezed.chunk(2, 1)
    assert first.unique().tolist() == [0, 10]
    assert second.unique().tolist() == [1, 11]


def test_a_spline_outside_of_its_bound_is_the_identity_and_smooth_at_it():
    torch.manual_seed(4)
    free = [torch.randn(7, n).double() for n in (5, 5, 4)]
    x = torch.tensor([-9.0, -2.0, -2 + 1e-9, 0.3, 2 - 1e-9, 2.0, 50.0]).double()
    y, log_slope = rational_quadratic(x, *free, bound=2.0)
    outside = x.abs() >= 2
    assert torch.equal(y[outside], x[outside])
    assert (log_slope[outside] == 0).all()
    torch.testing.assert_close(y[[2, 4]], x[[2, 4]], rtol=0, atol=1e-6)
    torch.testing.assert_close(log_slope[[2, 4]], torch.zeros(2).double(), rtol=0, atol=1e-6)
    back, less = rational_quadratic(y, *free, bound=2.0, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(less, -log_slope, rtol=0, atol=1e-9)


def test_a_spline_rises_through_knots_of_every_size():
    torch.manual_seed(5)
    free = [3 * torch.randn(n).double().expand(40_001, n) for n in (6, 6, 5)]
    x = torch.linspace(-3, 3, 40_001).double()
    y, log_slope = rational_quadratic(x, *free, bound=3.0)
    assert (y.diff() > 0).all()
    middle = (log_slope.exp()[1:] + log_slope.exp()[:-1]) / 2 * x.diff()
    torch.testing.assert_close(middle.sum().item(), 6.0, rtol=1e-4, atol=0)


def test_a_spline_is_that_of_zuko_through_the_same_knots():
    transforms = pytest.importorskip("zuko.transforms")
    torch.manual_seed(6)
    widths, heights, slopes = (torch.randn(200, n).double() for n in (8, 8, 7))
    x = 4 * torch.randn(200).double()
    theirs = transforms.MonotonicRQSTransform(widths, heights, slopes, bound=3.0)
    # theirs is made of the same knots, which its own parameters would not give
    for knots, free in (("horizontal", widths), ("vertical", heights)):
        sizes = 6 * (1e-3 + (1 - 8e-3) * free.softmax(-1))
        setattr(theirs, knots, nn.functional.pad(sizes.cumsum(-1), (1, 0)) - 3)
    one = math.log(math.expm1(1 - 1e-3))
    theirs.derivatives = nn.functional.pad(1e-3 + nn.functional.softplus(slopes + one), (1, 1), value=1.0)
    expected, log_slope = theirs.call_and_ladj(x)
    y, found = rational_quadratic(x, widths, heights, slopes, bound=3.0)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, log_slope, rtol=0, atol=1e-9)
    back, _ = rational_quadratic(y, widths, heights, slopes, bound=3.0, inverse=True)
    torch.testing.assert_close(back, theirs.inv(expected), rtol=0, atol=1e-9)


def test_a_coupling_is_that_of_zuko_with_the_same_network():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(7)
    ours = shaken(Coupling((4,), network=DENSE))
    x = torch.randn(9, 4).double()
    gain = ours.transform.log_scale.gain

    def meta(kept: Tensor) -> zuko.transforms.Transform:
        raw, shift = ours.network(kept).chunk(2, -1)
        s = gain * raw.tanh()
        free = s / (1 - (s / math.log(1e-3)).abs())  # theirs is s / (1 + |s / log 1e-3|)
        affine = zuko.transforms.MonotonicAffineTransform(shift, free, slope=1e-3)
        return zuko.transforms.DependentTransform(affine, 1)

    theirs = zuko.transforms.CouplingTransform(meta, mask=torch.tensor([True, True, False, False]))
    z, log_det = ours(x)
    expected, their_log_det = theirs.call_and_ladj(x)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det, their_log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [ActNorm, RunningNorm, NormedInvertible1x1])
@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_a_norm_that_was_measured_gives_mean_0_and_variance_1(make, shape):
    torch.manual_seed(8)
    layer = make(3).double()
    x = 5 * torch.randn(50, *shape).double() + 7
    layer.initialize(x)
    norm = layer.norm if isinstance(layer, NormedInvertible1x1) else layer
    z = norm(x)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(3).double(), rtol=0, atol=1e-6)


def test_measuring_reaches_the_norms_of_networks_and_of_what_a_split_goes_on_with():
    torch.manual_seed(9)
    network = partial(GlowNet, hidden=6)
    inner = Chain(ActNorm(2), Coupling((2, 4, 4), network=network), Flatten((2, 4, 4)))
    flow = Chain(
        NormedInvertible1x1(4), Coupling((4, 4, 4), network=network), Split((4, 4, 4), inner)
    ).double()
    x = 3 * torch.randn(40, 4, 4, 4).double() - 2
    z = flow.initialize(x)
    torch.testing.assert_close(z, flow(x)[0])
    seen: list[Tensor] = []
    normed = [
        flow.layers[-1].rest.layers[0],
        *(part for part in flow.modules() if isinstance(part, NormedConv)),
    ]
    for part in normed:
        part.register_forward_hook(lambda module, args, out: seen.append(out[0] if len(out) == 2 else out))
    flow(x)
    assert len(seen) == 5
    for values in seen:
        rows = values.transpose(0, 1).flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            rows.var(1, correction=0), torch.ones(len(rows)).double(), rtol=0, atol=1e-3
        )


def test_the_folded_convolution_is_the_convolution_and_then_the_norm():
    torch.manual_seed(20)
    folded = shaken(NormedConv(3, 5, 3))
    x = torch.randn(2, 3, 4, 4).double()
    torch.testing.assert_close(folded(x), folded.norm(folded.conv(x))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("matrix", [Dense, LU])
@pytest.mark.parametrize("shape", [(4,), (4, 3, 3)])
def test_the_folded_product_is_the_norm_and_then_the_mixing_and_so_is_its_inverse(matrix, shape):
    torch.manual_seed(10)
    folded = shaken(NormedInvertible1x1(4, matrix=matrix))
    slow = Chain(folded.norm, folded.mixing)
    x = torch.randn(5, *shape).double()
    for fast, plain in zip(folded(x), slow(x)):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(folded.inverse(x), slow.inverse(x), rtol=0, atol=1e-12)


def test_the_gain_of_glows_last_layer_is_that_of_its_weights():
    torch.manual_seed(21)
    layer = shaken(ZeroConv((3, 4, 4), (5, 4, 4)))
    x, gain = torch.randn(2, 3, 4, 4).double(), (3 * layer.gain).exp()
    expected = nn.functional.conv2d(
        x, layer.conv.weight * gain.view(-1, 1, 1, 1), layer.conv.bias * gain, padding=1
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_a_mixing_starts_as_a_rotation():
    torch.manual_seed(11)
    for matrix in (Dense, LU):
        W, log_det = matrix(6)()
        torch.testing.assert_close(W @ W.T, torch.eye(6), rtol=0, atol=1e-5)
        torch.testing.assert_close(log_det, torch.zeros(()), rtol=0, atol=1e-5)


def test_running_moments_move_by_the_step_and_not_by_the_pass():
    torch.manual_seed(12)
    norm = RunningNorm(2, momentum=0.75).double()
    first, second = torch.randn(8, 2, 3, 3).double() + 4, torch.randn(4, 2, 3, 3).double()
    norm(first)
    norm.update()
    assert (norm.mean == 0).all()
    norm.watching = True
    assert torch.equal(norm(first)[0], norm(first / 1)[0])
    norm(second)
    assert (norm.mean == 0).all()
    norm.update()
    both = torch.cat([first, first, second]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.mean, 0.25 * both.mean(1))
    torch.testing.assert_close(norm.variance, 0.75 + 0.25 * both.var(1, correction=0))
    again = norm.mean.clone()
    norm.update()
    assert torch.equal(norm.mean, again)


def test_whitened_data_have_the_identity_for_their_covariance_over_the_whole_split():
    torch.manual_seed(13)
    x = (torch.randn(400, 32) @ torch.randn(32, 32) + 3).double()
    whitening = Whitening(IMAGE, epsilon=0.0).double()
    whitening.measure(x.unflatten(1, IMAGE).split(37))
    z = whitening(x.unflatten(1, IMAGE))[0].flatten(1)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(32).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(z.mean(0), torch.zeros(32).double(), rtol=0, atol=1e-9)
    assert torch.allclose(whitening.weight, whitening.weight.T)  # zero-phase: it turns nothing


def test_bases_are_those_of_torch_distributions():
    torch.manual_seed(14)
    z = torch.randn(6, 5).double()
    zero, one = torch.zeros(5).double(), torch.ones(5).double()
    torch.testing.assert_close(Gaussian().log_prob(z), Normal(zero, one).log_prob(z).sum(1))
    uniform = TransformedDistribution(Uniform(zero, one), SigmoidTransform().inv)  # the logistic
    torch.testing.assert_close(Logistic().log_prob(z), uniform.log_prob(z).sum(1))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    base = shaken(ByClass(Gaussian(), 5, 3))
    expected = Normal(base.mean[y], base.log_scale[y].exp()).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(z, y), expected)


@pytest.mark.parametrize("base", [Gaussian(), Logistic()])
def test_samples_of_a_base_have_its_density_and_scale_with_temperature(base):
    torch.manual_seed(15)
    z = base.sample(torch.empty(40_000, 1).double())
    deviation = {"Gaussian": 1.0, "Logistic": math.pi / math.sqrt(3)}[type(base).__name__]
    assert abs(z.mean().item()) < 0.04
    assert z.std().item() == pytest.approx(deviation, rel=0.02)
    assert base.sample(torch.empty(40_000, 1), temperature=0.5).std().item() == pytest.approx(
        deviation / 2, rel=0.02
    )
    assert (base.sample(torch.empty(9, 3), temperature=0.0) == 0).all()


def test_samples_of_a_class_lie_where_its_density_is():
    torch.manual_seed(16)
    base = ByClass(Gaussian(), 1, 2)
    with torch.no_grad():
        base.mean[1], base.log_scale[1] = 5.0, math.log(2.0)
        z = base.sample(torch.empty(20_000, 1), torch.ones(20_000, dtype=torch.long), temperature=0.5)
    assert z.mean().item() == pytest.approx(5.0, abs=0.05)
    assert z.std().item() == pytest.approx(1.0, rel=0.03)


def test_dequantized_data_stay_in_their_bin():
    torch.manual_seed(17)
    x = torch.randint(17, (9, 2, 4, 4)).double()
    for kind in (UniformDequantization, VariationalDequantization):
        v, log_q = shaken(kind((2, 4, 4), 17))(x)
        assert torch.equal(v.floor(), x)
        assert log_q.shape == (9,)
    assert v.frac().std() > 0.1


def test_the_density_of_a_learned_dequantization_is_what_it_says():
    torch.manual_seed(18)
    network = partial(ResidualNet, hidden=4, depth=1)
    part = shaken(VariationalDequantization((1, 2, 2), 5, network=network))
    x = torch.randint(5, (1, 1, 2, 2)).double()
    noise = torch.randn(1, 1, 2, 2).double()

    def drawn(noise: Tensor) -> tuple[Tensor, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x: noise)
            return part(x)

    expected = Normal(0.0, 1.0).log_prob(noise).sum() - jacobian(lambda e: drawn(e)[0], noise)
    torch.testing.assert_close(drawn(noise)[1].squeeze(), expected, rtol=0, atol=1e-9)


def test_a_density_integrates_to_one_over_the_plane():
    torch.manual_seed(19)
    for transform in (Affine, GLOW, partial(Spline, bins=4)):
        swaps = (Half(), Half(swap=True), Half())
        couplings = [Coupling((2,), mask=mask, network=DENSE, transform=transform) for mask in swaps]
        flow = shaken(Chain(ActNorm(2), *couplings, Invertible1x1(2), Scaling(2)), by=0.2)
        side = torch.linspace(-20, 20, 401).double()
        points = torch.cartesian_prod(side, side)
        with torch.no_grad():
            z, log_det = flow(points)
            mass = (Gaussian().log_prob(z) + log_det).exp().sum() * (40 / 400) ** 2
        assert mass.item() == pytest.approx(1.0, abs=2e-3)


def test_a_chain_knows_its_layers_and_what_follows_on_what():
    first, second = ActNorm(4), ActNorm(8)
    squeeze, flat = Squeeze(), Flatten((8, 1, 1))
    step = Chain(first)
    flow = Chain(step, Split((4, 2, 2), Chain(squeeze, second, flat)))
    assert list(leaves(flow)) == [(1, first), (2, squeeze), (2, second), (2, flat)]
    assert runs(flow) == [[step], [squeeze, second, flat]]
    assert [type(part) for part in copy.deepcopy(flow).layers] == [Chain, Split]


def test_numbers_that_make_no_bijection_are_refused():
    with pytest.raises(ValueError, match=r"interval=\[1.0, 1.0\]"):
        Rescale(256, 1.0, 1.0)
    for alpha in (0.0, 0.5):
        with pytest.raises(ValueError, match="between 0 and 1/2"):
            Logit(alpha)
