"""Heads: what they tell is a distribution over levels, and the short way to a token's cost is the long one."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from zoo.models import Autoregressive
from zoo.nn import Attention, Logistics, Logits, head
from zoo.types import PAD

HEADS = {"logits": Logits, "logistics": Logistics, "logistics, 3": partial(Logistics, components=3)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def loud(module):
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.8)
    return module


def model(**options):
    settings = {"shape": (1, 2, 2), "levels": 3, "dim": 16, "depth": 1, **options}
    return loud(Autoregressive(mixer=partial(Attention, heads=2), **settings)).eval()


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("name", HEADS)
def test_the_cost_of_a_token_is_that_of_its_level_among_all(name, levels, monkeypatch):
    monkeypatch.setattr(head, "ROWS", 4)
    one, h = loud(HEADS[name](8, levels)), torch.randn(3, 5, 8, dtype=torch.float64)
    told = one(h).log_softmax(-1)
    tokens = torch.randint(levels, (3, 5))
    tokens[1, 3:] = PAD
    nats = one.nats(h, tokens)
    expected = -told.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(nats, expected * (tokens != PAD), rtol=1e-9, atol=1e-9)
    if name != "logits":  # they need no softmax
        torch.testing.assert_close(one(h).exp().sum(-1), torch.ones(3, 5).double(), rtol=1e-9, atol=0)


def test_a_mixture_of_logistics_is_its_formula():
    one, h = loud(Logistics(8, 16, components=3)), torch.randn(8, dtype=torch.float64)
    logit, mean, log_scale = one.linear(h).view(3, 3).unbind(1)
    half = 1 / 15
    for token in range(16):
        v = 2 * token / 15 - 1
        above = ((v + half - mean) / log_scale.exp()).sigmoid() if token < 15 else torch.ones(3)
        below = ((v - half - mean) / log_scale.exp()).sigmoid() if token else torch.zeros(3)
        p = (logit.softmax(0) * (above - below)).sum()
        torch.testing.assert_close(one(h[None])[0, token].exp(), p, rtol=1e-8, atol=1e-12)


def test_at_the_start_no_level_is_far_more_likely_than_another():
    (logits,) = Logistics(32, 256)(torch.zeros(1, 32))
    assert logits.max() - logits.min() < 4  # the two ends are open
    assert logits[32:-32].max() - logits[32:-32].min() < 0.3


def test_neighbours_of_what_was_seen_become_likely_too():
    one, h = Logistics(4, 256, components=2), torch.ones(64, 4)
    tokens = 100 + 10 * torch.randint(-2, 3, (64,))
    optimizer = torch.optim.Adam(one.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        one.nats(h, tokens).sum().backward()
        optimizer.step()
    p = one(h[:1])[0].exp()
    assert p[80:121].sum() > 0.75
    assert p[105] > p[110] / 2  # never seen


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_and_samples_follow_them(name):
    network = model(head=HEADS[name])
    images = torch.tensor(list(product(range(3), repeat=4)), dtype=torch.uint8).view(-1, 1, 2, 2)
    p = network.log_prob(images).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    drawn = network.sample(20000).flatten(1).long() @ torch.tensor([27, 9, 3, 1])
    torch.testing.assert_close(drawn.bincount(minlength=81) / 20000, p.float(), rtol=0, atol=0.015)
    x = network.sample(3, temperature=0)
    assert torch.equal(network(x).argmax(-1), x.flatten(1).long())
    assert network.loss(images)["nats"].item() == pytest.approx(-p.log().mean().item())


def test_a_head_of_logistics_learns_in_half_precision_as_in_full():
    network = Autoregressive(
        shape=(1, 3, 3), levels=256, dim=16, depth=1, mixer=partial(Attention, heads=2), head=Logistics
    )
    x = torch.randint(256, (4, 1, 3, 3), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.loss(x)["loss"]
    half.backward()
    torch.testing.assert_close(half, network.loss(x)["loss"], rtol=2e-3, atol=2e-3)
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_head_that_is_no_matrix_cannot_be_that_of_the_embedding():
    assert model(tie=True).head.weight is not None
    with pytest.raises(ValueError, match="tie=true: Logistics is no matrix to share; try tie=false"):
        model(head=Logistics, tie=True)
