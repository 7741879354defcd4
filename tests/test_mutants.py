"""Faults put into the code on purpose: the check that guards against each must fail, or it guards nothing.

Each check is run twice: on the code as it is, where it must pass, and with its fault, where it must not.
"""

import csv
import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from commands import TRANSFORMER, only, train

from zoo import chance
from zoo.evaluation import likelihood
from zoo.models import VAE, Autoregressive
from zoo.nn import Attention
from zoo.training import ema, learner
from zoo.training import loaders as loading
from zoo.training.batches import Once

IMAGES = {"kind": "image", "unit": "nats", "levels": 2, "shape": [1, 2, 2]}


def vae(**options):
    torch.manual_seed(0)
    return VAE(shape=[1, 2, 2], levels=2, latent=2, init_bias=False, **options).double()


def binary(n=8):
    return torch.randint(2, (n, 1, 2, 2), generator=torch.Generator().manual_seed(0))


def the_future_does_not_matter(folder):
    """Logits up to a token are those of a text whose later tokens are others."""
    torch.manual_seed(0)
    model = Autoregressive(shape=[6], levels=5, dim=8, depth=1, mixer=partial(Attention, heads=2))
    model = model.double()
    for weight in model.parameters():  # at first a branch adds next to nothing
        torch.nn.init.normal_(weight, std=0.5)
    one, other = torch.tensor([[1, 2, 3, 4, 0, 1]]), torch.tensor([[1, 2, 3, 0, 2, 4]])
    assert torch.allclose(model(one)[:, :4], model(other)[:, :4], atol=1e-9)


