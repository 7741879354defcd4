"""Continuous normalizing flows: what is trained is the likelihood, and what is told is the closed form's."""

import math
from functools import partial

import gaussian
import pytest
import torch
from test_paths import close
from torch import nn

from zoo.models import CNF
from zoo.nn import EightGaussians, Straight, TimeMLP
from zoo.nn.interval import Interval
from zoo.types import Density, Sampler, Trainable, Unfit, can


class Velocity(nn.Module):
    """The optimal velocity of Gaussian data on the straight path, as a network."""

    def __init__(self, shape, context):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, c):
        return self.one * gaussian.field(Straight())(x, t[0])


def small(**options) -> CNF:
    torch.manual_seed(0)
    return CNF(**{"shape": (2,), "levels": None, "backbone": partial(TimeMLP, width=16, depth=2), **options})


def points(n=256):
    torch.manual_seed(0)
    return gaussian.MU + gaussian.S * torch.randn(n, 2, dtype=torch.float64)


def test_the_exact_field_of_gaussian_data_tells_their_likelihood():
    model, x = small(backbone=Velocity), points()
    expected = gaussian.log_normal(x, gaussian.MU, gaussian.S)
    close(model.log_prob(x, tolerance=1e-8), expected, 1e-6)
    with torch.inference_mode():
        close(model.log_prob(x), expected, 1e-4)
    terms = model.loss(x)
    close(terms["loss"], -expected.mean(), 1e-3)
    close(terms["base"] + terms["log_det"], terms["nats"])
    torch.manual_seed(0)
    samples = model.sample(5000, solver="rk4", steps=20)
    close(samples.mean(0), gaussian.MU, 0.03)
    close(samples.std(0), gaussian.S, 0.03)


def test_the_exact_field_is_where_the_loss_is_least():
    model = small(backbone=Velocity)
    x = points(20_000)
    model.loss(x)["loss"].backward()
    assert model.backbone.one.grad.abs() < 0.02
    with torch.no_grad():
        model.backbone.one.fill_(1.3)
    model.zero_grad()
    model.loss(x)["loss"].backward()
    assert model.backbone.one.grad > 0.1


def test_gradients_go_through_the_solver():
    model = small().double()
    x = torch.randn(16, 2, dtype=torch.float64)
    model.loss(x)["loss"].backward()
    weight = model.backbone.output.weight
    slope = weight.grad[0, 0].item()
    with torch.no_grad():
        losses = []
        for h in (1e-5, -2e-5):
            weight[0, 0] += h
            losses.append(model.loss(x)["loss"].item())
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)
    assert all(p.grad is not None for p in model.parameters())


def test_it_learns_a_likelihood():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = points(512).float()
    before = -model.log_prob(x).mean()
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(x[torch.randint(512, (64,))])["loss"].backward()
        optimizer.step()
    entropy = -gaussian.log_normal(x.double(), gaussian.MU, gaussian.S).mean()
    assert entropy - 0.05 < -model.log_prob(x).mean() < before - 0.5 * (before - entropy)


def test_integers_have_their_constant():
    model = small(backbone=Velocity, levels=12)
    x = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    torch.manual_seed(0)
    total = model.log_prob(x, samples=8, tolerance=1e-4).exp().sum().item()
    edge = 1 + 1 / 11
    inside = sum(torch.erf((edge + sign * gaussian.MU) / gaussian.S / math.sqrt(2)) / 2 for sign in (1, -1))
    assert total == pytest.approx(inside.prod().item(), rel=0.03)
    assert model.sample(3).dtype == torch.uint8
    assert Interval(12).constant(2) == pytest.approx(2 * math.log(2 / 11))


def test_what_it_can_and_cannot():
    model = small(source=EightGaussians)
    assert all(can(model, ability) for ability in (Trainable, Sampler, Density))
    assert model.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="solver=ddim: a CNF has a velocity alone, for euler"):
        model.sample(3, solver="ddim")
    with pytest.raises(Unfit, match="exact trace"):
        small(shape=(1, 8, 8))
    for wrong, words in (({"steps": 0}, "steps=0"), ({"levels": 1}, "levels=1")):
        with pytest.raises(ValueError, match=words):
            small(**wrong)
    with pytest.raises(ValueError, match="samples=0"):
        model.log_prob(torch.zeros(1, 2), samples=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(torch.randn(8, 2))["loss"].isfinite()
