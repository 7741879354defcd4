"""The Transformer: its attention, its positions, its cache, and the model of tokens around them."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from zoo.models import Autoregressive
from zoo.models.decoding import Decoding
from zoo.models.tokens import arranged, sequence
from zoo.nn import Attention, Backbone, NoPosition, Position, Rotary
from zoo.types import PAD, Density, Measured, Sampler, Space, Unfit, can


class Everywhere(Position):
    """An encoding that acts in each place where one can, by numbers that depend on positions and content."""

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x + torch.sin(t.to(x) + layer).unsqueeze(-1)

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t if t.ndim == 1 else t.unsqueeze(1)
        return q * torch.cos(t.to(q)).unsqueeze(-1), k * torch.sin(t.to(k)).unsqueeze(-1)

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        b = torch.cos((t_q.unsqueeze(-1) * 3 - t_k.unsqueeze(-2)).double())
        return b.unsqueeze(-3)

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        return torch.sin(q @ k.mT) + self.bias(t_q, t_k)

    def values(self, weights: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        return (weights * self.bias(t_q, t_k)).sum(-1, keepdim=True)


class Biased(Position):
    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        return (t_k.unsqueeze(-2) - t_q.unsqueeze(-1)).double().unsqueeze(-3) / 2


class Recurrence(nn.Module):
    """A mixer that honours no encoding and stands for the whole block: a running mean."""

    whole = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.cumsum(1))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.cumsum(1)
        last = total[:, -1] if lengths is None else total[torch.arange(len(x)), lengths - 1]
        return self.out(total), last

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(state + x_t), state + x_t


four = partial(Attention, heads=4)
BACKBONES = {
    "rotary": {"mixer": four},
    "no positions": {"mixer": four, "position": NoPosition},
    "grouped queries": {"mixer": partial(Attention, heads=4, kv_heads=2, qk_norm=True)},
    "one key head, a bias": {"mixer": partial(Attention, heads=4, kv_heads=1), "position": Biased},
    "every place": {"mixer": partial(Attention, heads=4, kv_heads=2), "position": Everywhere},
    "hybrid": {"mixer": [Recurrence, four]},
}


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    network = Backbone(16, 3, **BACKBONES[name]).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def model(**options: object) -> Autoregressive:
    torch.manual_seed(0)
    settings = {"shape": (8,), "levels": 2, "dim": 16, "depth": 2, "mixer": four, **options}
    network = Autoregressive(**settings).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


@pytest.mark.parametrize("name", BACKBONES)
def test_future_tokens_do_not_matter(name):
    network = backbone(name)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    slope = jacobian(lambda x: network(x)[0].sum(-1), x)[:, 0].abs().sum(-1)  # (5, 5): output, input
    assert torch.equal(slope.triu(1), torch.zeros(5, 5, dtype=torch.float64))
    assert (slope.tril() + torch.ones(5, 5).triu(1) > 0).all()


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
    torch.testing.assert_close(torch.stack(outputs, 1), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_prompts_of_unequal_length_go_on_as_if_alone(name):
    network = backbone(name)
    x = torch.randn(3, 20, 16, dtype=torch.float64)
    lengths = torch.tensor([1, 6, 4])
    _, state = network.prefill(x[:, :6], lengths)
    rows = torch.arange(3)
    for i in range(12):
        y_t, state = network.step(x[rows, lengths + i], state)
        torch.testing.assert_close(y_t, network(x)[rows, lengths + i], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_attention_steps_from_an_empty_prompt():
    attention = Attention(16, 4, position=Rotary(16, 4)).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    _, state = attention.prefill(x[:, :0])
    outputs = [attention.step(x[:, t], state)[0] for t in range(5)]
    torch.testing.assert_close(torch.stack(outputs, 1), attention(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_cache_is_copied_as_often_as_it_doubles():
    attention = Attention(8, 2)
    _, state = attention.prefill(torch.randn(1, 1, 8))
    places = set()
    for _ in range(200):
        _, state = attention.step(torch.randn(1, 8), state)
        places.add(state.k.shape[2])
    assert places == {16, 32, 64, 128, 256}


@torch.no_grad()
def test_attention_equals_the_formula_written_out():
    attention = Attention(16, 4).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = attention.qkv(x).unflatten(-1, (3, 4, 4)).unbind(2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    y = attention.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))
    torch.testing.assert_close(attention(x), y, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_grouped_queries_equal_repeated_heads():
    grouped, full = (Attention(16, 4, kv_heads=heads, position=Rotary(16, 4)).double() for heads in (2, 4))
    q, k, v = grouped.qkv.weight.unflatten(0, (8, 4)).split((4, 2, 2))
    full.qkv.weight.copy_(torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1))
    full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=1e-10, atol=1e-10)


def test_rotary_keeps_lengths_and_depends_on_distance_only():
    rotary = Rotary(16, 2)
    q, k = torch.randn(2, 1, 2, 1, 8, dtype=torch.float64).expand(2, 1, 2, 12, 8)
    t = torch.arange(12)
    turned_q, turned_k = rotary.rotate(q, k, t)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(turned_q[..., 0, :], q[..., 0, :], rtol=0, atol=0)
    scores = turned_q @ turned_k.mT  # the same content everywhere
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], rtol=1e-10, atol=1e-10)
    assert (scores[..., 0, 1:] - scores[..., 0, :1]).abs().min() > 1e-6
    torch.testing.assert_close(rotary.rotate(q, k, t[None] + 5)[0][..., :7, :], turned_q[..., 5:, :])


def test_rotary_turns_neighbouring_features_by_the_papers_angle():
    q = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned, _ = Rotary(4).rotate(q, q, torch.tensor([3]))
    a, b = torch.tensor(3.0), torch.tensor(0.03)
    torch.testing.assert_close(turned.flatten(), torch.stack([a.cos(), a.sin(), -b.sin(), b.cos()]))


def test_bidirectional_attention_sees_all_and_has_no_state():
    network = Backbone(16, 1, four, causal=False)
    x = torch.randn(1, 4, 16)
    other = torch.cat([x[:, :3], torch.randn(1, 1, 16)], 1)
    assert (network(x)[0, 0] - network(other)[0, 0]).abs().max() > 1e-6
    with pytest.raises(ValueError, match="causal=True"):
        network.prefill(x)


def test_the_mixers_own_position_is_taken_and_named():
    assert Backbone(16, 1, four).position_name == "Rotary"
    assert Backbone(16, 1, Recurrence).position_name == "NoPosition"
    hybrid = Backbone(16, 2, [Recurrence, four])
    assert hybrid.position_name == "Rotary"
    assert hybrid.blocks[0].mlp is None
    assert hybrid.blocks[1].mixer.position is hybrid.position


def test_an_encoding_that_a_mixer_cannot_honour_is_refused_with_those_that_fit():
    with pytest.raises(ValueError, match=r"position=Rotary does not work with causal Recurrence.*NoPosition"):
        Backbone(16, 1, Recurrence, position=Rotary)
    with pytest.raises(ValueError, match=r"position=NoPosition .* bidirectional Attention; .*Rotary"):
        Backbone(16, 1, four, position=NoPosition, causal=False)
    with pytest.raises(ValueError, match=r"heads=\[2, 4\] cannot share"):
        Backbone(16, 2, [four, partial(Attention, heads=2)])


def test_widths_that_cannot_be_split_are_refused_with_ones_that_can():
    with pytest.raises(ValueError, match="dim=100 cannot be split over heads=8; try heads=10"):
        Attention(100, 8)
    with pytest.raises(ValueError, match="heads=8 cannot share kv_heads=3; try kv_heads=4"):
        Attention(64, 8, kv_heads=3)
    with pytest.raises(ValueError, match="9 wide"):
        Rotary(72, 8)


def test_residual_branches_start_small():
    network = Backbone(64, 8, four)
    for block in network.blocks:
        for branch, first in ((block.mixer, block.mixer.qkv), (block.mlp, block.mlp.inner)):
            assert first.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
            out = branch.out.weight
            assert out.std().item() == pytest.approx((3 * out.shape[1]) ** -0.5 / 4, rel=0.1)


@pytest.mark.parametrize("name", ["rotary", "every place", "hybrid"])
@torch.no_grad()
def test_probabilities_of_all_binary_strings_sum_to_one(name):
    x = torch.tensor(list(product([0, 1], repeat=8)))
    assert model(**BACKBONES[name]).log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_for_each_label():
    network = model(shape=(2, 2, 2), classes=3, conditional=True)
    x = torch.tensor(list(product([0, 1], repeat=8)), dtype=torch.uint8).view(-1, 2, 2, 2)
    chances = torch.stack([network.log_prob(x, torch.full((256,), y)).exp() for y in range(3)])
    torch.testing.assert_close(chances.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (chances[0] - chances[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs y"):
        network.log_prob(x)


def test_images_are_read_by_row_column_and_channel():
    x = torch.arange(12).view(1, 3, 2, 2).to(torch.uint8)
    assert sequence(x)[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(arranged(sequence(x), (3, 2, 2), 256), x)
    network = model(shape=(3, 2, 2), levels=256)
    assert network.protocol == {"order": "row, column, channel"}


@torch.no_grad()
def test_a_white_pixel_is_not_taken_for_padding():
    network = model(shape=(1, 2, 2), levels=256)
    white = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    assert network.statistics(white)["tokens"] == 8
    assert network.loss(white)["nats"] == pytest.approx(-network.log_prob(white).mean().item())


@torch.no_grad()
def test_padding_is_neither_counted_nor_seen():
    network = model(levels=5)
    x = torch.randint(5, (2, 8))
    short = x.clone()
    short[1, 3:] = PAD
    terms = network.loss(short)
    assert terms["nats"] == pytest.approx(-network.log_prob(short).mean().item())
    assert terms["loss"] == pytest.approx(-network.log_prob(short).sum().item() / 11)
    alone = model(levels=5, shape=(3,)).log_prob(x[1:, :3])
    torch.testing.assert_close(network.log_prob(short)[1:], alone)
    torch.testing.assert_close(network(short)[:, :4], network(x)[:, :4])
    assert network.statistics(short)["tokens"] == 11


def test_accuracy_counts_the_tokens_that_were_the_most_probable():
    network = model(levels=5)
    x = torch.randint(5, (64, 8))
    x[0, 4:] = PAD
    right = (network(x).argmax(-1) == x).sum() / (64 * 8 - 4)
    assert network.summarize(network.statistics(x)) == {"accuracy": pytest.approx(right.item())}


def test_the_model_has_the_abilities_it_claims():
    assert all(can(model(), ability) for ability in (Density, Sampler, Measured))
    assert model().kind == "exact"


def test_every_parameter_gets_a_gradient():
    for options in ({}, {"tie": True}, {"shape": (1,)}, {"classes": 2, "conditional": True}):
        network = model(**options)
        network.loss(torch.randint(2, (4, *network.shape)), torch.tensor([0, 1, 0, 1]))["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_tied_head_is_the_embedding():
    network = Autoregressive(shape=(4,), levels=7, dim=16, depth=1, mixer=four, tie=True)
    assert network.head.weight is network.embed.weight


@torch.no_grad()
def test_a_length_of_one_works():
    network = model(shape=(1,), levels=3)
    assert network.sample(5).shape == (5, 1)
    assert network.log_prob(torch.arange(3)[:, None]).exp().sum().item() == pytest.approx(1)


def test_half_precision_comes_close():
    network = model(levels=5).float()
    x = torch.randint(5, (4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        half = network.log_prob(x)
        samples = network.sample(2, prompt=x[:2, :3])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, network.log_prob(x), rtol=2e-2, atol=2e-1)
    assert torch.equal(samples[:, :3], x[:2, :3])


def test_samples_have_the_shape_and_levels_of_the_data():
    image = model(shape=(3, 2, 2), levels=4, classes=2, conditional=True)
    x = image.sample(6)
    assert x.shape == (6, 3, 2, 2)
    assert x.dtype == torch.uint8
    assert x.max() < 4
    assert model(shape=(5,), levels=9).sample(3).shape == (3, 5)


def test_samples_follow_the_models_own_probabilities():
    network = model(shape=(3,))
    strings = torch.tensor(list(product([0, 1], repeat=3)))
    torch.manual_seed(0)
    x = network.sample(20000)
    seen = torch.bincount((x * torch.tensor([4, 2, 1])).sum(1), minlength=8) / 20000
    torch.testing.assert_close(seen, network.log_prob(strings).exp().float(), rtol=0, atol=0.015)


def test_samples_keep_their_prompts_and_go_on_as_each_would_alone():
    network = model(shape=(12,), levels=9)
    prompt = torch.tensor([[1, 2, 3, 4], [5, PAD, PAD, PAD], [PAD, PAD, PAD, PAD], [6, 7, PAD, PAD]])
    x = network.sample(4, prompt=prompt, temperature=0)
    assert (x[:, :4][prompt != PAD] == prompt[prompt != PAD]).all()
    for row, length in enumerate((4, 1, 0, 2)):
        alone = network.sample(1, prompt=prompt[row : row + 1, :length], temperature=0)
        assert torch.equal(x[row], alone[0])
    assert torch.equal(network.sample(4, prompt=x), x)


def test_greedy_samples_are_the_most_probable_tokens():
    network = model(levels=9)
    x = network.sample(3, temperature=0)
    assert torch.equal(network(x).argmax(-1), x)


def test_a_bad_prompt_or_temperature_is_refused():
    network = model()
    for prompt in (torch.zeros(3, 2), torch.zeros(2, 9), torch.tensor([[PAD, 1], [0, 1]])):
        with pytest.raises(ValueError, match="prompt of shape"):
            network.sample(2, prompt=prompt)
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="nothing to draw from"):
            network.sample(2, **options)


def test_top_k_and_top_p_leave_the_most_probable_tokens():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]]).log()
    assert Decoding(top_k=2).restricted(logits).isfinite().tolist() == [
        [False, True, False, True],
        [True, False, True, False],
    ]
    assert Decoding(top_p=0.65).restricted(logits).isfinite().tolist() == [
        [False, True, False, True],
        [True] + [False] * 3,
    ]
    assert torch.equal(Decoding(top_k=9, top_p=1.0).restricted(logits), logits)


def test_temperature_sharpens_what_is_drawn():
    p = torch.tensor([0.5, 0.3, 0.2])
    torch.manual_seed(0)
    drawn = Decoding(temperature=0.5)(p.log().expand(20000, 3))
    torch.testing.assert_close(drawn.bincount() / 20000, p**2 / (p**2).sum(), rtol=0, atol=0.015)


def test_real_numbers_and_missing_classes_are_refused():
    with pytest.raises(Unfit) as refusal:
        model(levels=None)
    assert refusal.value.fits(Space((4,), 3))
    assert not refusal.value.fits(Space((4,)))
    with pytest.raises(ValueError, match="conditional=true"):
        model(conditional=True)


def test_a_tiny_model_learns_a_pattern():
    torch.manual_seed(0)
    network = Autoregressive(shape=(12,), levels=4, dim=32, depth=1, mixer=four)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x = (torch.arange(12) + torch.arange(4)[:, None]) % 4  # all is told by the first token
    for _ in range(80):
        optimizer.zero_grad()
        network.loss(x)["loss"].backward()
        optimizer.step()
    assert network.loss(x)["nats"] < torch.tensor(4.0).log() + 0.1
    tail = network.sample(8, prompt=torch.arange(8)[:, None] % 4, temperature=0)
    assert torch.equal(tail[:, 1:], (tail[:, :-1] + 1) % 4)
