"""Recurrences: the scan, and every mixer that is one, as parallel form and as steps, ahead and back."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from zoo.models import Autoregressive
from zoo.nn import (
    GRU,
    LRU,
    LSTM,
    RWKV,
    S4,
    S4D,
    Attention,
    Backbone,
    Bidirectional,
    LearnedPosition,
    Mamba,
    Rotary,
    RWKVFeedForward,
)
from zoo.nn.rwkv import wkv, wkv_loop
from zoo.nn.scan import scan, scan_loop

MIXERS = {
    "s4": partial(S4, state=8, length=16),
    "s4d": partial(S4D, state=8),
    "lru": partial(LRU, state=6),
    "mamba": partial(Mamba, state=3, chunk=4),
    "rwkv": RWKV,
    "lstm": partial(LSTM, hidden=10),
    "gru": partial(GRU, hidden=10),
}
BACKBONES = {
    **{name: {"mixer": mixer} for name, mixer in MIXERS.items()},
    "rwkv, its own feed-forward": {"mixer": RWKV, "mlp": RWKVFeedForward},
    "hybrid": {"mixer": [MIXERS["mamba"], partial(Attention, heads=2)], "mlp": RWKVFeedForward},
    "learned positions": {"mixer": MIXERS["lru"], "position": partial(LearnedPosition, length=64)},
}
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def louder(network: nn.Module) -> nn.Module:
    """A network whose linear maps are large enough for every mistake to be seen."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.4)
    return network


def backbone(name: str, **options: object) -> Backbone:
    return louder(Backbone(8, 2, **BACKBONES[name], **options))


