"""What is asked of a network of tokens beside the next one: masked tokens, labels, a sequence for another."""

import json
import math
from functools import partial
from itertools import product

import commands
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.models import Masked, Seq2Seq, SequenceClassifier
from zoo.nn import (
    Attention,
    ConvPosition,
    CrossAttention,
    GatedAttention,
    LearnedPosition,
    MixedChunk,
    Nystrom,
    RWKVFeedForward,
    SinusoidalPosition,
    SlidingWindow,
)
from zoo.types import PAD, Density, Measured, Sampler, Space, Unfit, can

four = partial(Attention, heads=4)
MIXERS = {
    "softmax": four,
    "window": partial(SlidingWindow, heads=4, window=3),
    "gau": partial(GatedAttention, width=6),
    "flash": partial(MixedChunk, width=6, chunk=3),
}


def made(kind, **options):
    torch.manual_seed(0)
    settings = {"shape": (8,), "levels": 5, "dim": 16, "depth": 2, "mixer": four, **options}
    network = kind(**settings).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


masked = partial(made, Masked)
classifier = partial(made, SequenceClassifier, classes=3)
seq2seq = partial(made, Seq2Seq, source_levels=7, heads=4)


def test_the_shares_of_hidden_swapped_and_shown_tokens_are_bert_s():
    network = masked(levels=50)
    tokens = torch.randint(50, (400, 500))
    tokens[:, 400:] = PAD
    torch.manual_seed(1)
    shown, chosen = network.hide(tokens)
    assert not chosen[:, 400:].any()
    assert (shown[:, 400:] == 51).all()
    assert torch.equal(shown[~chosen & (tokens != PAD)], tokens[~chosen & (tokens != PAD)])
    assert chosen[:, :400].double().mean().item() == pytest.approx(0.15, abs=0.003)
    hidden = (shown == 50)[chosen].double().mean().item()
    same = (shown == tokens)[chosen].double().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / 50, abs=0.01)
    assert shown[chosen].max() == 50


def test_a_pure_mask_hides_every_chosen_token():
    network = masked(mask=1.0, random=0.0, rate=0.5)
    shown, chosen = network.hide(torch.randint(5, (20, 30)))
    assert torch.equal(shown == 5, chosen)


def test_the_masked_loss_is_that_of_the_chosen_tokens_alone():
    network = masked(rate=0.4)
    x = torch.randint(5, (6, 8))
    x[2, 5:] = PAD
    torch.manual_seed(4)
    shown, chosen = network.hide(x)
    logits = network.logits(network.backbone(network.embed(shown)))
    expected = -sum(logits[b, t].log_softmax(-1)[x[b, t]] for b, t in chosen.nonzero()) / chosen.sum()
    torch.manual_seed(4)
    torch.testing.assert_close(network.loss(x)["loss"], expected)
    torch.manual_seed(4)
    sums = network.statistics(x)
    right = (logits.argmax(-1) == x)[chosen].double().mean().item()
    assert sums["chosen"] == chosen.sum()
    assert network.summarize(sums) == {"masked_accuracy": pytest.approx(right)}


def test_where_nothing_was_chosen_the_loss_is_zero():
    loss = masked().loss(torch.full((2, 8), PAD))["loss"]
    loss.backward()
    assert loss == 0


def test_a_masked_model_sees_both_sides_and_claims_no_likelihood():
    network = masked()
    x = torch.randint(5, (1, 8))
    other = x.clone()
    other[0, 7] = (x[0, 7] + 1) % 5
    assert (network(x)[0, 0] - network(other)[0, 0]).abs().max() > 1e-6
    assert can(network, Measured)
    assert not can(network, Density)
    assert not can(network, Sampler)
    assert not hasattr(network, "kind")


def test_a_masked_model_learns_what_its_neighbours_tell():
    torch.manual_seed(0)
    network = Masked(shape=(12,), levels=4, dim=32, depth=2, mixer=four)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    x = ((torch.arange(12) + torch.arange(4)[:, None]) % 4).repeat(8, 1)
    for _ in range(120):
        optimizer.zero_grad()
        network.loss(x)["loss"].backward()
        optimizer.step()
    assert network.summarize(network.statistics(x))["masked_accuracy"] > 0.9


def test_a_masked_model_takes_landmarks_and_images():
    network = masked(shape=(1, 4, 4), mixer=partial(Nystrom, heads=4, landmarks=4, kernel=3))
    x = torch.randint(5, (3, 1, 4, 4), dtype=torch.uint8)
    assert network(x).shape == (3, 16, 5)
    assert network.loss(x)["loss"].isfinite()


