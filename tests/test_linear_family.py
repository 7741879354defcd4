"""What all mixers of linear recurrences share: no future, steps, prompts, numbers, refusals."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from zoo.nn import (
    ALiBi,
    Backbone,
    GatedDelta,
    LinearAttention,
    Mamba2,
    NoPosition,
    Performer,
    Retention,
    T5Bias,
    TransNormer,
    XPos,
)
from zoo.nn.linear_attention import exp, relu, taylor

mamba2 = partial(Mamba2, state=6, head=8, groups=2)
transnormer = partial(TransNormer, heads=4, block=4)
BACKBONES = {
    "linear": {"mixer": partial(LinearAttention, heads=4)},
    "linear, exp": {"mixer": partial(LinearAttention, heads=4, phi=exp), "position": NoPosition},
    "linear, relu": {"mixer": partial(LinearAttention, heads=4, phi=relu)},
    "linear, taylor": {"mixer": partial(LinearAttention, heads=4, phi=taylor), "position": NoPosition},
    "linear, alibi": {"mixer": partial(LinearAttention, heads=4), "position": ALiBi},
    "performer": {"mixer": partial(Performer, heads=4)},
    "performer, alibi": {"mixer": partial(Performer, heads=4), "position": ALiBi},
    "retention": {"mixer": partial(Retention, heads=4)},
    "mamba2": {"mixer": mamba2},
    "delta": {"mixer": partial(GatedDelta, heads=4, decay=False, negative=True)},
    "gated delta": {"mixer": partial(GatedDelta, heads=4)},
    "transnormer": {"mixer": transnormer},
}


def backbone(name, **options):
    torch.manual_seed(0)
    network = Backbone(16, 2, **BACKBONES[name], **options).double()
    for label, parameter in network.named_parameters():
        if "A_log" not in label and "dt_bias" not in label:
            nn.init.normal_(parameter, std=0.4)
    return network


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BACKBONES)
def test_future_tokens_do_not_matter(name):
    network = backbone(name)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    x[0, -1] *= 10
    slope = jacobian(lambda x: network(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
    assert torch.equal(slope.triu(1), torch.zeros(9, 9, dtype=torch.float64))
    if name != "transnormer":  # whose early layers see their block only
        assert (slope.tril() + torch.ones(9, 9).triu(1) > 0).all()


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_large_token_changes_nothing_before_it(name, size):
    network = backbone(name)
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    other = x.clone()
    other[:, 8] *= size
    close(network.blocks[0].mixer(other)[:, :8], network.blocks[0].mixer(x)[:, :8])


@pytest.mark.parametrize("prompt", [1, 4, 9])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_prompt_and_steps_equal_the_parallel_form(name, prompt):
    network = backbone(name)
    x = torch.randn(2, 24, 16, dtype=torch.float64)
    y, state = network.prefill(x[:, :prompt])
    outputs = list(y.unbind(1))
    for t in range(prompt, 24):
        y_t, state = network.step(x[:, t], state)
        outputs.append(y_t)
    close(torch.stack(outputs, 1), network(x), 1e-9)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_prompts_of_unequal_length_go_on_as_if_alone(name):
    network = backbone(name)
    x = torch.randn(4, 20, 16, dtype=torch.float64)
    lengths = torch.tensor([1, 8, 5, 4])
    _, state = network.prefill(x[:, :8], lengths)
    rows = torch.arange(4)
    for i in range(12):
        y_t, state = network.step(x[rows, lengths + i], state)
        close(y_t, network(x)[rows, lengths + i], 1e-9)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_mixer_steps_from_an_empty_prompt(name):
    mixer = backbone(name).blocks[-1].mixer
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    y, state = mixer.prefill(x[:, :0])
    assert y.shape == (2, 0, 16)
    outputs = []
    for t in range(6):
        y_t, state = mixer.step(x[:, t], state)
        outputs.append(y_t)
    close(torch.stack(outputs, 1), mixer(x), 1e-9)


def numbers(state):
    if isinstance(state, torch.Tensor):
        return state.numel()
    return sum(numbers(part) for part in state or ())


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_the_state_does_not_grow(name):
    network = backbone(name).float()
    _, state = network.prefill(torch.randn(1, 3, 16))
    before = numbers(state)
    for _ in range(20):
        _, state = network.step(torch.randn(1, 16), state)
    assert numbers(state) == before == numbers(network.prefill(torch.randn(1, 50, 16))[1])


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient(name):
    network = backbone(name)
    network(torch.randn(2, 11, 16).double()).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("name", BACKBONES)
def test_float32_and_half_precision_come_close(name):
    network = backbone(name)
    x = torch.randn(2, 70, 16).double()
    y = network(x).detach()
    network = network.float()
    single = network(x.float())
    torch.testing.assert_close(single.double(), y, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x.float())
        half.square().sum().backward()
        after, state = network.prefill(x[:, :69].float())
        last, _ = network.step(x[:, 69].float(), state)
    error = (half.double() - y).square().mean() / y.square().mean()
    assert error < 0.01, error
    assert last.isfinite().all()
    assert after.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [*BACKBONES])
@torch.no_grad()
def test_huge_inputs_give_numbers(name):
    mixer = backbone(name).float().blocks[-1].mixer
    assert mixer(torch.randn(2, 20, 16) * 1e3).isfinite().all()


@pytest.mark.parametrize("name", ["linear", "performer", "transnormer"])
@torch.no_grad()
def test_bidirectional_forms_see_all_and_have_no_state(name):
    network = Backbone(16, 2, BACKBONES[name]["mixer"], causal=False)
    x = torch.randn(1, 4, 16)
    other = torch.cat([x[:, :3], torch.randn(1, 1, 16)], 1)
    assert (network(x)[0, 0] - network(other)[0, 0]).abs().max() > 1e-6
    with pytest.raises(ValueError, match="causal=True"):
        network.prefill(x)


@pytest.mark.parametrize("name", ["linear", "performer", "transnormer"])
def test_encodings_of_scores_are_refused_where_there_are_no_scores(name):
    with pytest.raises(ValueError, match=r"position=T5Bias does not work with causal .* it takes .*Rotary"):
        Backbone(16, 2, BACKBONES[name]["mixer"], position=T5Bias)
    with pytest.raises(ValueError, match=r"position=NoPosition does not work with bidirectional"):
        Backbone(16, 2, BACKBONES[name]["mixer"], position=NoPosition, causal=False)


def test_what_cannot_be_built_is_refused_with_a_cure():
    with pytest.raises(ValueError, match=r"position=XPos does not work with causal LinearAttention"):
        Backbone(16, 1, BACKBONES["linear"]["mixer"], position=XPos)
    for name in ("linear", "performer"):
        mixer = BACKBONES[name]["mixer"]
        with pytest.raises(ValueError, match=r"ALiBi does not work with bidirectional .*it takes .*Rotary"):
            Backbone(16, 1, mixer, position=ALiBi, causal=False)
        with pytest.raises(ValueError, match=r"ALiBi is a decay of the past.*Rotary"):
            mixer(16, position=ALiBi(16, 4), causal=False)
    with pytest.raises(ValueError, match=r"phi makes 15 features of 4.*try phi=elu1"):
        Backbone(16, 1, partial(LinearAttention, heads=4, phi=taylor))
    with pytest.raises(ValueError, match="dim=100 cannot be split over heads=8; try heads=10"):
        LinearAttention(100)
    with pytest.raises(ValueError, match=r"3 wide.*try dim=16"):
        Retention(12, 4)
    with pytest.raises(ValueError, match="heads of head=48; try head=64"):
        Mamba2(64, head=48)
    with pytest.raises(ValueError, match="groups=3; try groups=4"):
        Mamba2(64, head=32, groups=3)
