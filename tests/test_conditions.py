"""Conditions, the time, and captions in place of labels."""

import math
from functools import partial

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from torch import nn

from zoo.config import build
from zoo.data import Captioned, Characters, ColouredShapes, Digits, captions
from zoo.nn import CaptionCondition, ClassCondition, Condition, TimeEmbedding, TimeMLP
from zoo.nn.conditions import words
from zoo.nn.time_embedding import sinusoids
from zoo.training import facts
from zoo.types import PAD

NAMES = ["a cat", "a dog", "an owl"]
ALL = torch.tensor([True, True])
NONE = torch.tensor([False, False])


def captioner():
    torch.manual_seed(0)
    condition = CaptionCondition(9, (6,), dim=16, heads=2).double().eval()
    for p in condition.parameters():
        nn.init.normal_(p, std=0.3)
    return condition


def test_a_class_has_a_vector_and_so_has_none():
    condition = ClassCondition(3, dim=4)
    y = torch.tensor([2, 2])
    kept, dropped = condition(y, ALL).vector, condition(y, NONE).vector
    torch.testing.assert_close(kept, condition.embed.weight[[2, 2]])
    torch.testing.assert_close(dropped, condition.embed.weight[[3, 3]])
    mixed = condition(y, torch.tensor([True, False])).vector
    torch.testing.assert_close(mixed, torch.stack([kept[0], dropped[0]]))


def test_what_is_told_nothing_is_told_the_same_whatever_y_is():
    condition = captioner()
    one, other = (condition(y, NONE) for y in torch.randint(9, (2, 2, 6)))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(one.vector[0], one.vector[1])
    assert one.mask.tolist() == [[True] + 6 * [False]] * 2
    assert (condition(torch.randint(9, (2, 6)), ALL).vector - one.vector).abs().max() > 1e-3


def test_a_captions_words_are_masked_after_its_end_and_not_counted_in_its_vector():
    condition = captioner()
    y = torch.tensor([[1, 2, 3, PAD, PAD, PAD], [1, 2, 3, 4, 5, 6]])
    c = condition(y, ALL)
    assert c.tokens.shape == (2, 7, 16)
    assert c.mask.tolist() == [4 * [True] + 3 * [False], 7 * [True]]
    mean = c.tokens[0, :4].mean(0)
    torch.testing.assert_close(c.vector[0], condition.pool(mean))


def test_every_word_of_a_caption_reaches_its_vector():
    condition = captioner()
    y = torch.arange(6).expand(7, -1).clone()
    y[1:] += torch.eye(6, dtype=torch.long)
    vectors = condition(y, torch.ones(7, dtype=torch.bool)).vector
    assert (vectors[1:] - vectors[0]).norm(dim=1).min() > 1e-4


def test_a_vector_alone_is_one_word():
    vector, tokens, mask = torch.randn(2, 3), torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(words(Condition(vector))[0], vector[:, None])
    assert words(Condition(vector, tokens, mask))[0] is tokens
    assert words(Condition(vector, tokens, mask))[1].shape == (2, 1, 1, 4)
    assert words(None) == (None, None)