def test_shares_that_are_none_are_refused():
    for options in ({"rate": 0.0}, {"mask": 0.8, "random": 0.3}, {"random": -0.1}):
        with pytest.raises(ValueError, match="are no shares"):
            masked(**options)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_a_classifier_averages_over_the_tokens_that_are_there(name, causal):
    network = classifier(mixer=MIXERS[name], causal=causal)
    x = torch.randint(5, (4, 8))
    x[1, 3:] = PAD
    h = network.backbone(network.embed(torch.where(x == PAD, 5, x)))
    means = torch.stack([h[0].mean(0), h[1, :3].mean(0), h[2].mean(0), h[3].mean(0)])
    torch.testing.assert_close(network(x), network.head(means))
    if causal:  # then what comes after the end is not seen
        torch.testing.assert_close(network(x)[1:2], network(x[1:2, :3]))


def test_a_classifier_scores_labels():
    network = classifier()
    x, y = torch.randint(5, (40, 8)), torch.randint(3, (40,))
    logits = network(x)
    torch.testing.assert_close(network.loss(x, y)["loss"], F.cross_entropy(logits, y))
    right = (logits.argmax(-1) == y).double().mean().item()
    assert network.summarize(network.statistics(x, y)) == {"accuracy": pytest.approx(right)}
    assert not can(network, Density)
    for wrong in (None, x):
        with pytest.raises(ValueError, match="one label for each example"):
            network.loss(x, wrong)


def test_a_classifier_learns_which_token_is_more_frequent():
    torch.manual_seed(0)
    network = SequenceClassifier(shape=(9,), levels=2, classes=2, dim=16, depth=1, mixer=four)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x = torch.randint(2, (128, 9))
    y = (x.sum(1) > 4).long()
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(x, y)["loss"].backward()
        optimizer.step()
    assert network.summarize(network.statistics(x, y))["accuracy"] > 0.95