def draws(*shape: int, complex: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and h of a recurrence."""
    B, T, *rest = shape
    dtype = torch.complex128 if complex else torch.float64
    a, b, h = (torch.randn(*size, *rest, dtype=dtype) for size in ((B, T), (B, T), (B,)))
    return (a / a.abs().amax()).requires_grad_(), b.requires_grad_(), h.requires_grad_()


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("T", [1, 2, 3, 7, 16, 21])
def test_a_scan_equals_the_loop_and_so_does_its_gradient(T, complex):
    torch.manual_seed(T)
    values = draws(2, T, 3, complex=complex)
    h = scan_loop(*values)
    slope = torch.randn_like(h)
    gradients = torch.autograd.grad(h, values, slope)
    for chunk in (1, 3, 16, T, T + 5, None):
        fast = scan(*values, chunk=chunk)
        close(fast, h)
        for gradient, expected in zip(torch.autograd.grad(fast, values, slope), gradients):
            close(gradient, expected)


def test_a_scan_takes_factors_that_examples_share():
    a, b, _ = draws(3, 9, 2, 4, complex=True)
    shared = a[:1, :, :1].detach().requires_grad_()
    h, expected = scan(shared, b, chunk=4), scan_loop(shared.expand_as(b), b)
    close(h, expected)
    slope = torch.randn_like(h)
    close(torch.autograd.grad(h, shared, slope), torch.autograd.grad(expected, shared, slope))
    close(scan(torch.full((1,), 0.5).expand(3, 9, 2, 4), b.real).detach()[:, 1], (b[:, 0] / 2 + b[:, 1]).real)


def test_a_scan_keeps_its_digits_over_thousands_of_steps():
    torch.manual_seed(0)
    a, b = torch.rand(1, 5000, 4) * 0.2 + 0.8, torch.randn(1, 5000, 4)
    torch.testing.assert_close(scan(a, b).double(), scan_loop(a.double(), b.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("T", [1, 6, 13])
def test_wkv_equals_its_sum_and_the_loop(T, double):
    w, u = torch.rand(4) * 3, torch.randn(4)
    k, v = 3 * torch.randn(2, T, 4), torch.randn(2, T, 4)
    age = torch.arange(T)[:, None] - 1 - torch.arange(T)  # of key s at token t: t - 1 - s
    logits = (k[:, None] - w * age[..., None]).masked_fill(age[..., None] < 0, -torch.inf)
    present = torch.eye(T, dtype=torch.bool)[..., None]
    logits = torch.where(present, u + k[:, None], logits)  # (B, t, s, D)
    expected = (logits.softmax(2) * v[:, None]).sum(2)
    close(wkv(w, u, k, v)[0], expected)
    for fast, slow in zip(wkv(w, u, k, v), wkv_loop(w, u, k, v)):
        close(fast, slow)


def test_wkv_has_the_gradient_of_the_loop(double):
    values = [torch.rand(3), torch.randn(3), torch.randn(2, 9, 3), torch.randn(2, 9, 3)]
    values = [value.requires_grad_() for value in values]
    slope = torch.randn(2, 9, 3)
    fast, slow = (torch.autograd.grad(f(*values)[0], values, slope) for f in (wkv, wkv_loop))
    for gradient, expected in zip(fast, slow):
        close(gradient, expected)


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_wkv_is_finite_for_extreme_keys_and_decays(size):
    torch.manual_seed(0)
    k = (size * torch.randn(1, 300, 6)).requires_grad_()
    w = torch.tensor([1e-6, 0.01, 0.5, 2.0, 20.0, 50.0], requires_grad=True)
    y = wkv(w, torch.zeros(6), k, torch.randn(1, 300, 6))[0]
    y.sum().backward()
    for value in (y, k.grad, w.grad):
        assert value.isfinite().all()
    assert y.abs().max() < 5  # a mean of values


@pytest.mark.parametrize("name", BACKBONES)
def test_future_tokens_do_not_matter(name, double):
    network = backbone(name)
    x, seen = torch.randn(1, 6, 8), torch.randn(8)  # a plain sum sees nothing behind a norm
    slope = jacobian(lambda x: network(x)[0] @ seen, x)[:, 0].abs().sum(-1)  # (6, 6): output, input
    assert slope.triu(1).max() < 1e-12  # a Fourier transform rounds
    assert (slope + torch.ones(6, 6).triu(1) > 1e-9).all()


@pytest.mark.parametrize("prompt", [1, 5, 20])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_prompt_and_steps_equal_the_parallel_form(name, prompt, double):
    network = backbone(name)
    x = torch.randn(2, 21, 8)
    y, state = network.prefill(x[:, :prompt])
    outputs = list(y.unbind(1))
    for t in range(prompt, 21):
        y_t, state = network.step(x[:, t], state)
        outputs.append(y_t)
    close(torch.stack(outputs, 1), network(x))


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_prompts_of_unequal_length_go_on_as_if_alone(name, double):
    network = backbone(name)
    x = torch.randn(3, 12, 8)
    lengths = torch.tensor([1, 6, 4])
    _, state = network.prefill(x[:, :6], lengths)
    rows = torch.arange(3)
    for i in range(6):
        y_t, state = network.step(x[rows, lengths + i], state)
        close(y_t, network(x)[rows, lengths + i])


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_single_precision_comes_close_over_long_sequences(name):
    torch.manual_seed(0)
    network = Backbone(8, 2, **BACKBONES[name])
    x = torch.randn(1, 300, 8)
    torch.testing.assert_close(network(x).double(), network.double()(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_half_precision_is_finite_and_close(name):
    torch.manual_seed(0)
    network = Backbone(8, 2, **BACKBONES[name])
    x = torch.randn(2, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
        _, state = network.prefill(x[:, :10])
        y_t, _ = network.step(x[:, 10], state)
    y.float().square().mean().backward()
    torch.testing.assert_close(y.float(), network(x), rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(y_t.float(), y[:, 10].float(), rtol=5e-2, atol=5e-2)
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient(name, double):
    network = backbone(name)
    (network(torch.randn(2, 9, 8)) * torch.randn(8)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_a_bidirectional_network_gets_a_reversed_copy(name, double):
    network = backbone(name, causal=False)
    mixer = network.blocks[0].mixer
    assert isinstance(mixer, Bidirectional)
    x = torch.randn(2, 7, 8)
    close(mixer(x), mixer.back(x) + mixer.ahead(x.flip(1)).flip(1))
    other = x.clone()
    other[:, 3] += torch.randn(8)
    assert ((network(x) - network(other)).abs().amax(-1) > 1e-9).all()  # token 3 is seen from everywhere
    with pytest.raises(ValueError, match="Bidirectional has no step"):
        network.prefill(x)


def test_branches_of_a_bidirectional_network_start_small_too():
    network = Backbone(64, 8, partial(LSTM, hidden=256), causal=False)
    for direction in (network.blocks[3].mixer.back, network.blocks[3].mixer.ahead):
        assert direction.out.weight.std().item() == pytest.approx((3 * 256) ** -0.5 / 4, rel=0.1)


@pytest.mark.parametrize("name", MIXERS)
def test_encodings_that_need_scores_are_refused(name):
    with pytest.raises(ValueError, match=r"position=Rotary does not work with causal .*NoPosition"):
        Backbone(8, 1, MIXERS[name], position=Rotary)
    assert Backbone(8, 1, MIXERS[name]).position_name == "NoPosition"


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_probabilities_of_all_binary_strings_sum_to_one(name, double):
    x = torch.cartesian_prod(*[torch.arange(2)] * 5)
    network = louder(Autoregressive(shape=(5,), levels=2, dim=8, depth=2, **BACKBONES[name]))
    assert network.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert network.sample(3, prompt=x[:3, :2]).shape == (3, 5)


@pytest.mark.parametrize("kind", [LSTM, GRU])
@torch.no_grad()
def test_gates_written_out_are_those_of_torch(kind, double):
    mixer = louder(kind(5, hidden=7))
    nn.init.normal_(mixer.cell.bias_hh_l0)  # the two biases act in different places
    x = torch.randn(2, 9, 5)
    _, state = mixer.prefill(x[:, :1])
    for t in range(1, 9):
        y_t, state = mixer.step(x[:, t], state)
        close(y_t, mixer(x)[:, t])


def test_an_lstm_starts_with_open_forget_gates_and_orthogonal_maps():
    cell = LSTM(6, hidden=8).cell
    bias = (cell.bias_ih_l0 + cell.bias_hh_l0).view(4, 8)
    assert torch.equal(bias, torch.tensor([0.0, 1, 0, 0])[:, None].expand(4, 8))
    for weight in cell.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=0, atol=1e-5)


def test_rwkv_starts_as_its_code_does():
    first, last = (RWKV(16, layer=layer, depth=4) for layer in (0, 3))
    c = torch.arange(16) / 16
    torch.testing.assert_close(first.mix_k.detach(), c)
    torch.testing.assert_close(first.mix_r.detach(), c**0.5)
    torch.testing.assert_close(last.mix_v.detach(), c**0.25 + 0.3)
    assert first.time_decay[[0, -1]].tolist() == pytest.approx([-5, 3])
    assert last.time_decay[8].item() == pytest.approx(-5 + 8 * (8 / 15) ** 2)
    zigzag = (first.time_first.detach() - torch.tensor(0.3).log())[:4]
    torch.testing.assert_close(zigzag, torch.tensor([0.0, 0.5, -0.5, 0.0]), rtol=0, atol=1e-6)
    network = Backbone(16, 4, RWKV, mlp=RWKVFeedForward)
    for layer, block in enumerate(network.blocks):
        torch.testing.assert_close(block.mlp.mix_k.detach(), c ** (1 - layer / 4))
        torch.testing.assert_close(block.mixer.mix_k.detach(), c ** (1 - layer / 4))


@torch.no_grad()
def test_rwkv_equals_that_of_transformers():
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward, RwkvSelfAttention

    torch.manual_seed(0)
    config = RwkvConfig(hidden_size=16, num_hidden_layers=2, attention_hidden_size=16, intermediate_size=64)
    x = torch.randn(2, 11, 16)
    names = {
        "output": "out",
        "time_mix_key": "mix_k",
        "time_mix_value": "mix_v",
        "time_mix_receptance": "mix_r",
    }
    for theirs, ours, more in (
        (RwkvSelfAttention(config, 1), RWKV(16), {}),
        (RwkvFeedForward(config, 1), RWKVFeedForward(16), {"value": "out"}),
    ):
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.5)
        weights = {}
        for key, value in theirs.state_dict().items():
            name, dot, end = key.partition(".")
            weights[{**names, **more}.get(name, name) + dot + end] = value.squeeze()
        ours.load_state_dict(weights)
        torch.testing.assert_close(ours(x), theirs(x)[0], rtol=1e-5, atol=1e-5)
