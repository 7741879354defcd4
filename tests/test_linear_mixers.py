"""Each mixer of linear recurrences against its formula, its paper's numbers and other libraries."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from zoo.nn import (
    ALiBi,
    Backbone,
    EfficientAttention,
    LinearAttention,
    Mamba2,
    NoPosition,
    Performer,
    Retention,
    Rotary,
    TransNormer,
)
from zoo.nn.chunked import chunked, loop
from zoo.nn.linear_attention import elu1, exp, relu, taylor

transnormer = partial(TransNormer, heads=4, block=4)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("phi", [elu1, exp, relu, taylor])
def test_features_are_a_positive_kernel(phi):
    torch.manual_seed(0)
    q, k = torch.randn(2, 64, 8, dtype=torch.float64)
    assert (phi(q) @ phi(k).mT >= 0).all()
    if phi is taylor:
        s = q @ k.mT / 8**0.5
        close(phi(q) @ phi(k).mT, 1 + s + s**2 / 2)


@pytest.mark.parametrize("position", [NoPosition, Rotary, ALiBi])
@torch.no_grad()
def test_linear_attention_equals_the_formula_written_out(position):
    torch.manual_seed(0)
    mixer = LinearAttention(16, 4, position=position(16, 4)).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = mixer.project(x)
    t = torch.arange(7)
    turned_q, turned_k = mixer.position.rotate(q, k, t)
    fade = torch.ones(7, 7).tril()
    if position is ALiBi:
        fade = mixer.position.bias(t, t).exp() * fade
    total = (q @ k.mT * fade).sum(-1, keepdim=True)
    o = (turned_q @ turned_k.mT * fade) @ v / (total + 1e-6)
    close(mixer(x), mixer.merge(o, x))
    if position is ALiBi:
        return
    both = LinearAttention(16, 4, position=position(16, 4), causal=False).double()
    both.load_state_dict(mixer.state_dict())
    o = turned_q @ turned_k.mT @ v / ((q @ k.mT).sum(-1, keepdim=True) + 1e-6)
    close(both(x), both.merge(o, x))


@torch.no_grad()
def test_linear_attention_to_equal_keys_is_a_running_mean():
    mixer = LinearAttention(8, 2).double()
    mixer.qkv.weight[8:16] = 0
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    v = mixer.project(x)[2]
    mean = v.cumsum(2) / torch.arange(1, 7).view(6, 1)
    torch.testing.assert_close(mixer(x), mixer.merge(mean, x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_efficient_attention_equals_the_formula_and_does_not_see_order():
    mixer = EfficientAttention(16, 4).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    weights = q.softmax(-1) @ k.softmax(-2).mT
    close(weights.sum(-1), torch.ones(2, 4, 7).double())  # each row is a mean
    close(mixer(x), mixer.out((weights @ v).transpose(1, 2).flatten(2)))
    order = torch.randperm(7)
    close(mixer(x[:, order]), mixer(x)[:, order])
    with pytest.raises(ValueError, match="cannot be causal"):
        Backbone(16, 1, partial(EfficientAttention, heads=4))


def softmax_errors(features, draws, causal=False):
    """Root mean square error of Performer's heads to softmax attention, over many draws of its features."""
    torch.manual_seed(1)
    mixer = Performer(16, 1, features=features, causal=causal, position=NoPosition(16)).double()
    mixer.qkv.weight.copy_(torch.eye(16).repeat(3, 1))
    mixer.out.weight.copy_(torch.eye(16))
    x = torch.randn(1, 32, 16, dtype=torch.float64) * 0.25
    exact = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=causal)[
        :, 0
    ]
    errors = []
    for _ in range(draws):
        fresh = Performer(16, 1, features=features)
        mixer.w.copy_(fresh.w)
        errors.append((mixer(x) - exact).square().mean())
    return torch.stack(errors).mean().sqrt()


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_performer_converges_to_softmax_at_the_rate_of_a_mean(causal):
    sizes = torch.tensor([16.0, 64, 256, 1024])
    errors = torch.stack([softmax_errors(int(m), 100, causal) for m in sizes])
    slope = ((errors[-1] / errors[0]).log() / (sizes[-1] / sizes[0]).log()).item()
    assert -0.6 < slope < -0.4
    assert errors[-1] < 0.01