def test_cross_attention_equals_the_formula_written_out():
    cross = CrossAttention(16, 4).double()
    x, memory = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    q = cross.q(x).view(2, 5, 4, 4)
    k, v = cross.kv(memory).view(2, 7, 2, 4, 4).unbind(2)
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / 2).softmax(-1)
    expected = cross.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    torch.testing.assert_close(cross(x, cross.remember(memory)), expected)
    with pytest.raises(ValueError, match="dim=18 cannot be split over heads=4"):
        CrossAttention(18, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
def test_probabilities_of_all_strings_sum_to_one_for_each_source(name):
    network = seq2seq(shape=(5,), levels=2, mixer=MIXERS[name])
    x = torch.tensor(list(product([0, 1], repeat=5)))
    chances = [network.log_prob(x, source.expand(32, 3)).exp() for source in torch.randint(7, (2, 1, 3))]
    for p in chances:
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (chances[0] - chances[1]).abs().max() > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("position", [None, SinusoidalPosition, partial(ConvPosition, kernel=3)])
@pytest.mark.parametrize("name", MIXERS)
def test_greedy_samples_are_the_most_probable_tokens_given_the_source(name, position):
    network = seq2seq(levels=9, mixer=MIXERS[name], position=position)
    y = torch.randint(7, (3, 6))
    x = network.sample(3, y, temperature=0)
    assert torch.equal(network(x, y).argmax(-1), x)


@torch.no_grad()
def test_sources_that_are_not_given_are_drawn():
    network = seq2seq(source_shape=(6,), position=LearnedPosition)
    torch.manual_seed(5)
    x = network.sample(4, temperature=0)
    torch.manual_seed(5)
    y = torch.randint(7, (4, 6))
    assert torch.equal(network.sample(4, y, temperature=0), x)


@torch.no_grad()
def test_samples_follow_the_models_own_probabilities():
    network = seq2seq(shape=(3,), levels=2)
    y = torch.tensor([4])
    strings = torch.tensor(list(product([0, 1], repeat=3)))
    torch.manual_seed(0)
    x = network.sample(20000, y.expand(20000))
    seen = torch.bincount((x * torch.tensor([4, 2, 1])).sum(1), minlength=8) / 20000
    torch.testing.assert_close(
        seen.double(), network.log_prob(strings, y.expand(8)).exp(), rtol=0, atol=0.015
    )


def test_the_loss_of_a_sequence_counts_no_padding():
    network = seq2seq()
    x, y = torch.randint(5, (2, 8)), torch.randint(7, (2, 6))
    x[1, 3:] = PAD
    y[0, 4:] = PAD
    terms, log_p = network.loss(x, y), network.log_prob(x, y)
    assert terms["nats"].item() == pytest.approx(-log_p.mean().item())
    assert terms["loss"].item() == pytest.approx(-log_p.sum().item() / 11)
    shorter = seq2seq(shape=(3,)).log_prob(x[1:, :3], y[1:])
    torch.testing.assert_close(log_p[1:], shorter)
    sums = network.statistics(x, y)
    right = network(x, y).argmax(-1) == x
    assert sums["tokens"] == 11
    assert sums["right"] == right.sum()
    assert sums["whole"] == int(right[0].all()) + int(right[1, :3].all())


def test_a_sequence_without_its_source_is_refused():
    network = seq2seq()
    x = torch.randint(5, (2, 8))
    for y in (None, torch.randint(7, (3, 6))):
        with pytest.raises(ValueError, match="2 sequences follow from 2 sources"):
            network.loss(x, y)
    assert all(can(network, ability) for ability in (Density, Sampler, Measured))
    assert network.protocol == {"given": "y"}  # it has no p(x)


def test_a_feed_forward_with_a_state_is_refused_where_none_is_kept():
    with pytest.raises(ValueError, match="mlp=RWKVFeedForward sees the token before"):
        seq2seq(mlp=RWKVFeedForward)


@pytest.mark.parametrize("build", [masked, seq2seq], ids=["masked", "seq2seq"])
@torch.no_grad()
def test_a_loss_in_half_precision_is_summed_in_single(build):
    network = build().bfloat16()
    loss = network.loss(torch.randint(5, (50, 8)), torch.randint(7, (50, 6)))["loss"]
    assert loss.dtype == torch.float32
    assert loss != loss.bfloat16()


@torch.no_grad()
def test_labels_are_sources_and_images_are_sequences():
    network = seq2seq(shape=(3, 2, 2), levels=4)
    y = torch.tensor([0, 6, 3])
    x = network.sample(3, y)
    assert x.shape == (3, 3, 2, 2)
    assert x.dtype == torch.uint8
    torch.testing.assert_close(network.log_prob(x, y), network.log_prob(x, y[:, None]))
    with pytest.raises(ValueError, match="nothing to draw from"):
        network.sample(3, y, top_k=0)


def test_a_sequence_is_learned_backwards():
    torch.manual_seed(0)
    network = Seq2Seq(shape=(4,), levels=3, source_levels=3, dim=32, depth=1, heads=4, mixer=four)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    y = torch.tensor(list(product(range(3), repeat=4)))
    x = y.flip(1)
    for _ in range(160):
        optimizer.zero_grad()
        network.loss(x, y)["loss"].backward()
        optimizer.step()
    assert network.summarize(network.statistics(x, y))["whole_accuracy"] > 0.95
    assert (network.sample(81, y, temperature=0) == x).all(1).double().mean() > 0.95


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (masked, {"levels": None}),
        (classifier, {"levels": None}),
        (classifier, {"classes": None}),
        (seq2seq, {"levels": None}),
        (seq2seq, {"source_levels": None}),
    ],
)
def test_data_that_do_not_fit_are_refused(build, data):
    with pytest.raises(Unfit) as refusal:
        build(**data)
    assert not refusal.value.fits(Space((8,)))
    assert refusal.value.fits(Space((8,), 5)) == ("levels" in data)


@pytest.mark.parametrize("build", [masked, classifier, seq2seq])
def test_every_parameter_gets_a_finite_gradient_in_half_precision_too(build):
    network = build().float()
    x = torch.randint(5, (16, 8))
    x[0, 5:] = PAD
    y = torch.randint(3, (16,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.loss(x, y)["loss"]
    loss.backward()
    assert loss < 10 * math.log(5)
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_an_objective_is_a_word_of_the_command_line(tmp_path):
    words = ("objective=masked", "model.rate=0.5", "evaluate.n=0")
    done = commands.train(tmp_path, *commands.TRANSFORMER, *words)
    assert done.code == 0, done.err
    results = json.loads((commands.only(tmp_path) / "results.json").read_text())
    assert results["config"]["model"]["_target_"] == "zoo.models.Masked"
    assert results["config"]["model"]["rate"] == 0.5
    assert [number["name"] for number in results["numbers"]] == ["masked_accuracy"]


@pytest.mark.parametrize("build", [masked, classifier, seq2seq])
def test_blocks_are_named_for_recomputation(build):
    from zoo.nn import checkpoint_blocks

    network = build().train()
    x, y = torch.randint(5, (4, 8)), torch.randint(3, (4,))
    grads = []
    for policy in ("none", "full", "sqrt"):
        checkpoint_blocks(network, policy)
        network.zero_grad()
        torch.manual_seed(0)
        network.loss(x, y)["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])
