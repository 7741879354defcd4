"""Diffusion Transformers: patches, blocks that a condition modulates, two streams."""

import math
from functools import partial

import pytest
import torch
from mixers import MIXERS, description
from torch import nn

from zoo.config import build
from zoo.nn import (
    Attention,
    Bidirectional,
    Condition,
    DiT,
    MMDiT,
    NoPosition,
    Sinusoidal2D,
    checkpoint_blocks,
)
from zoo.nn.grid_position import centred
from zoo.nn.patches import patchify, unpatchify
from zoo.types import Unfit

SHAPE, C = (3, 6, 8), 5  # 3 x 4 patches
MODELS = {
    "dit": partial(DiT, dim=16, depth=2, mixer=partial(Attention, heads=2)),
    "mmdit": partial(MMDiT, dim=16, depth=2, heads=2),
}


def network(name, **options):
    """A small one whose weights all matter."""
    torch.manual_seed(0)
    model = MODELS[name](SHAPE, C, **options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.double()


def batch(shape=SHAPE):
    torch.manual_seed(1)
    c = Condition(
        torch.randn(2, C).double(),
        torch.randn(2, 4, C).double(),
        torch.tensor([[True, True, False, False], [True, True, True, True]]),
    )
    return torch.randn(2, *shape).double(), torch.rand(2).double(), c


def test_patches_are_put_together_again():
    x = torch.arange(2 * 3 * 6 * 8.0).view(2, 3, 6, 8)
    patches = patchify(x, 2)
    assert patches.shape == (2, 12, 12)
    torch.testing.assert_close(unpatchify(patches, (3, 6, 8), 2), x)
    # the second patch of the first row: its row, column and channel in this order
    assert patches[0, 1].view(2, 2, 3)[1, 0].tolist() == x[0, :, 1, 2].tolist()


def test_dit_b_has_the_papers_parameters():
    with torch.device("meta"):
        model = DiT((4, 32, 32), None, dim=768, depth=12, mixer=partial(Attention, heads=12))
    # 130 M with a table of 1,001 classes (Peebles & Xie 2022, table 1), which tell noise and its variance
    more = 1001 * 768 + 769 * 16
    assert round((sum(p.numel() for p in model.parameters()) + more) / 1e6) == 130


@pytest.mark.parametrize("name", MODELS)
def test_it_tells_zero_at_first_and_its_blocks_nothing(name):
    x, t, c = batch()
    model = MODELS[name](SHAPE, C).double()
    assert model(x, t, c).abs().max() == 0
    tokens, h = torch.randn(2, 12, 16).double(), torch.randn(2, 16).double()
    if name == "dit":
        assert torch.equal(model.blocks[0](tokens, h), tokens)
    else:
        read = torch.randn(2, 4, 16).double()
        out = model.blocks[0](tokens, read, h, None)
        assert torch.equal(out[0], tokens)
        assert torch.equal(out[1], read)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_reaches_every_parameter(name):
    model = network(name)
    model(*batch()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", ["full", "sqrt", "selective", 2])
def test_checkpointing_changes_no_gradient(name, policy):
    gradients = []
    for chosen in ("none", policy):
        model = network(name).train()
        checkpoint_blocks(model, chosen)
        model(*batch()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_time_and_vector_change_what_it_tells(name):
    x, t, c = batch()
    model = network(name)
    y = model(x, t, c)
    assert (model(x, t + 0.3, c) - y).abs().flatten(1).max(1).values.min() > 1e-6
    assert (model(x, t, c._replace(vector=c.vector + 1)) - y).abs().flatten(1).max(1).values.min() > 1e-6


def test_mmdit_reads_the_words_that_are_there_and_no_others():
    x, t, c = batch()
    model = network("mmdit")
    y = model(x, t, c)
    for word, seen in ((1, True), (2, False)):
        tokens = c.tokens.clone()
        tokens[0, word] += 1
        change = (model(x, t, c._replace(tokens=tokens)) - y).abs().flatten(1).max(1).values
        assert bool(change[0] > 1e-9) == seen
        assert change[1] == 0


@pytest.mark.parametrize("name", MODELS)
def test_examples_do_not_see_each_other(name):
    x, t, c = batch()
    model = network(name)
    turned = Condition(*(part.flip(0) for part in c))
    torch.testing.assert_close(model(x.flip(0), t.flip(0), turned).flip(0), model(x, t, c))


def test_patches_that_move_with_their_positions_move_in_the_output():
    x, _, _ = batch()
    model = network("dit")
    order = torch.randperm(12)
    tokens, h = model.enter(patchify(x, 2)), torch.randn(2, 16).double()

    def through(tokens, places):
        tokens = model.net.enter(tokens, places, 0)
        for block in model.blocks:
            tokens = block(tokens, h)
        return tokens

    place = torch.arange(12)
    torch.testing.assert_close(through(tokens[:, order], place[order]), through(tokens, place)[:, order])
    assert (through(tokens[:, order], place) - through(tokens, place)[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_of_the_zoo_stands_in_a_dit_and_sees_all_patches(mixer):
    built = build(description(mixer, "sinusoidal", False)["mixer"])
    torch.manual_seed(0)
    depth = 4 if mixer == "window" else 2  # each looks three tokens further
    model = DiT(SHAPE, None, dim=16, depth=depth, mixer=built)
    for block in model.blocks:
        nn.init.normal_(block.modulation.weight, std=0.3)
    nn.init.normal_(model.leave.weight, std=0.3)
    model.double().eval()
    x, t, _ = batch()
    x.requires_grad_()
    y = model(x, t)
    for corner in ((slice(0, 2), slice(0, 2)), (slice(4, 6), slice(6, 8))):
        (seen,) = torch.autograd.grad(y[0, :, *corner].sum(), x, retain_graph=True)
        assert patchify(seen, 2)[0].abs().sum(1).min() > 0, "a patch is not seen"
        assert seen[1].abs().sum() == 0
    looks_back_only = "causal" not in getattr(built, "func", built).__init__.__code__.co_varnames
    assert looks_back_only == isinstance(model.blocks[0].block.mixer, Bidirectional)


def test_an_encoding_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="position=NoPosition does not work with bidirectional Attention"):
        DiT(SHAPE, None, dim=16, depth=1, mixer=partial(Attention, heads=2), position=NoPosition)


def test_what_cannot_be_made_is_refused_in_words():
    with pytest.raises(Unfit, match=r"shape=\[3, 7, 8\] is cut into patches of 2 x 2"):
        DiT((3, 7, 8), None)
    with pytest.raises(ValueError, match=r"made for \(3, 6, 8\), and x is \(3, 8, 8\)"):
        network("dit")(*batch((3, 8, 8)))
    with pytest.raises(Unfit, match="is cut into patches"):
        network("mmdit")(*batch((3, 5, 8)))
    with pytest.raises(ValueError, match="an MMDiT reads words"):
        MMDiT(SHAPE, None)
    with pytest.raises(ValueError, match="dim=16 cannot be split over heads=3; try heads=4"):
        MMDiT(SHAPE, C, dim=16, heads=3)
    with pytest.raises(ValueError, match=r"dim=18 cannot be dealt out .* try 20"):
        MMDiT(SHAPE, C, dim=18, heads=2)
    with pytest.raises(ValueError, match="Sinusoidal2D needs width"):
        Sinusoidal2D(8)


def test_sinusoids_of_rows_and_columns_are_written_out():
    position = Sinusoidal2D(8, width=4)
    x = position.embed(torch.zeros(1, 12, 8).double(), torch.arange(12), 0)[0]
    for t in range(12):
        row, column = divmod(t, 4)
        expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos) for w in (1, 0.01)]
        torch.testing.assert_close(x[t], torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)
    assert torch.equal(position.embed(x, torch.arange(12), 1), x)


def test_a_larger_grid_has_the_trained_one_in_its_middle():
    like = torch.zeros(1, 1, 8).double()
    trained = centred((2, 4), (2, 4), like).view(2, 4, 8)
    larger = centred((4, 8), (2, 4), like).view(4, 8, 8)
    smaller = centred((2, 2), (2, 4), like).view(2, 2, 8)
    torch.testing.assert_close(larger[1:3, 2:6], trained)
    torch.testing.assert_close(smaller, trained[:, 1:3])
    model, (x, t, c) = network("mmdit"), batch((3, 12, 16))
    assert model(x, t, c).shape == x.shape


def test_no_score_of_an_mmdit_is_larger_than_its_gains_allow():
    model = network("mmdit")
    stream, d = model.blocks[0].patches, 8
    x = 1e3 * torch.randn(2, 12, 16).double()
    q, k, _ = stream.project(x, stream.modulate(torch.randn(2, 16).double()))
    bound = math.sqrt(d) * stream.q_norm.weight.abs().max() * stream.k_norm.weight.abs().max()
    scores = (q @ k.mT / math.sqrt(d)).abs()
    assert scores.max() <= bound
    assert scores.max() > bound / 100


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch's, of a slower kernel
def test_half_precision_is_near(name):
    x, t, c = batch()
    model = network(name).float()
    x, t, c = x.float(), t.float(), Condition(c.vector.float(), c.tokens.float(), c.mask)
    full = model(x, t, c)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, t, c)
    assert (half - full).norm() < 0.1 * full.norm()
    half.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
