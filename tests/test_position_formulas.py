"""Position encodings one by one, against their formulas."""

import math

import pytest
import torch
from positions import ENCODINGS, WIDTH, attention, backbone, close, grouped, heads_of
from torch import nn

from zoo.nn import (
    KERPLE,
    ALiBi,
    Backbone,
    ConvPosition,
    DeBERTa,
    LearnedPosition,
    MultiplicativePosition,
    RecurrentPosition,
    Rotary,
    Rotary2D,
    Shaw,
    SinusoidalPosition,
    T5Bias,
    TransformerXL,
    XPos,
)
from zoo.nn.relative_position import alibi_slopes, t5_bucket
from zoo.nn.rotary_position import turned, turned_real, unit


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
def test_positions_flow_in_single_precision_whatever_their_weights_have():
    half = RecurrentPosition(6).bfloat16()
    half.first.add_(1)  # where a step of 0.002 is lost
    exact = RecurrentPosition(6)
    exact.load_state_dict(half.state_dict())
    torch.testing.assert_close(half.flow(30), exact.flow(30))


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
    close(
        Rotary(64, ntk=4.0).rotate(q, q, t)[0], b
    )  # queries of a width of their own, in a gated attention unit


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


def test_turning_by_an_angle_is_a_rotation():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    angle = torch.randn(4, 3, dtype=torch.float64)
    a, b = x[..., ::2], x[..., 1::2]
    written = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    close(turned(x, unit(angle)), written.flatten(-2))
    close(turned_real(x.unflatten(-1, (-1, 2)), unit(angle)), written)  # what is compiled