def test_wrong_conditions_are_refused_in_words():
    with pytest.raises(ValueError, match="this data has no classes; try condition=none"):
        ClassCondition(None)
    with pytest.raises(ValueError, match="try dataset=digits_captions"):
        CaptionCondition(None, ())
    with pytest.raises(ValueError, match="captions ask for condition=caption"):
        ClassCondition(3)(torch.zeros(2, 6).long(), ALL)
    with pytest.raises(ValueError, match=r"captions have shape \(B, 6\)"):
        captioner()(torch.zeros(2, 5).long(), ALL)
    with pytest.raises(ValueError, match="needs a condition that has a vector"):
        TimeMLP((2,), 3)(torch.zeros(1, 2), torch.zeros(1), None)
    with pytest.raises(ValueError, match="context=None cannot be told"):
        TimeMLP((2,), None)(torch.zeros(1, 2), torch.zeros(1), Condition(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="features=5 is odd"):
        TimeEmbedding(8, features=5)


def test_sinusoids_of_t_are_those_of_a_thousand_steps():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    waves = sinusoids(t, 8)
    for i in range(4):
        w = 10000 ** (-i / 4)
        torch.testing.assert_close(waves[:, i], torch.cos(w * 1000 * t), rtol=0, atol=1e-9)
        torch.testing.assert_close(waves[:, 4 + i], torch.sin(w * 1000 * t), rtol=0, atol=1e-9)
    assert sinusoids(t.bfloat16(), 8).dtype == torch.float32


@pytest.mark.parametrize("context", [None, 3])
def test_the_toy_network_sees_x_and_t_and_what_it_is_told(context):
    torch.manual_seed(0)
    network = TimeMLP((2,), context, width=16).double()
    x, t = torch.randn(4, 2).double(), torch.rand(4).double()
    c = None if context is None else Condition(torch.randn(4, 3).double())
    y = network(x, t, c)
    assert y.shape == x.shape
    assert (network(x + 1, t, c) - y).abs().min() > 0
    assert (network(x, t + 0.5, c) - y).abs().min() > 0
    if c is not None:
        assert (network(x, t, Condition(c.vector + 1)) - y).abs().min() > 0
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_toy_network_makes_any_shape():
    assert TimeMLP((1, 2, 3), None)(torch.randn(5, 1, 2, 3), torch.rand(5)).shape == (5, 1, 2, 3)


def captioned(**options):
    corpus = partial(captions, names=[f"number {i}" for i in "abcdefghij"], template="a {}")
    return Captioned(
        "val", source=partial(Digits, holdout=20), corpus=corpus, tokens=Characters(), root=".", **options
    )


def test_a_captioned_dataset_tells_each_label_in_words():
    data = captioned(length=12)
    labels = Digits("val", holdout=20)[torch.arange(20)]
    batch = data[torch.arange(20)]
    assert torch.equal(batch["x"], labels["x"])
    assert batch["y"].shape == (20, 12)
    for label, y in zip(labels["y"].tolist(), batch["y"], strict=True):
        text = data.vocabulary.decode(y[y != PAD].numpy())
        assert text == f"a number {'abcdefghij'[label]}"
        assert torch.equal(data.told(text), y)
    facts.check(data, "val", {"shape": [1, 8, 8], "levels": 17, "y": {"shape": [12], "levels": data.levels}})
    assert data.fingerprint != captioned(length=13).fingerprint
    assert torch.equal(data.to("cpu")[torch.arange(3)]["y"], batch["y"][:3])


def test_a_caption_that_cannot_be_told_is_refused_in_words():
    with pytest.raises(ValueError, match="has 10 tokens, and there is room for 5"):
        captioned(length=5)
    with pytest.raises(ValueError, match="character 'z' at position 0"):
        captioned().told("zebra")


def test_coloured_shapes_are_named_by_what_is_seen():
    data = ColouredShapes("val")
    hue = data.factors[:, 1] / 64
    for i, (y, turn) in enumerate(zip(data.y[:200].tolist(), hue.tolist(), strict=False)):
        near = min(range(6), key=lambda k: min(abs(turn - k / 6), 1 - abs(turn - k / 6)))
        middle = math.isclose((turn * 6) % 1, 0.5)
        assert middle or y // 8 == near
        assert y % 8 == data.factors[i, 0]


@pytest.mark.parametrize("name", ["digits_captions", "shapes_captions"])
@pytest.mark.parametrize("tokens", ["chars", "bytes"])
def test_a_caption_dataset_is_what_its_file_says(name, tokens):
    config = OmegaConf.to_container(composed("train", f"dataset={name}", f"tokens={tokens}"), resolve=True)
    data = build(config["dataset"]["source"])("val")
    facts.check(data, "val", config["dataset"])
    assert config["dataset"]["y"]["levels"] == data.levels
