"""Targets: a model is scored on what is asked, and on nothing else."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data import MQAR, InductionHeads
from zoo.jobs.measure import measure
from zoo.models import Autoregressive
from zoo.nn import Attention
from zoo.training.loaders import Loaders
from zoo.types import PAD, Density, Measured, Sampler, Trainable, can


def model(**options: object) -> Autoregressive:
    torch.manual_seed(0)
    settings = {"shape": (8,), "levels": 5, "targets": True, "dim": 16, "depth": 2, **options}
    network = Autoregressive(**{"mixer": partial(Attention, heads=2), **settings}).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def batch() -> tuple[Tensor, Tensor]:
    """Sequences of 8 and 5 tokens with 3 and 2 targets, none at the last of the second."""
    torch.manual_seed(1)
    x, y = torch.randint(5, (2, 8)), torch.full((2, 8), PAD)
    x[1, 5:] = PAD
    for row, place, target in ((0, 0, 3), (0, 4, 0), (0, 7, 2), (1, 1, 4), (1, 3, 1)):
        y[row, place] = target
    return x, y


def test_the_loss_is_the_mean_over_the_targets_alone():
    network, (x, y) = model(), batch()
    log_p = network(x).log_softmax(-1)
    nats = -sum(log_p[b, t, y[b, t]] for b in range(2) for t in range(8) if y[b, t] != PAD)
    terms = network.loss(x, y)
    assert terms["loss"].item() == pytest.approx(nats.item() / 5)
    assert terms["nats"].item() == pytest.approx(nats.item() / 2)


def test_accuracy_counts_the_targets_alone():
    network, (x, y) = model(), batch()
    sums = network.statistics(x, y)
    right = (network(x).argmax(-1) == y).sum()
    assert (int(sums["tokens"]), sums["right"]) == (5, right)
    y[0, 0] = y[1, 3] = PAD
    assert network.statistics(x, y)["tokens"] == 3
    best = network(x).argmax(-1)
    assert network.summarize(network.statistics(x, best)) == {"accuracy": 1.0}
    assert network.summarize(network.statistics(x, torch.full_like(y, PAD))) == {"accuracy": 0.0}


def test_what_is_not_asked_has_no_gradient():
    """A token after the last target, and the head at filler, change nothing."""
    network, (x, y) = model(), batch()
    other = x.clone()
    other[1, 4] = (x[1, 4] + 1) % 5
    assert network.loss(other, y)["loss"] == network.loss(x, y)["loss"]
    logits = network(x)
    logits.retain_grad()
    F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=PAD).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    assert (logits.grad.abs().sum(-1) > 0).equal(y != PAD)
    network.zero_grad()
    network.loss(x, y)["loss"].backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_a_target_is_told_from_the_tokens_up_to_it():
    network, (x, _) = model(), batch()
    other = x.clone()
    other[0, 4] = (x[0, 4] + 1) % 5
    change = (network(x) - network(other))[0].abs().sum(-1)
    assert (change[:4] == 0).all()
    assert (change[4:] > 1e-6).all()


def test_every_parameter_gets_a_gradient():
    for options in ({}, {"tie": True}, {"shape": (8,), "depth": 1}):
        network = model(**options)
        network.loss(*batch())["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_model_of_targets_claims_no_likelihood_and_no_samples():
    network, (x, y) = model(), batch()
    assert [can(network, a) for a in (Trainable, Measured, Density, Sampler)] == [True, True, False, False]
    assert all(can(model(targets=False), a) for a in (Trainable, Measured, Density, Sampler))
    for ask in (lambda: network.log_prob(x, y), lambda: network.sample(2)):
        with pytest.raises(ValueError, match="neither log_prob nor sample"):
            ask()


def test_targets_that_do_not_fit_are_refused():
    network, (x, y) = model(), batch()
    for wrong, found in ((None, "none"), (y[:, :7], r"shape \(2, 7\)"), (y[:, 0], r"shape \(2,\)")):
        with pytest.raises(ValueError, match=found):
            network.loss(x, wrong)
    with pytest.raises(ValueError, match="conditional=false"):
        model(classes=3, conditional=True)


def test_targets_of_few_bytes_are_the_same_targets():
    network, (x, y) = model(), batch()
    assert network.loss(x.to(torch.int8), y.to(torch.int8))["loss"] == network.loss(x, y)["loss"]


class Bag(nn.Module):
    """Knows which tokens came, not where: the mean of those so far."""

    ordered = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(1, -1, 1))


RECALL = {"length": 12, "pairs": 3, "levels": 16}


@pytest.mark.parametrize(("mixer", "solves"), [(partial(Attention, heads=1), True), (Bag, False)])
def test_attention_recalls_what_a_bag_of_tokens_cannot(mixer, solves):
    torch.manual_seed(0)
    network = Autoregressive(shape=(12,), levels=16, targets=True, dim=32, depth=2, mixer=mixer)
    for parameter in network.parameters():
        if parameter.ndim == 2:  # so few steps cannot leave where the small weights of large models begin
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    nn.init.normal_(network.embed.weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    data = MQAR("train", sizes={"train": 20000}, **RECALL)
    for step in range(200):
        optimizer.zero_grad()
        network.loss(**data[torch.arange(64) + 64 * step])["loss"].backward()
        optimizer.step()
    seen = MQAR("test", sizes={"test": 500}, **RECALL)[torch.arange(500)]
    with torch.no_grad():
        accuracy = network.summarize(network.statistics(**seen))["accuracy"]
    assert accuracy > 0.95 if solves else accuracy < 0.6


def test_accuracy_is_told_first_and_with_what_it_counts():
    source = partial(InductionHeads, sizes={"train": 8, "val": 8, "test": 24}, length=10, levels=5)
    facts = {"name": "tiny", "shape": (10,), "levels": 5, "unit": "nats"}
    loaders = Loaders(source, facts, batch_size=8, seed=0)
    network = model(shape=(10,)).float()
    first, *rest = measure(network, loaders, splits=["test"], log_prob={}, weights={})
    assert rest == []
    x, y = (loaders.dataset("test")[torch.arange(24)][key] for key in "xy")
    assert first["value"] == pytest.approx((network(x).argmax(-1) == y).sum().item() / 24)
    assert (first["name"], first["count"]) == ("accuracy", 24)
    assert first["protocol"] == {"method": "statistics", "scored": "the last token", "predicts": "targets"}


def test_a_model_trained_at_one_length_is_measured_at_another():
    network = model(shape=(10,), levels=5).float()
    longer = InductionHeads("test", sizes={"test": 6}, length=37, levels=5)
    sums = network.statistics(**longer[torch.arange(6)])
    assert sums["tokens"] == 6
    assert network.loss(**longer[torch.arange(6)])["loss"].isfinite()
