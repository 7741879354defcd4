"""What every token mixer of configs/ promises: any length, any prompt, each precision, recomputation."""

import copy

import pytest
import torch
from mixers import BIDIRECTIONAL, MIXERS, description, network
from torch import Tensor, nn

from zoo.config import build
from zoo.models import Seq2Seq
from zoo.nn import checkpoint_blocks
from zoo.types import PAD

CAUSAL = [name for name in MIXERS if name not in BIDIRECTIONAL]
BOTH = [(name, True) for name in CAUSAL] + [(name, False) for name in MIXERS]
LENGTHS = (1, 2, 7, 13, 67)  # beyond chunks of 64


def made(mixer: str, causal: bool) -> nn.Module:
    """With an encoding that has no end: its own, or sinusoids where it may have none."""
    return network(mixer, "auto" if causal else "sinusoidal", causal)


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a part of the largest number."""
    error = (found.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < tolerance, float(error)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("mixer", CAUSAL)
@torch.no_grad()
def test_tokens_from_an_empty_prompt_on_are_the_parallel_form_at_any_length(mixer, T):
    model = made(mixer, True).backbone
    x = draws(2, T, 16)
    y, state = model.prefill(x[:, :0])
    assert y.shape == (2, 0, 16)
    outputs = []
    for t in range(T):
        y_t, state = model.step(x[:, t], state)
        outputs.append(y_t)
    near(torch.stack(outputs, 1), model(x), 1e-9)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_networks_that_see_all_take_any_length_and_each_example_alone(mixer):
    model = made(mixer, False).backbone
    for T in LENGTHS:
        x = draws(3, T, 16)
        y = model(x)
        assert y.isfinite().all()
        near(model(x[1:2]), y[1:2], 1e-9)


@pytest.mark.parametrize("mixer", CAUSAL)
@torch.no_grad()
def test_float32_is_near_float64_in_one_go_and_token_by_token(mixer):
    model = made(mixer, True).backbone
    x = draws(2, 70, 16)
    exact = model(x)
    model = model.float()
    near(model(x.float()), exact, 2e-4)
    _, state = model.prefill(x[:, :33].float())
    for t in range(33, 70):
        y_t, state = model.step(x[:, t].float(), state)
        near(y_t, exact[:, t], 2e-4)


@pytest.mark.parametrize(("mixer", "causal"), BOTH)
def test_half_precision_comes_near_and_has_gradients(mixer, causal):
    model = made(mixer, causal).backbone.float()
    for parameter in model.parameters():  # louder ones would amplify what is lost at first
        parameter.data.mul_(0.5)
    x = draws(2, 21, 16).float()
    exact = model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        if causal:
            _, state = model.prefill(x[:, :9])
            y_t, _ = model.step(x[:, 9], state)
            near(y_t.float(), exact[:, 9], 0.1)
    near(y.float(), exact, 0.1)
    y.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    y = model.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    near(y.float(), exact, 0.1)
    if causal:
        _, state = model.prefill(x[:, :9].bfloat16())
        y_t, _ = model.step(x[:, 9].bfloat16(), state)
        near(y_t.float(), exact[:, 9], 0.1)


@pytest.mark.parametrize("policy", ["full", "sqrt", "selective"])
@pytest.mark.parametrize(("mixer", "causal"), BOTH)
def test_blocks_that_are_computed_again_have_the_same_gradients(mixer, causal, policy):
    model = made(mixer, causal).train()
    again = copy.deepcopy(model)
    checkpoint_blocks(again, policy)
    x, y = torch.randint(5, (3, 1, 3, 4)), torch.arange(3)
    losses = []
    for one in (model, again):
        torch.manual_seed(1)
        loss = one.loss(x, y)["loss"]
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("mixer", CAUSAL)
@torch.no_grad()
def test_prompts_of_any_length_go_on_as_if_alone(mixer):
    model = made(mixer, True)
    prompt = torch.tensor([[1, 2, 3, 4, 0, 1, 2], [4, PAD, PAD, PAD, PAD, PAD, PAD], [PAD] * 7])
    prompt = torch.cat([prompt, torch.tensor([[3, 3, 1, PAD, PAD, PAD, PAD]])])
    x = model.sample(4, prompt=prompt, temperature=0).flatten(1).long()
    for row, length in enumerate((7, 1, 0, 3)):
        assert torch.equal(x[row, :length], prompt[row, :length])
        alone = model.sample(1, prompt=prompt[row : row + 1, :length], temperature=0)
        assert torch.equal(x[row], alone.flatten().long())
    # and what is drawn is what the parallel form finds most probable
    told = model(x.view(4, 1, 3, 4)).argmax(-1)
    for row, length in enumerate((7, 1, 0, 3)):
        assert torch.equal(x[row, length:], told[row, length:])


@pytest.mark.parametrize("mixer", CAUSAL)
@torch.no_grad()
def test_an_encoder_and_a_decoder_of_any_mixer_go_on_as_the_parallel_form_says(mixer):
    torch.manual_seed(0)
    kind = build(description(mixer, "auto", True)["mixer"])
    model = Seq2Seq(shape=(6,), levels=5, source_levels=4, dim=16, depth=2, heads=4, mixer=kind).double()
    for parameter in (*model.cross.parameters(), model.head.weight, model.source.weight):
        nn.init.normal_(parameter, std=0.4)
    y = torch.randint(4, (3, 5))
    x = model.sample(3, y, temperature=0)
    told = model(x, y)
    assert torch.equal(told.argmax(-1), x)
    assert (told - model(x, (y + 1) % 4)).abs().max() > 1e-6


@pytest.mark.parametrize("mixer", CAUSAL)
@torch.no_grad()
def test_an_example_without_a_token_goes_on_beside_others(mixer):
    model = made(mixer, True).backbone
    x, lengths, rows = draws(3, 12, 16), torch.tensor([0, 4, 1]), torch.arange(3)
    whole = model(x)
    _, state = model.prefill(x[:, :4], lengths)
    for t in range(7):
        y_t, state = model.step(x[rows, lengths + t], state)
        near(y_t, whole[rows, lengths + t], 1e-9)
