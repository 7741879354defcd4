"""Position encodings in a network: forwards and step by step, what they ask of it, and what they are refused for."""

from functools import partial

import pytest
import torch
import yaml
from conftest import ROOT
from positions import BOTH_SIDES, ENCODINGS, RELATIVE, WIDTH, T, attention, backbone, close, grouped
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from zoo.config.build import build
from zoo.nn import Attention, Backbone, NoPosition, Rotary, XPos
from zoo.nn.position import fits


class Ordered(nn.Module):
    """A mixer that can tell the order of tokens by itself."""

    honours = frozenset({"rotate"})
    ordered = True


@pytest.mark.parametrize("name", ENCODINGS)
def test_future_tokens_do_not_matter(name):
    network = backbone(name)
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    slope = jacobian(lambda x: network(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
    assert torch.equal(slope.triu(1), torch.zeros(6, 6, dtype=torch.float64))
    assert (slope.tril() + torch.ones(6, 6).triu(1) > 0).all()


@pytest.mark.parametrize("prompt", [0, 1, 7])
@pytest.mark.parametrize("name", ENCODINGS)
@torch.no_grad()
def test_a_prompt_and_steps_equal_the_parallel_form(name, prompt):
    network = backbone(name)
    x = torch.randn(2, T, 16, dtype=torch.float64)
    y, state = network.prefill(x[:, :prompt])
    outputs = list(y.unbind(1))
    for t in range(prompt, T):
        y_t, state = network.step(x[:, t], state)
        outputs.append(y_t)
    close(torch.stack(outputs, 1), network(x))


@pytest.mark.parametrize("name", ENCODINGS)
@torch.no_grad()
def test_prompts_of_unequal_length_go_on_as_if_alone(name):
    network = backbone(name)
    x = torch.randn(3, T, 16, dtype=torch.float64)
    lengths = torch.tensor([1, 6, 4])
    _, state = network.prefill(x[:, :6], lengths)
    rows, y = torch.arange(3), network(x)
    for i in range(10):
        y_t, state = network.step(x[rows, lengths + i], state)
        close(y_t, y[rows, lengths + i])


@pytest.mark.parametrize("name", ENCODINGS)
@torch.no_grad()
def test_single_precision_steps_are_near_the_parallel_form(name):
    network = backbone(name).float()
    x = torch.randn(2, T, 16)
    _, state = network.prefill(x[:, :3])
    for t in range(3, T):
        y_t, state = network.step(x[:, t], state)
    torch.testing.assert_close(y_t, network(x)[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BOTH_SIDES)
@torch.no_grad()
def test_order_matters_to_tokens_that_see_all(name):
    network = backbone(name, causal=False)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    order = torch.tensor([0, 5, 2, 3, 4, 1, 6, 7, 8])
    y = network(x)
    assert (network(x[:, order]) - y[:, order]).abs().max() > 1e-3
    assert (network(torch.cat([x[:, :8], -x[:, 8:]], 1))[0, 0] - y[0, 0]).abs().max() > 1e-6


@torch.no_grad()
def test_without_positions_order_does_not_matter():
    module = attention(NoPosition(16, 4))
    x, order = torch.randn(1, 9, 16, dtype=torch.float64), torch.randperm(9)
    close(module(x[:, order]), module(x)[:, order])


@pytest.mark.parametrize("name", ["none", "xpos"])
def test_what_needs_a_direction_is_refused_where_there_is_none(name):
    with pytest.raises(ValueError, match="does not work with bidirectional Attention"):
        backbone(name, causal=False)


def test_a_mixer_with_an_order_of_its_own_needs_no_positions_but_cannot_make_xpos_fade_both_ways():
    assert fits(NoPosition, Ordered, causal=False)
    assert fits(Rotary, Ordered, causal=False)
    assert fits(XPos, Ordered, causal=True)
    assert not fits(XPos, Ordered, causal=False)
    assert not fits(NoPosition, Attention, causal=False)


@pytest.mark.parametrize("name", RELATIVE)
@torch.no_grad()
def test_only_distances_matter(name):
    module = attention(ENCODINGS[name](16, 4), causal=True)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    outputs = []
    for t in (torch.arange(9), torch.arange(9) + 117, torch.arange(9) + torch.tensor([[5], [60]])):
        q, k, v = module.project(x, t)
        outputs.append(module.attend(q, k, v, t, t, causal=True))
    close(outputs[1], outputs[0])
    close(outputs[2], outputs[0])


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_parameter_gets_a_gradient(name):
    network = backbone(name)
    (network(torch.randn(2, 9, 16, dtype=torch.float64)) ** 3).sum().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        if part.endswith("table"):  # of positions that do occur
            assert parameter.grad.abs().sum() > 0, part
        elif "qkv.bias" not in part:
            assert parameter.grad.abs().max() > 0, part


@pytest.mark.parametrize("name", ENCODINGS)
def test_half_precision_stays_finite(name):
    network, x = backbone(name).float(), torch.randn(2, 11, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    y.float().pow(2).sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert (y - network(x)).abs().max() < 0.2
    assert network.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.parametrize("name", ENCODINGS)
@torch.no_grad()
def test_a_state_dict_is_all_that_a_network_is(name):
    network, other = backbone(name), backbone(name)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    for parameter in other.parameters():
        parameter.add_(1)
    assert (other(x) - network(x)).abs().max() > 1e-6
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/position").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_file_makes_an_encoding(path):
    position = build(yaml.safe_load(path.read_text()), "position")
    network = Backbone(16, 2, grouped, position=position, grid=(T // WIDTH, WIDTH))
    assert network(torch.randn(1, T, 16)).isfinite().all()


class Mean(nn.Module):
    """A mixer that honours no encoding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.cumsum(1))


@pytest.mark.parametrize("name", ["shaw", "transformer_xl", "deberta", "t5"])
def test_in_a_hybrid_no_parameter_is_left_over(name):
    network = backbone(name, mixer=[Mean, grouped], depth=4)
    assert network.blocks[1].mixer.position is network.position
    network(torch.randn(1, 9, 16, dtype=torch.float64)).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_blocks_share_what_the_papers_share():
    first, second = (block.mixer.position for block in backbone("t5").blocks)
    assert first is second
    first, second = (block.mixer.position for block in backbone("shaw").blocks)
    assert first.key_table is not second.key_table
    first, second = (block.mixer.position for block in backbone("deberta").blocks)
    assert first.table is second.table
    assert first.key.weight is not second.key.weight
    first, second = (block.mixer.position for block in backbone("transformer_xl").blocks)
    assert first.weight is not second.weight


@pytest.mark.parametrize("name", ["learned", "multiplicative"])
@torch.no_grad()
def test_a_table_ends_with_a_sentence(name):
    network = backbone(name)
    assert len(network.position.table) == T
    x = torch.randn(1, T + 1, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="position 20 is beyond a table of length=20"):
        network(x)
    _, state = network.prefill(x[:, :T])
    with pytest.raises(ValueError, match="position 20 is beyond a table of length=20"):
        network.step(x[:, T], state)
    with pytest.raises(ValueError, match="needs length"):
        Backbone(16, 1, grouped, position=ENCODINGS[name])
    given = Backbone(16, 1, grouped, position=partial(ENCODINGS[name], length=99), grid=(T,))
    assert len(given.position.table) == 99
