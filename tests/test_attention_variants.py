"""Attention that sees less, costs less or does more; feed-forward blocks, norms, and where norms stand."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.models import Autoregressive
from zoo.nn import (
    KERPLE,
    ALiBi,
    Attention,
    Backbone,
    Block,
    FeedForward,
    GatedAttention,
    GatedFeedForward,
    LearnedPosition,
    MixedChunk,
    NoPosition,
    Nystrom,
    Rotary,
    Shaw,
    SlidingWindow,
    SquaredReLU,
    Strided,
    T5Bias,
    TransformerXL,
)
from zoo.nn.nystrom import nystrom, pseudo_inverse, segment_means

four = partial(Attention, heads=4)
window = partial(SlidingWindow, heads=4, window=5)
strided = partial(Strided, heads=4, stride=4)
gau = partial(GatedAttention, width=6)
flash = partial(MixedChunk, width=6, chunk=4)
CAUSAL = {
    "capped": {"mixer": partial(four, cap=2.0)},
    "capped, Shaw": {"mixer": partial(four, cap=2.0), "position": Shaw},
    "after": {"mixer": four, "norm_first": False},
    "gated": {"mixer": four, "mlp": GatedFeedForward, "norm": nn.RMSNorm},
    "window": {"mixer": window},
    "window of one": {"mixer": partial(SlidingWindow, heads=4, window=1)},
    "window, shared keys, ALiBi": {"mixer": partial(window, kv_heads=2, qk_norm=True), "position": ALiBi},
    "window, Transformer-XL": {"mixer": partial(window, cap=3.0), "position": TransformerXL},
    "strided": {"mixer": strided},
    "strided, shared keys, Shaw": {"mixer": partial(strided, kv_heads=1), "position": Shaw},
    "strided, T5": {"mixer": strided, "position": T5Bias},
    "gau": {"mixer": gau},
    "gau, KERPLE": {"mixer": gau, "position": KERPLE},
    "gau, learned": {"mixer": gau, "position": partial(LearnedPosition, length=24)},
    "flash": {"mixer": flash},
    "flash, ALiBi": {"mixer": flash, "position": ALiBi},
    "hybrid": {"mixer": [gau, flash, partial(GatedAttention, width=6)]},
}
BIDIRECTIONAL = {
    "window": window,
    "strided": strided,
    "gau": gau,
    "flash": flash,
    "nystrom": partial(Nystrom, heads=4, landmarks=4, kernel=3),
}


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    network = Backbone(16, 2, **CAUSAL[name]).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CAUSAL)
def test_future_tokens_do_not_matter(name):
    network = backbone(name)
    x = random(1, 11, 16)
    slope = jacobian(lambda x: network(x)[0].sum(-1), x)[:, 0].abs().sum(-1)  # (11, 11): output, input
    assert slope.triu(1).max() == 0
    assert slope.diagonal().min() > 0


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_prompt_and_steps_equal_the_parallel_form(name, prompt):
    network = backbone(name)
    x = random(2, 19, 16)
    y, state = network.prefill(x[:, :prompt])
    outputs = list(y.unbind(1))
    for t in range(prompt, 19):
        y_t, state = network.step(x[:, t], state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_prompts_of_unequal_length_go_on_as_if_alone(name):
    network = backbone(name)
    x = random(4, 20, 16)
    lengths = torch.tensor([1, 9, 4, 5])
    _, state = network.prefill(x[:, :9], lengths)
    expected, rows = network(x), torch.arange(4)
    for i in range(11):
        y_t, state = network.step(x[rows, lengths + i], state)
        torch.testing.assert_close(y_t, expected[rows, lengths + i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [1, 2, 7, 12])
@torch.no_grad()
def test_blocks_equal_the_whole_matrix(T, causal):
    x = random(2, T, 16)
    for size in (1, 2, 3, 4, 12, 20):
        for encoding in (Rotary, T5Bias, Shaw):
            options = {"causal": causal, "position": drawn(encoding(16, 4))}
            mixers = [SlidingWindow(16, 4, window=size, cap=5.0, kv_heads=2, **options)]
            mixers += [Strided(16, 4, stride=size, layer=layer, kv_heads=2, **options) for layer in (0, 1)]
            if encoding is not Shaw:
                single = {"causal": causal, "position": drawn(encoding(16, 1))}
                mixers.append(MixedChunk(16, chunk=size, width=6, **single))
            for mixer in mixers:
                drawn(mixer)
                torch.testing.assert_close(mixer(x), mixer.naive(x), rtol=1e-10, atol=1e-10)


def test_a_window_is_what_is_seen():
    for causal in (True, False):
        mixer = drawn(SlidingWindow(16, 4, window=3, causal=causal))
        x = random(1, 10, 16)
        slope = jacobian(lambda x, mixer=mixer: mixer(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
        distance = torch.arange(10)[:, None] - torch.arange(10)
        near = (distance < 3) & (distance > (-1 if causal else -3))
        assert torch.equal(slope > 0, near)


def test_layers_of_windows_see_a_window_less_one_more_each():
    network = drawn(Backbone(16, 3, partial(SlidingWindow, heads=4, window=4)))
    x = random(1, 16, 16).requires_grad_()
    network(x)[0, -1].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    assert int(seen.sum()) == 3 * (4 - 1) + 1


def test_rows_and_columns_take_turns_and_reach_all_that_came_before():
    x = random(1, 20, 16)
    reach = []
    for layer in (0, 1):
        mixer = drawn(Strided(16, 4, stride=4, layer=layer))
        slope = jacobian(lambda x, mixer=mixer: mixer(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
        reach.append(slope > 0)
    distance = torch.arange(20)[:, None] - torch.arange(20)
    assert torch.equal(reach[0], (distance >= 0) & (distance < 4))
    assert torch.equal(reach[1], (distance >= 0) & (distance % 4 == 0))
    for first, second in (reach, reach[::-1]):
        assert torch.equal((second.double() @ first.double()) > 0, distance >= 0)


@torch.no_grad()
def test_a_window_as_long_as_the_text_is_plain_attention():
    full = drawn(Attention(16, 4, position=Rotary(16, 4)))
    mixer = SlidingWindow(16, 4, window=9, position=Rotary(16, 4)).double()
    mixer.attention.load_state_dict(full.state_dict())
    x = random(2, 9, 16)
    torch.testing.assert_close(mixer(x), full(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_window_remembers_no_more_than_it_sees():
    mixer = SlidingWindow(16, 4, window=5)
    _, state = mixer.prefill(torch.randn(2, 11, 16))
    for _ in range(9):
        assert state.k.shape == state.v.shape == (2, 4, 4, 4)
        _, state = mixer.step(torch.randn(2, 16), state)
    assert state.t.tolist() == [20]


class Largest(TorchDispatchMode):
    """Sees how much memory each tensor that is made has, in numbers."""

    size = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().size() / tensor.itemsize)
        return made


@torch.no_grad()
def test_no_matrix_of_all_pairs_is_made():
    x = torch.randn(1, 2048, 8)
    for mixer in (
        SlidingWindow(8, 2, window=16, position=ALiBi(8, 2)),
        Strided(8, 2, stride=45, layer=0),
        Strided(8, 2, stride=45, layer=1, position=T5Bias(8, 2)),
        MixedChunk(8, chunk=16, width=8),
        Nystrom(8, 2, landmarks=16),
    ):
        with Largest() as largest:
            mixer(x)
        assert largest.size < 2048 * 2048 / 8, type(mixer).__name__


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional_mixers_see_both_sides_and_have_no_state(name):
    network = drawn(Backbone(16, 3, BIDIRECTIONAL[name], causal=False))
    x = random(1, 9, 16)
    slope = jacobian(lambda x: network(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
    assert (slope.diagonal(1) > 0).all()
    assert (slope.diagonal(-1) > 0).all()
    with pytest.raises(ValueError, match=r"causal=True|has no step"):
        network.prefill(x)


def test_landmarks_in_a_causal_model_are_refused_with_what_works():
    with pytest.raises(
        ValueError, match="cannot be causal; take it in a bidirectional model, as model=roformer"
    ):
        Autoregressive(shape=(8,), levels=3, dim=16, depth=1, mixer=BIDIRECTIONAL["nystrom"])
    with pytest.raises(ValueError, match="try kernel=5"):
        Nystrom(16, 4, kernel=4)
    with pytest.raises(ValueError, match="try heads="):
        Nystrom(18, 4)


@torch.no_grad()
def test_a_landmark_for_each_token_is_softmax_attention():
    torch.manual_seed(0)
    q, k, v = random(3, 2, 4, 12, 8).unbind()
    full = nn.functional.scaled_dot_product_attention(q, k, v)
    for landmarks in (12, 50):
        torch.testing.assert_close(nystrom(q, k, v, landmarks, 20), full, rtol=1e-8, atol=1e-8)
    error = (nystrom(q, k, v, 12, 6) - full).norm() / full.norm()
    assert 1e-3 < error < 1  # six iterations are short of an inverse


@torch.no_grad()
def test_landmarks_equal_the_formula_and_the_last_segment_may_be_short():
    q, k, v = random(3, 1, 1, 10, 4).unbind()
    means = [torch.stack([part.mean(0) for part in x[0, 0].split(4)]) for x in (q, k)]  # 4, 4 and 2 tokens
    torch.testing.assert_close(segment_means(q, 3)[0, 0], means[0])
    first, middle, last = (
        (a @ b.T / 2).softmax(-1) for a, b in ((q[0, 0], means[1]), (means[0], means[1]), (means[0], k[0, 0]))
    )
    expected = first @ torch.linalg.pinv(middle) @ last @ v[0, 0]
    torch.testing.assert_close(nystrom(q, k, v, 3, 30)[0, 0], expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_an_inverse_does_not_depend_on_the_rest_of_the_batch():
    a = random(3, 5, 5).softmax(-1)
    a[1] = torch.eye(5) * 0.9 + 0.02
    torch.testing.assert_close(pseudo_inverse(a, 6)[:1], pseudo_inverse(a[:1], 6), rtol=0, atol=0)
    torch.testing.assert_close(pseudo_inverse(a, 40), torch.linalg.inv(a), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_landmarks_equal_those_of_transformers():
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_landmarks=3,
        segment_means_seq_len=12,
        conv_kernel_size=5,
        attention_probs_dropout_prob=0.0,
    )
    theirs = NystromformerSelfAttention(config).eval()
    theirs.init_option = "each matrix by itself"
    ours = Nystrom(16, 4, landmarks=3, kernel=5)
    linears = (theirs.query, theirs.key, theirs.value)
    ours.qkv.weight.copy_(torch.cat([linear.weight for linear in linears]))
    ours.qkv.bias.copy_(torch.cat([linear.bias for linear in linears]))
    ours.conv.load_state_dict(theirs.conv.state_dict())
    ours.out = nn.Identity()
    x = torch.randn(2, 12, 16)
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_gated_unit_equals_the_formula_written_out(causal):
    unit = drawn(GatedAttention(8, width=4, causal=causal, position=drawn(KERPLE(8, 1))))
    x = random(1, 6, 8)
    u, v, q, k = unit.project(x, torch.arange(6))
    bias = unit.position.bias(torch.arange(6), torch.arange(6)).view(6, 6)
    for t in range(6):
        seen = range(t + 1) if causal else range(6)
        total = sum((q[0, 0, t] @ k[0, 0, s] / 2 + bias[t, s]).relu() ** 2 * v[0, s] for s in seen)
        expected = unit.out(u[0, t] * total / len(seen))
        torch.testing.assert_close(unit(x)[0, t], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_gate_of_zero_lets_nothing_through():
    for mixer in (GatedAttention(8, width=4), MixedChunk(8, width=4)):
        drawn(mixer)
        mixer.gate.inner.weight[:16] = 0  # u
        mixer.gate.inner.bias[:16] = 0
        torch.testing.assert_close(mixer(random(1, 5, 8)), mixer.out.bias.expand(1, 5, 8), rtol=0, atol=0)


def test_whole_units_get_no_feed_forward_block():
    network = Backbone(16, 2, [gau, flash])
    assert all(block.mlp is None for block in network.blocks)


@torch.no_grad()
def test_a_cap_bounds_scores_and_a_large_one_does_nothing():
    plain, capped = Attention(16, 4).double(), Attention(16, 4, cap=3.0).double()
    capped.load_state_dict(drawn(plain).state_dict())
    x = 9 * random(2, 7, 16)
    q, k, v = plain.project(x, torch.arange(7))
    scores = 3 * torch.tanh(q @ k.mT / 2 / 3)
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    torch.testing.assert_close(capped(x), plain.merge(scores.softmax(-1) @ v), rtol=1e-10, atol=1e-10)
    capped.cap = 1e9
    torch.testing.assert_close(capped(x), plain(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="cap=0 bounds"):
        Attention(16, 4, cap=0)


def test_sizes_that_are_none_are_refused():
    for build in (
        partial(SlidingWindow, window=0),
        partial(Strided, stride=0, layer=1),
        partial(MixedChunk, chunk=0),
        partial(GatedAttention, width=3),
    ):
        with pytest.raises(ValueError, match=r"=0|=3"):
            build(16)


@pytest.mark.parametrize("name", [*CAUSAL, "nystrom"])
def test_half_precision_comes_close_and_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    options = CAUSAL.get(name) or {"mixer": BIDIRECTIONAL["nystrom"], "causal": False}
    network = Backbone(16, 2, **options)
    x = torch.randn(2, 13, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    torch.testing.assert_close(y.float(), network(x), rtol=5e-2, atol=1e-1)
    y.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_large_scores_have_finite_gradients():
    for name in ("capped", "window", "strided", "gau, KERPLE", "flash"):
        network = Backbone(16, 1, **CAUSAL[name])
        x = (1e4 * torch.randn(1, 9, 16)).requires_grad_()
        network(x).sum().backward()
        assert x.grad.isfinite().all(), name


@pytest.mark.parametrize("mixer", [window, strided, gau, flash])
def test_a_tiny_model_learns_a_pattern(mixer):
    torch.manual_seed(0)
    network = Autoregressive(shape=(12,), levels=4, dim=32, depth=2, mixer=mixer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x = (torch.arange(12) + torch.arange(4)[:, None]) % 4
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(x)["loss"].backward()
        optimizer.step()
    assert network.loss(x)["nats"] < math.log(4) + 0.1
    tail = network.sample(8, prompt=torch.arange(8)[:, None] % 4, temperature=0)
    assert torch.equal(tail[:, 1:], (tail[:, :-1] + 1) % 4)


@torch.no_grad()
def test_feed_forward_blocks_equal_their_formulas():
    x = random(3, 12)
    gated = drawn(GatedFeedForward(12, bias=True))
    gate, inner = gated.inner(x).chunk(2, -1)
    torch.testing.assert_close(gated(x), gated.out(gate * gate.sigmoid() * inner))
    squared = drawn(FeedForward(12, activation=SquaredReLU))
    torch.testing.assert_close(squared(x), squared.out(squared.inner(x).clamp(min=0) ** 2))


def test_gated_blocks_have_the_parameters_of_plain_ones():
    count = {
        build: sum(p.numel() for p in build(96, bias=False).parameters())
        for build in (FeedForward, GatedFeedForward)
    }
    assert count[FeedForward] == count[GatedFeedForward] == 8 * 96**2


@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_a_block_equals_that_of_torch(norm_first):
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    ours = Block(16, partial(four, causal=False), mlp=FeedForward, norm_first=norm_first)
    drawn(theirs)
    drawn(ours)
    for mine, other in (
        (ours.mixer_norm, theirs.norm1),
        (ours.mlp_norm, theirs.norm2),
        (ours.mixer.out, theirs.self_attn.out_proj),
        (ours.mlp.inner, theirs.linear1),
        (ours.mlp.out, theirs.linear2),
    ):
        mine.load_state_dict(other.state_dict())
    ours.mixer.qkv.weight.copy_(theirs.self_attn.in_proj_weight)
    ours.mixer.qkv.bias.copy_(theirs.self_attn.in_proj_bias)
    x = random(2, 7, 16)
    torch.testing.assert_close(ours(x), theirs.train()(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_backbone_equals_gpt2_of_transformers():
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=11, n_positions=9, n_embd=16, n_layer=3, n_head=4, activation_function="gelu"
    )
    theirs = drawn(GPT2Model(config).eval())
    ours = Backbone(16, 3, four, position=partial(LearnedPosition, length=9)).double()
    ours.position.table.copy_(theirs.wpe.weight)
    ours.norm.load_state_dict(theirs.ln_f.state_dict())
    for mine, other in zip(ours.blocks, theirs.h, strict=True):
        mine.mixer_norm.load_state_dict(other.ln_1.state_dict())
        mine.mlp_norm.load_state_dict(other.ln_2.state_dict())
        for linear, conv in (
            (mine.mixer.qkv, other.attn.c_attn),
            (mine.mixer.out, other.attn.c_proj),
            (mine.mlp.inner, other.mlp.c_fc),
            (mine.mlp.out, other.mlp.c_proj),
        ):
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
    tokens = torch.randint(11, (2, 9))
    expected = theirs(tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours(theirs.wte(tokens)), expected, rtol=1e-6, atol=1e-6)


def test_norms_after_the_branches_leave_none_for_the_end():
    network = Backbone(16, 2, four, norm_first=False, position=NoPosition)
    assert isinstance(network.norm, nn.Identity)
    y = network(torch.randn(2, 5, 16))
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)


def test_residual_branches_start_small():
    for mixer in (window, strided):
        network = Backbone(64, 8, mixer)
        for block in network.blocks:
            attention = block.mixer.attention if mixer is window else block.mixer.pattern.attention
            assert attention.out.weight.std().item() == pytest.approx((3 * 64) ** -0.5 / 4, rel=0.1)
