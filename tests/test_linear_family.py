"""Linear recurrences: the chunked engine, and the mixers that run on it or in its manner."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from zoo.nn import (
    ALiBi,
    Backbone,
    EfficientAttention,
    GatedDelta,
    LinearAttention,
    Mamba2,
    NoPosition,
    Performer,
    Retention,
    Rotary,
    T5Bias,
    TransNormer,
    XPos,
)
from zoo.nn.chunked import chunked, loop, recur
from zoo.nn.delta import delta, delta_loop
from zoo.nn.linear_attention import elu1, exp, relu, taylor

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


def inputs(T, kind="none", heads=4, d=5, e=3):
    """q, k, v, g, state for a run of T tokens, two examples, four heads of v and as many of q and k as asked."""
    torch.manual_seed(T)
    q, k = torch.randn(2, 2, heads, T, d, dtype=torch.float64)
    v, state = torch.randn(2, 4, T, e).double(), torch.randn(2, 4, d, e).double()
    shape = {"none": None, "head": (2, 4, T), "row": (2, 4, T, d)}[kind]
    # decays from hardly any to nearly all
    g = None if shape is None else -torch.exp(torch.randn(shape, dtype=torch.float64) * 3)
    return q, k, v, g, state


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("kind", ["none", "head", "row"])
def test_chunks_of_any_length_equal_the_loop(kind, heads):
    for T, chunk in product((1, 2, 13, 37, 64), (1, 3, 16, 32, 64)):
        q, k, v, g, state = inputs(T, kind, heads)
        for start in (None, state):
            fast, slow = chunked(q, k, v, g, start, chunk=chunk, group=3), loop(q, k, v, g, start)
            close(fast[0], slow[0])
            close(fast[1], slow[1])


def test_no_tokens_leave_the_state_as_it_is():
    q, k, v, _, state = inputs(0)
    o, after = chunked(q, k, v, None, state)
    assert o.shape == (2, 4, 0, 3)
    assert torch.equal(after, state)


@pytest.mark.parametrize("kind", ["none", "head", "row"])
def test_groups_that_are_computed_anew_have_the_loops_gradients(kind):
    leaves = [x.requires_grad_() for x in inputs(21, kind) if x is not None]
    q, k, v, *g, state = leaves
    g = g[0] if g else None
    weight = torch.randn(2, 4, 21, 3).double()
    found = []
    for run in (partial(chunked, chunk=4, group=2), loop):
        o, last = run(q, k, v, g, state)
        found.append(torch.autograd.grad((o * weight).sum() + last.square().sum(), leaves))
    for fast, slow in zip(*found, strict=True):
        close(fast, slow)


@pytest.mark.parametrize("kind", ["head", "row"])
def test_extreme_decays_are_finite_in_both_directions(kind):
    q, k, v, g, _ = (x.float() for x in inputs(70, kind))
    g[:, :, ::7], g[:, :, 3::5], g[:, :, 5] = -50.0, -1e-6, -1e4
    leaves = [x.requires_grad_() for x in (q, k, v, g)]
    o, _ = chunked(q, k, v, g)
    slow, _ = loop(*(x.detach().double() for x in leaves))
    torch.testing.assert_close(o.double(), slow, rtol=1e-3, atol=1e-3)  # exp(a difference of sums of 1e4)
    for gradient in torch.autograd.grad(o.sum(), leaves):
        assert gradient.isfinite().all()


def test_half_precision_sums_are_kept_in_float32():
    ones = torch.ones(1, 1, 2048, 1, dtype=torch.bfloat16)
    o, state = chunked(ones, ones, ones)
    assert o.dtype == state.dtype == torch.float32
    assert o[0, 0, -1, 0] == state[0, 0, 0, 0] == 2048


def test_memory_of_long_inputs_is_that_of_what_enters_and_leaves():
    """What the backward pass keeps, in numbers per token, does not hold a chunk's scores (64 for each head)."""
    kept = []

    def keep(x):
        kept.append(x.untyped_storage().nbytes() / 4)
        return x

    q, k, v = torch.randn(3, 1, 1, 4096, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        chunked(q, k, v)
    assert sum({*kept}) / 4096 < 40


@pytest.mark.parametrize("T", [1, 7, 33])
@pytest.mark.parametrize("beta_max", [1, 2])
def test_the_delta_rule_in_chunks_equals_the_loop(T, beta_max):
    q, k, v, g, state = inputs(T, "head")
    k = nn.functional.normalize(k, dim=-1)
    beta = torch.rand(2, 4, T, dtype=torch.float64) * beta_max
    leaves = [x.requires_grad_() for x in (q, k, v, beta, g, state)]
    slow = delta_loop(*leaves)
    slopes = torch.autograd.grad(slow[0].square().sum() + slow[1].sum(), leaves)
    for chunk in (1, 3, 16, 64):
        fast = delta(*leaves, chunk=chunk, group=2)
        close(fast[0], slow[0])
        close(fast[1], slow[1])
        found = torch.autograd.grad(fast[0].square().sum() + fast[1].sum(), leaves)
        for a, b in zip(found, slopes, strict=True):
            close(a, b, 1e-9)


def test_what_the_delta_rule_wrote_last_is_what_it_reads():
    torch.manual_seed(0)
    k = torch.linalg.qr(torch.randn(8, 8).double())[0][[0, 1, 2, 0, 1, 0, 1, 2]]  # three orthogonal keys
    v = torch.randn(8, 3).double()
    k, v = k[None, None], v[None, None]
    ones, zeros = torch.ones(1, 1, 8).double(), torch.zeros(1, 1, 8).double()
    o, state = delta(k, k, v, ones, zeros, chunk=4)
    close(o, v)
    close(k[:, :, 5:] @ state, v[:, :, 5:])  # overwritten, not added to


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


@torch.no_grad()
def test_the_delta_rule_equals_the_librarys_with_and_without_chunks():
    from transformers.models.qwen3_next import modeling_qwen3_next as library

    q, k, v, _, _ = inputs(37)
    k, q = nn.functional.normalize(k, dim=-1), q.float()
    beta, g = torch.rand(2, 2, 4, 37)
    g = -g
    theirs = library.torch_recurrent_gated_delta_rule(
        *(x.transpose(1, 2).float() for x in (q, k, v)),
        g=g.transpose(1, 2),
        beta=beta.transpose(1, 2),
        initial_state=None,
        output_final_state=True,
    )
    ours = delta(q.float() * 5**-0.5, k.float(), v.float(), beta, g, chunk=16)
    torch.testing.assert_close(ours[0].transpose(1, 2), theirs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


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
        with pytest.raises(ValueError, match=r"ALiBi is a decay of the past.*Rotary"):
            Backbone(16, 1, BACKBONES[name]["mixer"], position=ALiBi, causal=False)
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


def test_one_token_of_the_engine_is_the_recurrence_written_out():
    q, k, v, g, state = inputs(1, "head", heads=2)
    o, after = recur(q[:, :, 0], k[:, :, 0], v[:, :, 0], g[:, :, 0], state)
    for h in range(4):
        S = g[0, h, 0].exp() * state[0, h] + torch.outer(k[0, h // 2, 0], v[0, h, 0])
        close(after[0, h], S)
        close(o[0, h], q[0, h // 2, 0] @ S)
