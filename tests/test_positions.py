"""Position encodings: in attention, forwards and step by step, against their formulas and other libraries."""

import math
from functools import partial

import pytest
import torch
import yaml
from conftest import ROOT
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from zoo.config.build import build
from zoo.nn import (
    KERPLE,
    ALiBi,
    Attention,
    Backbone,
    ConvPosition,
    DeBERTa,
    LearnedPosition,
    MultiplicativePosition,
    NoPosition,
    Position,
    RecurrentPosition,
    Rotary,
    Rotary2D,
    Shaw,
    Sinusoidal2D,
    SinusoidalPosition,
    T5Bias,
    TransformerXL,
    XPos,
)
from zoo.nn.position import fits
from zoo.nn.relative_position import alibi_slopes, t5_bucket
from zoo.nn.rotary_position import turned, turned_real, unit

ENCODINGS = {
    "none": NoPosition,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "sinusoidal2d": Sinusoidal2D,
    "multiplicative": MultiplicativePosition,
    "recurrent": partial(RecurrentPosition, delta=0.3),
    "conv": ConvPosition,
    "rope": Rotary,
    "rope, longer": partial(Rotary, interpolation=2.0, ntk=4.0),
    "rope2d": Rotary2D,
    "xpos": partial(XPos, scale=10.0),
    "alibi": ALiBi,
    "kerple": KERPLE,
    "kerple, power": partial(KERPLE, power=True),
    "t5": partial(T5Bias, buckets=8, max_distance=12),
    "transformer_xl": TransformerXL,
    "deberta": partial(DeBERTa, span=4),
    "shaw": partial(Shaw, clip=3),
}
RELATIVE = [
    "rope",
    "rope, longer",
    "xpos",
    "alibi",
    "kerple",
    "kerple, power",
    "t5",
    "transformer_xl",
    "deberta",
    "shaw",
]
BOTH_SIDES = [name for name in ENCODINGS if name not in ("none", "xpos")]
T, WIDTH = 20, 4
grouped = partial(Attention, heads=4, kv_heads=2)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


class Ordered(nn.Module):
    """A mixer that can tell the order of tokens by itself."""

    honours = frozenset({"rotate"})
    ordered = True