def the_loss_is_the_bound(folder):
    """nats are -log p(x|z) + KL, the KL that of torch.distributions."""
    from torch.distributions import Normal, kl_divergence

    model, x = vae(), binary()
    mu, lv = model.posterior(x)
    kl = kl_divergence(Normal(mu, (lv / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    terms = model.loss(x)
    assert torch.allclose(terms["loss"], terms["reconstruction"] + kl)


def beta_weighs_the_kl(folder):
    """The slope of the loss in beta is the KL."""
    x = binary()
    losses = []
    for beta in (1.0, 3.0):
        model = vae(beta=beta)
        torch.manual_seed(1)
        losses.append(model.loss(x))
    assert torch.allclose(losses[1]["loss"] - losses[0]["loss"], 2 * losses[0]["kl"])


def more_samples_are_drawn(folder):
    """A bound of 200 draws lies above one of a single draw, and the protocol says how many."""
    values = []
    for samples in (1, 200):
        torch.manual_seed(0)
        batches = [{"x": binary(64)}]
        (nats, *_) = likelihood(vae(), batches, facts=IMAGES, split="val", options={"samples": samples})
        assert nats["protocol"]["samples"] == samples
        values.append(nats["value"])
    assert values[1] < values[0]


def validation_counts_each_example_once(folder):
    """A split of 37 in batches of 10 has every index, none twice."""
    seen = torch.cat([indices for _, indices in Once(37, 10, seed=0, split="val")])
    assert seen.tolist() == list(range(37))


def a_last_batch_weighs_its_examples(folder):
    """The mean over a split is that over its examples."""

    class Sum(torch.nn.Module):
        kind = "exact"

        def log_prob(self, x, y=None):
            return -x.flatten(1).sum(1).double()

    x = torch.arange(5.0).view(5, 1, 1, 1)
    (nats, *_) = likelihood(Sum(), [{"x": x[:4]}, {"x": x[4:]}], facts=IMAGES, split="val")
    assert math.isclose(nats["value"], 2.0)


def measured_weights_are_the_average(folder):
    """Numbers of a run with ema are those of the averaged weights in its checkpoint."""
    import json

    import zoo
    from zoo.training import checkpoint_files as files

    done = train(folder, "ema=0.9", "optimizer.lr=0.1", "evaluate.n=0", "evaluate.weights=last")
    assert done.code == 0, done.err
    run = only(folder)
    content = files.load(files.newest(run / "checkpoints")[0])
    raw = {name.removeprefix("model."): value for name, value in content["raw"].items()}
    state = zoo.load(run, weights="last").state_dict()
    assert any(not torch.equal(state[name], raw[name]) for name in raw)
    numbers = json.loads((run / "results.json").read_text())["numbers"]
    assert all(number["weights"]["averaged"] for number in numbers)


def logged(folder, *words):
    """The means of the training that a run logged, and its last weights."""
    from zoo.training import checkpoint_files as files

    assert train(folder, "evaluate.n=0", "evaluate.splits=[]", *words).code == 0
    run = only(folder)
    with open(run / "metrics.csv") as file:
        lines = [
            line for line in csv.reader(file) if line[1].startswith("train/") and "second" not in line[1]
        ]
    return lines, files.load(files.newest(run / "checkpoints")[0])["state_dict"]


def validation_changes_no_training(folder):
    """A training that was validated twice as often is the same, although its model draws noise."""
    often, seldom = (logged(folder / str(n), f"trainer.val_check_interval={n}") for n in (1, 2))
    assert often[0] == seldom[0]
    assert all(torch.equal(often[1][name], seldom[1][name]) for name in often[1])


def a_label_of_another_place_draws_others(folder):
    """Noise in the loss differs from batch to batch: an example never meets the same twice."""
    draws = []
    for batch in (0, 1):
        chance.at("train", 0, 0, batch, 0)
        draws.append(torch.rand(4))
    assert not torch.equal(*draws)


def gradients_are_those_of_all_micro_batches(folder):
    """Two micro-batches are one batch."""
    values = []
    for count in (1, 2):
        words = (*TRANSFORMER, f"trainer.accumulate_grad_batches={count}", "trainer.val_check_interval=4")
        lines, _ = logged(folder / str(count), *words, "optimizer.lr=0.1", "trainer.gradient_clip_val=1")
        values.append([float(line[2]) for line in lines])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def without_mask(monkeypatch):
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: real(*a, **{**k, "is_causal": False})
    )


def without_kl(monkeypatch):
    real = VAE.loss
    monkeypatch.setattr(
        VAE, "loss", lambda self, x, y=None: (t := real(self, x, y)) | {"loss": t["reconstruction"]}
    )


def beta_at_the_reconstruction(monkeypatch):
    real = VAE.loss

    def loss(self, x, y=None):
        terms = real(self, x, y)
        return terms | {"loss": self.beta * terms["reconstruction"] + terms["kl"]}

    monkeypatch.setattr(VAE, "loss", loss)


def samples_unheard(monkeypatch):
    real = VAE.log_prob

    def log_prob(self, x, y=None, *, samples=100):
        return real(self, x, y, samples=1)

    monkeypatch.setattr(VAE, "log_prob", log_prob)


def an_example_twice(monkeypatch):
    real = Once.__iter__

    def twice(self):
        for place, indices in real(self):
            yield place, torch.cat([indices, indices[:1]]) if int(indices[0]) == 0 else indices

    monkeypatch.setattr(Once, "__iter__", twice)


def a_last_batch_dropped(monkeypatch):
    real = Once.__iter__
    monkeypatch.setattr(Once, "__iter__", lambda self: iter(list(real(self))[:-1]))


def means_over_batches(monkeypatch):
    module = sys.modules["zoo.evaluation.likelihood"]  # zoo.evaluation.likelihood is its function
    real = module.in_units

    def halved(total, examples, *rest):
        return {"nats": (1.5 + 4.0) / 2} | {
            k: v for k, v in real(total, examples, *rest).items() if k != "nats"
        }

    monkeypatch.setattr(module, "in_units", halved)


def the_average_unused(monkeypatch):
    def save(self, trainer, module, checkpoint):
        checkpoint["raw"] = {name: weight.detach().clone() for name, weight in self.weights(module).items()}

    monkeypatch.setattr(ema.EMA, "on_save_checkpoint", save)


def validation_not_keyed(monkeypatch):
    """Whatever is drawn while training follows on what was drawn before, as in most training scripts."""
    for module in (learner, loading):
        monkeypatch.setattr(module.chance, "at", lambda *place: None)


def every_place_alike(monkeypatch):
    monkeypatch.setattr(chance, "key", lambda *place: 0)


def only_the_last_micro_batch(monkeypatch):
    real = learner.Learner._terms

    def terms(self, batch):
        found = real(self, batch)
        first = self.trainer.fit_loop._should_accumulate() and self.training
        return found | {"loss": found["loss"] * 0} if first else found

    monkeypatch.setattr(learner.Learner, "_terms", terms)


PAIRS = [
    (the_future_does_not_matter, without_mask),
    (the_loss_is_the_bound, without_kl),
    (beta_weighs_the_kl, beta_at_the_reconstruction),
    (more_samples_are_drawn, samples_unheard),
    (validation_counts_each_example_once, an_example_twice),
    (validation_counts_each_example_once, a_last_batch_dropped),
    (a_last_batch_weighs_its_examples, means_over_batches),
    (measured_weights_are_the_average, the_average_unused),
    (validation_changes_no_training, validation_not_keyed),
    (a_label_of_another_place_draws_others, every_place_alike),
    (gradients_are_those_of_all_micro_batches, only_the_last_micro_batch),
]


@pytest.mark.parametrize(
    "check", dict.fromkeys(check for check, _ in PAIRS), ids=lambda check: check.__name__
)
def test_a_check_passes_on_the_code_as_it_is(check, tmp_path):
    check(tmp_path)


@pytest.mark.parametrize(("check", "fault"), PAIRS, ids=[fault.__name__ for _, fault in PAIRS])
def test_a_fault_is_found_by_its_check(check, fault, tmp_path, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)