def test_performers_directions_are_even_and_orthogonal():
    torch.manual_seed(0)
    w = torch.stack([Performer(8, 1, features=16).w for _ in range(2000)])
    assert w.mean(0).abs().max() < 4.5 / 2000**0.5
    assert w.square().mean().item() == pytest.approx(1, abs=0.02)
    gram = w[:, :8] @ w[:, :8].mT
    assert (gram - gram.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 1e-4


@torch.no_grad()
def test_performer_forgets_a_large_key_as_its_weight_fades():
    """With a stabiliser that did not fade, all later weights would round to 0."""
    torch.manual_seed(0)
    mixer = Performer(16, 2, position=ALiBi(16, 2))
    x = torch.randn(1, 9000, 16)
    x[:, 0] *= 1e4
    other = x.clone()
    other[:, 0] /= 1e4
    torch.testing.assert_close(mixer(x)[:, -1], mixer(other)[:, -1], rtol=1e-4, atol=1e-5)


def test_performers_features_are_stored_and_not_trained():
    mixer = Performer(16, 2)
    assert "w" in mixer.state_dict()
    assert all(name != "w" for name, _ in mixer.named_parameters())


@torch.no_grad()
def test_the_three_forms_of_retention_agree():
    torch.manual_seed(0)
    mixer = Retention(16, 4).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    q, k, v, _ = mixer.project(x, torch.arange(21))
    gamma = torch.tensor([1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8]).double()
    torch.testing.assert_close(mixer.log_gamma(q).exp(), gamma, rtol=1e-12, atol=0)
    distance = torch.arange(21)[:, None] - torch.arange(21)
    parallel = (q @ k.mT * (gamma.view(4, 1, 1) ** distance).tril()) @ v
    g = mixer.log_gamma(q)[:, None].expand(2, 4, 21)
    close(loop(q, k, v, g)[0], parallel, 1e-12)
    close(chunked(q, k, v, g, chunk=5)[0], parallel, 1e-12)


@torch.no_grad()
def test_retention_depends_on_distance_only_and_turns_the_last_pair_least():
    mixer = Retention(16, 2).double()
    x = torch.randn(1, 1, 16).double().expand(1, 12, 16)
    q, k, _, _ = mixer.project(x, torch.arange(12))
    scores = q @ k.mT
    close(scores[..., 1:, 1:], scores[..., :-1, :-1])
    far = mixer.project(x[:, :1], torch.tensor([10000]))[0]
    near = mixer.project(x[:, :1], torch.tensor([0]))[0]
    angle = torch.view_as_complex(far[..., -2:].contiguous()) / torch.view_as_complex(
        near[..., -2:].contiguous()
    )
    close(angle.angle(), torch.ones_like(angle.angle()), 1e-9)  # 10000^-1 times 10000


@torch.no_grad()
def test_retentions_heads_are_normalised_apart():
    mixer = Retention(16, 4).double()
    o, gate = torch.randn(2, 4, 3, 8).double(), torch.randn(2, 3, 32).double()
    louder = o * torch.tensor([1.0, 10, 100, 1000]).double().view(4, 1, 1)
    torch.testing.assert_close(mixer.merge(louder, gate), mixer.merge(o, gate), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_mamba2_equals_the_library_with_the_same_weights(groups):
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16,
        num_heads=4,
        head_dim=8,
        state_size=6,
        n_groups=groups,
        expand=2,
        conv_kernel=4,
        chunk_size=8,
        num_hidden_layers=1,
    )
    theirs = Mamba2Mixer(config, 0).eval()
    ours = Mamba2(16, state=6, head=8, groups=groups)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    ours.inner.weight.copy_(theirs.in_proj.weight)
    ours.conv.weight.copy_(theirs.conv1d.weight.squeeze(1).T)
    ours.conv.bias.copy_(theirs.conv1d.bias)
    ours.norm.copy_(theirs.norm.weight)
    ours.out.weight.copy_(theirs.out_proj.weight)
    for name in ("A_log", "dt_bias", "D"):
        getattr(ours, name).copy_(getattr(theirs, name))
    x = torch.randn(2, 19, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mamba2_starts_with_the_papers_steps_and_decays():
    mixer = Mamba2(256, head=2)
    dt = nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 * 0.999 <= dt.min() < 2e-3
    assert 0.05 < dt.max() <= 0.1001
    A = mixer.A_log.exp()
    assert 1 <= A.min() < 2
    assert 15 < A.max() <= 16
    assert mixer.D.eq(1).all()


def test_transnormer_sees_blocks_first_and_everything_later():
    network = Backbone(16, 4, transnormer)
    assert [block.mixer.local for block in network.blocks] == [True, True, False, False]
    x = torch.randn(1, 10, 16)
    for block, reach in ((network.blocks[0], 4), (network.blocks[2], 10)):
        slope = jacobian(lambda x, mixer=block.mixer: mixer(x)[0].sum(-1), x)[:, 0].abs().sum(-1)
        t = torch.arange(10)
        same = (t[:, None] // reach == t // reach) & (t[:, None] >= t)
        assert torch.equal(slope > 0, same)


@torch.no_grad()
def test_transnormer_equals_its_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    for causal in (True, False):
        early, late = (
            TransNormer(16, 4, layer=layer, depth=2, block=4, causal=causal).double() for layer in (0, 1)
        )
        t = torch.arange(10)
        seen = torch.ones(10, 10, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        q, k, v = early.project(x, t)
        scores = (q @ k.mT / 2).masked_fill(~(seen & (t[:, None] // 4 == t // 4)), -torch.inf)
        close(early(x), early.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        q, k, v = late.project(x, t)
        o = ((q @ k.mT * seen) @ v).transpose(1, 2).flatten(2)
        close(late(x), late.out(o / (o.square().mean(-1, keepdim=True).sqrt() + 1e-2)))