def backbone(name: str, *, causal: bool = True, mixer: object = grouped, depth: int = 2) -> Backbone:
    torch.manual_seed(0)
    network = Backbone(
        16, depth, mixer, position=ENCODINGS[name], causal=causal, grid=(T // WIDTH, WIDTH)
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def attention(position: Position, *, causal: bool = False) -> Attention:
    torch.manual_seed(0)
    module = Attention(16, 4, causal=causal, position=position).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def heads_of(module: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (B, H, T, d), before any position."""
    return module.qkv(x).unflatten(-1, (3, 4, 4)).movedim(2, 0).transpose(2, 3).unbind()


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


@torch.no_grad()
def test_learned_positions_are_added_or_multiplied():
    x = torch.randn(2, 3, 16)
    t = torch.tensor([[0, 1, 2], [2, 2, 0]])
    added, times = LearnedPosition(16, length=3), MultiplicativePosition(16, length=3)
    torch.testing.assert_close(added.embed(x, t, 0), x + added.table[t])
    torch.testing.assert_close(times.embed(x, t, 0), x * times.table[t])
    assert added.table.abs().max() < 0.2
    assert (times.table - 1).abs().max() < 0.2
    assert torch.equal(added.embed(x, t, 1), x)


def test_sinusoids_are_the_papers():
    zero = torch.zeros(1, 30, 8, dtype=torch.float64)
    table = SinusoidalPosition(8).embed(zero, torch.arange(30), 0)[0]
    for t, i in ((0, 0), (3, 1), (29, 3)):
        angle = t / 10000 ** (2 * i / 8)
        close(
            table[t, 2 * i : 2 * i + 2], torch.tensor([math.sin(angle), math.cos(angle)]).double(), atol=1e-6
        )
    products = table @ table.T
    close(products[1:, 1:], products[:-1, :-1])
    with pytest.raises(ValueError, match="try dim=8"):
        SinusoidalPosition(7)


@torch.no_grad()
def test_the_flow_of_positions_is_integrated_to_fourth_order():
    torch.manual_seed(0)
    one, half, quarter = (RecurrentPosition(6, delta=d).double() for d in (0.5, 0.25, 0.125))
    for finer in (half, quarter):
        finer.load_state_dict(one.state_dict())
    a, b, c = one.flow(9)[8], half.flow(17)[16], quarter.flow(33)[32]
    assert 13 < (a - b).norm() / (b - c).norm() < 19
    nn.init.zeros_(one.outer.weight)
    nn.init.zeros_(one.outer.bias)
    assert torch.equal(one.flow(5), one.first.expand(5, 6))


@torch.no_grad()
def test_positions_that_flow_are_kept_and_never_stale():
    position = RecurrentPosition(4)
    x, t = torch.zeros(1, 40, 4), torch.arange(40)
    first = position.embed(x, t, 0)
    kept = position.kept[1]
    assert torch.equal(position.embed(x, t, 0), first)
    assert position.kept[1] is kept
    changes = (
        lambda: position.first.add_(1),
        lambda: position.inner.weight.data.mul_(2),
        lambda: setattr(position.clock, "data", torch.ones(4)),
        lambda: position.load_state_dict(RecurrentPosition(4).state_dict()),
    )
    for change in changes:
        change()
        fresh = torch.stack(list(position.flow(40)))
        assert not torch.equal(fresh, first[0])
        first = position.embed(x, t, 0)
        torch.testing.assert_close(first[0], fresh)
    assert len(position.positions(300)) >= 300
    with torch.enable_grad():
        assert position.embed(x, t, 0).requires_grad
    assert position.double().embed(x.double(), t, 0).dtype == torch.float64


@torch.no_grad()
def test_positions_that_flow_are_made_anew_as_often_as_they_double():
    position = RecurrentPosition(2)
    lengths = set()
    for t in range(70):
        position.embed(torch.zeros(1, 1, 2), torch.tensor([t]), 0)
        lengths.add(len(position.kept[1]))
    assert lengths == {16, 32, 64, 128}


@torch.no_grad()
def test_a_convolution_sees_as_many_tokens_as_its_kernel():
    position = ConvPosition(3, kernel=3)
    x = torch.randn(1, 7, 3)
    y, w = position.embed(x, torch.arange(7), 0), position.conv.weight[:, 0]
    for t in range(7):
        sum_k = sum(w[:, 2 - k] * x[0, t - k] for k in range(3) if t >= k)
        torch.testing.assert_close(y[0, t], x[0, t] + sum_k)


def test_interpolation_divides_positions_and_ntk_slows_the_slowest_pair():
    q = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    t = torch.arange(6)
    plain, longer = Rotary(8), Rotary(8, interpolation=4.0)
    close(longer.rotate(q, q, 4 * t)[0], plain.rotate(q, q, t)[0])
    wider = Rotary(8, ntk=4.0)
    a, b = plain.rotate(q, q, t)[0], wider.rotate(q, q, t)[0]
    close(a[..., :2], b[..., :2])
    close(wider.rotate(q, q, 4 * t)[0][..., 6:], a[..., 6:])
    assert (a[..., 1:, 2:4] - b[..., 1:, 2:4]).abs().min() > 1e-6


def test_rows_and_columns_are_turned_apart():
    position = Rotary2D(8, width=5)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 40, 8)
    q, k = position.rotate(q, k, torch.arange(40))
    scores = (q @ k.mT)[0, 0].unflatten(0, (8, 5)).unflatten(-1, (8, 5))  # row, column; row, column
    close(scores[1:, :, 1:], scores[:-1, :, :-1])
    close(scores[:, 1:, :, 1:], scores[:, :-1, :, :-1])
    assert (scores[0, 0, 1, 0] - scores[0, 0, 0, 1]).abs() > 1e-3
    # the second half stands still down a column, the first along a row
    close(q[..., 5, 4:], q[..., 0, 4:])
    close(q[..., 1, :4], q[..., 0, :4])


def test_an_image_needs_rows_and_a_head_that_can_be_quartered():
    with pytest.raises(ValueError, match="needs width"):
        Backbone(16, 1, grouped, position=Rotary2D, grid=(20,))
    with pytest.raises(ValueError, match=r"6 wide.*try dim=32"):
        Rotary2D(24, 4, width=2)
    assert backbone("rope2d").position.width == WIDTH
    with pytest.raises(ValueError, match=r"3 wide.*try dim=16"):
        XPos(12, 4)


def test_xpos_fades_by_the_papers_factor():
    one = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(4).expand(1, 1, 50, 8)
    t, n = torch.arange(50), torch.arange(50, dtype=torch.float64)
    q, k = XPos(8).rotate(one, one, t)
    plain, _ = Rotary(8).rotate(one, one, t)
    for i in range(4):
        pair = slice(2 * i, 2 * i + 2)
        z = (2 * i / 8 + 0.4) / 1.4
        scores = q[0, 0, :, pair] @ k[0, 0, 0, pair]
        close(scores, (plain[0, 0, :, pair] @ plain[0, 0, 0, pair]) * z ** (n / 512))


def test_xpos_is_finite_after_thirty_thousand_positions():
    x = torch.randn(1, 1, 1, 8)
    q, k = XPos(8).rotate(x, x, torch.tensor([30000]))
    plain = (x * x).sum()
    torch.testing.assert_close((q * k).sum(), plain, rtol=1e-4, atol=1e-4)


def test_alibi_slopes_are_the_papers():
    def exponents(heads):
        return (-alibi_slopes(heads).log2()).tolist()

    assert exponents(8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert exponents(16) == [i / 2 for i in range(1, 17)]
    assert exponents(12) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5])
    assert exponents(1) == [8]
    assert exponents(3) == [4, 8, 2]
    bias = ALiBi(16, 2).bias(torch.tensor([3]), torch.arange(5))
    torch.testing.assert_close(
        bias, -torch.tensor([[[3.0, 2, 1, 0, 1]]]) * torch.tensor([1 / 16, 1 / 256])[:, None, None]
    )


def test_kerple_is_its_formula_and_a_power_of_one_is_alibi():
    torch.manual_seed(0)
    t = torch.arange(6)
    n = (t[:, None] - t).abs()
    log, power = KERPLE(16, 3), KERPLE(16, 3, power=True)
    for h in range(3):
        torch.testing.assert_close(log.bias(t, t)[h], -log.r1[h] * torch.log(1 + log.r2[h] * n))
        torch.testing.assert_close(power.bias(t, t)[h], -power.r1[h] * n ** power.r2[h])
    with torch.no_grad():
        power.raw2.zero_()  # r2 = 1
        power.raw1.copy_(alibi_slopes(3).expm1().log())
    torch.testing.assert_close(power.bias(t, t), ALiBi(16, 3).bias(t, t))
    power.bias(t, t).sum().backward()
    assert power.raw2.grad.isfinite().all()
    assert power.raw2.grad.abs().min() > 0


def test_kerple_starts_as_its_authors_draw_it():
    torch.manual_seed(0)
    log, power = KERPLE(16, 5000), KERPLE(16, 5000, power=True)
    for r, most in ((log.r1, 2), (log.r2, 1), (power.r1, 1), (power.r2, 2)):
        assert r.mean().item() == pytest.approx(most / 2, rel=0.05)
        assert r.max().item() == pytest.approx(most, rel=0.03)
        assert r.min().item() == pytest.approx(0.01 * most, rel=0.03)


# first distance of each bucket, of 32 up to distance 128
CAUSAL = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
PAST = [*range(9), 12, 16, 23, 32, 46, 64, 91]


def test_t5_buckets_are_the_published_ones():
    n = torch.arange(-200, 200)
    causal, both = t5_bucket(n, causal=True), t5_bucket(n, causal=False)
    for distance, a, b in zip(n.tolist(), causal.tolist(), both.tolist(), strict=True):
        past = sum(first <= abs(distance) for first in PAST) - 1
        assert a == (sum(first <= distance for first in CAUSAL) - 1 if distance > 0 else 0)
        assert b == (past + 16 if distance < 0 else past)


def test_t5_buckets_that_cannot_be_dealt_out_are_refused():
    for options in ({"buckets": 6}, {"buckets": 32, "max_distance": 8}, {"buckets": 7, "causal": True}):
        with pytest.raises(ValueError, match="cannot be dealt out"):
            T5Bias(16, 4, **options)
    assert backbone("t5").position.causal
    assert not backbone("t5", causal=False).position.causal


@torch.no_grad()
def test_shaw_is_its_formula():
    module = attention(Shaw(16, 4, clip=2))
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = heads_of(module, x)
    t = torch.arange(7)
    n = (t[:, None] - t).clamp(-2, 2) + 2
    a, b = module.position.key_table[n], module.position.value_table[n]  # (T, T, d)
    weights = (torch.einsum("bhid,bhijd->bhij", q, k.unsqueeze(2) + a) / 2).softmax(-1)
    close(module(x), module.merge(torch.einsum("bhij,bhijd->bhid", weights, v.unsqueeze(2) + b)))


@torch.no_grad()
def test_transformer_xl_is_its_formula():
    module = attention(TransformerXL(16, 4))
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = heads_of(module, x)
    p, t = module.position, torch.arange(7, dtype=torch.float64)
    angle = (t[:, None] - t).unsqueeze(-1) * 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    r = torch.einsum("hdD,ijD->hijd", p.weight, torch.cat([angle.sin(), angle.cos()], -1))
    scores = (q + p.u) @ k.mT + torch.einsum("bhid,hijd->bhij", q + p.v, r)
    close(module(x), module.merge((scores / 2).softmax(-1) @ v))


@torch.no_grad()
def test_deberta_is_its_formula():
    module = attention(DeBERTa(16, 4, span=3))
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = heads_of(module, x)
    p, t = module.position, torch.arange(7)
    n = (t[:, None] - t).clamp(-3, 2) + 3
    keys, queries = (
        linear(p.table)[n].unflatten(-1, (4, 4)).movedim(2, 0) for linear in (p.key, p.query)
    )  # (H, T, T, d)
    scores = q @ k.mT + torch.einsum("bhid,hijd->bhij", q, keys) + torch.einsum("bhjd,hijd->bhij", k, queries)
    close(module(x), module.merge((scores / math.sqrt(12)).softmax(-1) @ v))


@pytest.mark.parametrize("name", ["shaw", "transformer_xl", "deberta", "t5"])
@torch.no_grad()
def test_with_tables_of_zeros_attention_is_plain(name):
    module = attention(ENCODINGS[name](16, 4))
    for parameter in module.position.parameters():
        parameter.zero_()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = heads_of(module, x)
    scale = math.sqrt(12 if name == "deberta" else 4)
    close(module(x), module.merge((q @ k.mT / scale).softmax(-1) @ v))


def copied(module: Attention, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear | None) -> None:
    """Give attention the weights of another library's linear maps; out None is the identity."""
    biases = [torch.zeros(16).double() if linear.bias is None else linear.bias for linear in (q, k, v)]
    module.qkv.weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
    module.qkv.bias.copy_(torch.cat(biases))
    module.out.weight.copy_(torch.eye(16) if out is None else out.weight)
    module.out.bias.zero_()


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_t5_agrees_with_transformers(causal):
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=16, d_kv=4, num_heads=4, dropout_rate=0.0, is_decoder=causal)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()
    nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = attention(T5Bias(16, 4, causal=causal), causal=causal)
    copied(ours, theirs.q, theirs.k, theirs.v, theirs.o)
    ours.qkv.weight[:16] *= 2  # T5 does not divide by sqrt(d)
    ours.position.table.copy_(theirs.relative_attention_bias.weight.T)
    n = torch.arange(-300, 300)
    bucket = theirs._relative_position_bucket(-n, bidirectional=not causal)
    assert torch.equal(t5_bucket(n, causal=causal), bucket)
    t = torch.arange(300)
    close(ours.position.bias(t, t), theirs.compute_bias(300, 300)[0])
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    mask = torch.zeros(40, 40).double().masked_fill(torch.ones(40, 40).triu(1).bool() & causal, -torch.inf)
    close(ours(x), theirs(x, mask=mask.expand(2, 1, 40, 40))[0])


@pytest.mark.parametrize("T", [5, 12])
@torch.no_grad()
def test_deberta_agrees_with_transformers(T):
    from transformers import DebertaConfig
    from transformers.models.deberta.modeling_deberta import (
        DisentangledSelfAttention,
        build_relative_position,
    )

    config = DebertaConfig(
        hidden_size=16,
        num_attention_heads=4,
        relative_attention=True,
        max_relative_positions=8,
        pos_att_type=["c2p", "p2c"],
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = DisentangledSelfAttention(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = attention(DeBERTa(16, 4, span=8))
    q, k, v = (nn.Linear(16, 16).double() for _ in range(3))
    for i, linear in enumerate((q, k, v)):  # their map is split by heads, then into q, k and v
        linear.weight.copy_(theirs.in_proj.weight.unflatten(0, (4, 3, 4))[:, i].flatten(0, 1))
        linear.bias.copy_((theirs.q_bias, torch.zeros(16), theirs.v_bias)[i])
    copied(ours, q, k, v, None)
    ours.position.key.load_state_dict(theirs.pos_proj.state_dict())
    ours.position.query.load_state_dict(theirs.pos_q_proj.state_dict())
    x = torch.randn(2, T, 16, dtype=torch.float64)
    y, _ = theirs(
        x,
        torch.ones(2, 1, T, T),
        relative_pos=build_relative_position(x, x),
        rel_embeddings=ours.position.table.detach(),
    )
    torch.testing.assert_close(ours(x), y, rtol=1e-6, atol=1e-6)  # their scale is float32


@torch.no_grad()
def test_deberta_agrees_with_the_second_version_too():
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2.modeling_deberta_v2 import (
        DisentangledSelfAttention,
        build_relative_position,
    )

    config = DebertaV2Config(
        hidden_size=16,
        num_attention_heads=4,
        relative_attention=True,
        max_relative_positions=8,
        pos_att_type=["c2p", "p2c"],
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = DisentangledSelfAttention(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = attention(DeBERTa(16, 4, span=8))
    copied(ours, theirs.query_proj, theirs.key_proj, theirs.value_proj, None)
    # a bias of theirs adds the same to a query's scores with all keys
    ours.position.key.weight.copy_(theirs.pos_key_proj.weight)
    ours.position.query.load_state_dict(theirs.pos_query_proj.state_dict())
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    y, _ = theirs(
        x,
        torch.ones(2, 1, 12, 12),
        relative_pos=build_relative_position(x, x),
        rel_embeddings=ours.position.table.detach(),
    )
    torch.testing.assert_close(ours(x), y, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_transformer_xl_agrees_with_xlnet():
    from transformers import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetModel

    config = XLNetConfig(
        vocab_size=5, d_model=16, n_head=4, n_layer=1, d_inner=16, dropout=0.0, attn_type="bi"
    )
    model = XLNetModel(config).double().eval()
    theirs = model.layer[0].rel_attn
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    theirs.seg_embed.zero_()
    ours = attention(TransformerXL(16, 4))
    q, k, v = torch.randn(3, 2, 4, 7, 4, dtype=torch.float64)
    ours.position.weight.copy_(theirs.r.permute(1, 2, 0))
    ours.position.u.copy_(theirs.r_w_bias.unsqueeze(1))
    ours.position.v.copy_(theirs.r_r_bias.unsqueeze(1))
    distances = model.relative_positional_encoding(7, 7).double()
    r = torch.einsum("ibh,hnd->ibnd", distances, theirs.r)
    y = theirs.rel_attn_core(*(z.permute(2, 0, 1, 3) for z in (q, k, v)), r)  # (T, B, H, d)
    t = torch.arange(7)
    torch.testing.assert_close(ours.attend(q, k, v, t, t), y.permute(1, 2, 0, 3), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rotary_agrees_with_transformers():
    from transformers import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    for options, rope in (
        ({}, parameters),
        ({"interpolation": 4.0}, {**parameters, "rope_type": "linear", "factor": 4.0}),
    ):
        config = GPTNeoXConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
        q, k = torch.randn(2, 2, 4, 30, 8)
        cos, sin = GPTNeoXRotaryEmbedding(config)(q, torch.arange(30)[None])
        halves = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
        theirs = apply_rotary_pos_emb(q[..., halves], k[..., halves], cos, sin)
        ours = Rotary(32, 4, **options).rotate(q, k, torch.arange(30))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[..., halves], b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_whole_network_agrees_with_gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXModel

    config = GPTNeoXConfig(
        vocab_size=3,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=64,
        hidden_act="gelu",
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    )
    theirs = GPTNeoXModel(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = Backbone(16, 2, partial(Attention, heads=2), position=Rotary).double()
    # their features lie by heads, then by q, k, v; pairs that turn together are half a head apart, ours neighbours
    turned = torch.arange(8).view(2, 4).T.flatten()
    for mine, layer in zip(ours.blocks, theirs.layers, strict=True):
        for kind in ("weight", "bias"):
            q, k, v = getattr(layer.attention.query_key_value, kind).unflatten(0, (2, 3, 8)).unbind(1)
            parts = [q[:, turned], k[:, turned], v]
            getattr(mine.mixer.qkv, kind).copy_(torch.cat([part.flatten(0, 1) for part in parts]))
        for here, there in (
            (mine.mixer.out, layer.attention.dense),
            (mine.mlp.inner, layer.mlp.dense_h_to_4h),
            (mine.mlp.out, layer.mlp.dense_4h_to_h),
            (mine.mixer_norm, layer.input_layernorm),
            (mine.mlp_norm, layer.post_attention_layernorm),
        ):
            here.load_state_dict(there.state_dict())
    ours.norm.load_state_dict(theirs.final_layer_norm.state_dict())
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    # their angles are float32
    torch.testing.assert_close(ours(x), theirs(inputs_embeds=x).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_alibi_agrees_with_bloom():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for heads in (4, 6, 12):
        theirs = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)  # m_h t_k, of each head
        bias = ALiBi(48, heads).bias(torch.tensor([8]), torch.arange(9))
        torch.testing.assert_close(bias - bias[..., :1], theirs - theirs[..., :1])


def test_turning_by_an_angle_is_a_rotation():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    angle = torch.randn(4, 3, dtype=torch.float64)
    a, b = x[..., ::2], x[..., 1::2]
    written = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    close(turned(x, unit(angle)), written.flatten(-2))
    close(turned_real(x.unflatten(-1, (-1, 2)), unit(angle)), written)  # what is compiled
