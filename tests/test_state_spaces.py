"""State spaces: HiPPO against its closed form, kernels against recurrences, what they start as, parity."""

import math
import re
from functools import partial

import pytest
import torch
from conftest import ROOT
from torch import nn

from zoo.nn import LRU, S4, S4D, Backbone, Mamba, s4d_inv, s4d_legs, s4d_lin
from zoo.nn.hippo import legs, legs_dplr
from zoo.nn.mamba import depthwise, selective_scan, selective_scan_loop

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def legendre(state: int, signal: list[float], t: float) -> torch.Tensor:
    """The first coefficients, in the orthonormal polynomials of [0, t], of a polynomial signal.

    c_n = sqrt(2n + 1)/t integral_0^t f(s) P_n(2s/t - 1) ds, by Gauss's rule, which is exact for polynomials.
    """
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(40)
    f = numpy.polynomial.polynomial.polyval(t * (nodes + 1) / 2, signal)
    P = numpy.polynomial.legendre.legvander(nodes, state - 1)
    n = numpy.arange(state)
    return torch.tensor(numpy.sqrt(2 * n + 1) * ((weights * f) @ P) / 2)


def test_legs_moves_the_coefficients_of_the_past():
    A, B = legs(6)
    signal, t, h = [0.3, -1.2, 0.7, 0.5], 1.7, 1e-4
    c = legendre(6, signal, t)
    slope = (legendre(6, signal, t + h) - legendre(6, signal, t - h)) / (2 * h)
    u = sum(coefficient * t**power for power, coefficient in enumerate(signal))
    torch.testing.assert_close(slope, (A @ c + B * u) / t, rtol=0, atol=1e-6)


def test_legs_is_the_papers_matrix():
    A, B = legs(3)
    root = [1, math.sqrt(3), math.sqrt(5)]
    close(B, torch.tensor(root))
    close(A, torch.tensor([[-1, 0, 0], [-root[1], -2, 0], [-root[2], -root[1] * root[2], -3]]))


def test_legs_is_diagonal_plus_low_rank():
    A, B = legs(8)
    P = (torch.arange(8) + 0.5).sqrt()
    normal = A + torch.outer(P, P)
    close(normal + normal.T, -torch.eye(8))
    Lambda, P, B_ = legs_dplr(8)
    Lambda, P, B_ = (torch.cat([v, v.conj()]) for v in (Lambda, P, B_))
    other = torch.diag(Lambda) - torch.outer(P, P.conj())
    for t in (0.1, 1.0):  # the same system in another basis: the same response to B, seen along B
        response = B @ torch.linalg.matrix_exp(t * A) @ B
        close((B_.conj() @ torch.linalg.matrix_exp(t * other) @ B_).real, response, rtol=1e-8)


def test_diagonal_states_start_as_in_the_paper():
    close(s4d_lin(6), torch.tensor([-0.5 + 0j, -0.5 + 1j * math.pi, -0.5 + 2j * math.pi]))
    close(s4d_inv(4), torch.tensor([-0.5 + 4j / math.pi * 3, -0.5 + 4j / math.pi / 3]))
    close(s4d_legs(64).real, torch.full((32,), -0.5))
    # the largest frequencies of LegS are close to those of the inverse law
    ratio = s4d_legs(256).imag.max() / s4d_inv(256).imag.max()
    assert ratio.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("T", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("length", [15, 16])
def test_the_kernel_of_s4_is_its_recurrence(length, T):
    mixer = S4(3, 8, length=length)
    close(mixer.kernel(T), mixer.kernel_loop(T))


@pytest.mark.parametrize("T", [0, 1, 2, 9, 10, 37])
@torch.no_grad()
def test_the_state_that_a_prompt_leaves_s4_is_that_of_its_steps(T):
    mixer, x = S4(3, 8, length=16), torch.randn(2, T, 3)
    h = torch.zeros(2, 3, 4, dtype=torch.complex128)
    for t in range(T):
        h = mixer.parts().update(h, x[:, t])
    close(mixer.prefill(x)[1].h, h)


@torch.no_grad()
def test_beyond_its_length_s4_goes_on_and_does_not_repeat_its_kernel():
    mixer = S4(3, 8, length=16).float()
    K = mixer.kernel(256)
    largest = K.abs().max().item()
    close(K.double(), mixer.double().kernel_loop(256), rtol=0, atol=1e-5 * largest)
    assert (K[:, 16:32] - K[:, :16]).abs().max() > 0.1 * largest


@pytest.mark.parametrize("init", [s4d_lin, s4d_inv, s4d_legs])
@pytest.mark.parametrize("T", [1, 2, 9, 10, 37])
def test_the_kernel_of_s4d_is_its_recurrence(T, init):
    mixer = S4D(3, 8, init=init)
    close(mixer.kernel(T), mixer.kernel_loop(T))
    assert (mixer.kernel(50)[:, :T] - mixer.kernel(T)).abs().max() < 1e-12


def test_kernels_have_the_gradients_of_their_recurrences():
    for mixer in (S4(2, 6, length=9), S4D(2, 6)):
        parameters = [p for name, p in mixer.named_parameters() if name != "D" and "out" not in name]
        slope = torch.randn(2, 9)
        fast, slow = (
            torch.autograd.grad(K, parameters, slope) for K in (mixer.kernel(9), mixer.kernel_loop(9))
        )
        for gradient, expected in zip(fast, slow):
            close(gradient, expected, rtol=1e-8, atol=1e-8)


def test_s4_is_the_textbook_system_of_its_matrices():
    mixer = S4(2, 6, length=12)
    parts = mixer.parts()
    A, P, B = (torch.cat([v, v.conj()]) for v in parts[:3])
    A = torch.diag(A) - torch.outer(P, P.conj())
    for channel in range(2):
        dt, one = parts.dt[channel], torch.eye(6)
        a = torch.linalg.inv(one - dt / 2 * A) @ (one + dt / 2 * A)
        b = torch.linalg.inv(one - dt / 2 * A) @ (dt * B)
        cut = torch.cat([parts.C[channel], parts.C[channel].conj()])
        C = cut @ torch.linalg.inv(one - torch.linalg.matrix_power(a, 12))
        taps = torch.stack([(C @ torch.linalg.matrix_power(a, t) @ b).real for t in range(12)])
        close(mixer.kernel(12)[channel], taps)


def test_a_state_of_half_a_pair_is_refused():
    for kind in (S4, S4D):
        with pytest.raises(ValueError, match="state=7 cannot be made of conjugate pairs; try state=8"):
            kind(4, 7)


def test_the_eigenvalues_of_an_lru_start_evenly_over_the_ring():
    mixer = LRU(2, 20000, r_min=0.4, r_max=0.8, max_phase=1.0)
    eigenvalues = mixer.eigenvalues.detach()
    even = ((eigenvalues.abs() ** 2 - 0.16) / 0.48).sort().values
    torch.testing.assert_close(even, torch.linspace(0, 1, 20000), rtol=0, atol=0.02)
    angles = eigenvalues.angle().sort().values
    torch.testing.assert_close(angles, torch.linspace(0, 1, 20000), rtol=0, atol=0.02)
    close(mixer.gamma_log.detach().exp() ** 2, 1 - eigenvalues.abs() ** 2)
    with pytest.raises(ValueError, match="no ring inside the unit circle"):
        LRU(4, r_min=0.9, r_max=1.0)


def test_an_lru_keeps_its_input_as_large_as_it_was():
    mixer = LRU(32, 200)
    _, h = mixer.prefill(torch.randn(32, 1500, 32))
    # B x has variance 1 per complex number, and gamma makes that of the state
    assert h.abs().square().mean().item() == pytest.approx(1, abs=0.1)


def scan_inputs(T: int) -> list[torch.Tensor]:
    """x, dt, A, B and C of a selective scan: 2 examples, 5 channels, 3 numbers each."""
    x, dt, A = torch.randn(2, T, 5), torch.rand(2, T, 5), -3 * torch.rand(3, 5)
    return [v.requires_grad_() for v in (x, dt, A, torch.randn(2, T, 3), torch.randn(2, T, 3))]


@pytest.mark.parametrize("T", [1, 2, 7, 16])
def test_the_selective_scan_equals_the_loop_and_so_does_its_gradient(T):
    inputs, slope = scan_inputs(T), torch.randn(2, T, 5)
    y, h = selective_scan_loop(*inputs)
    gradients = torch.autograd.grad(y, inputs, slope)
    for chunk in (1, 3, 16, T, None):
        fast, last = selective_scan(*inputs, chunk=chunk)
        close(fast, y)
        close(last, h)
        for gradient, expected in zip(torch.autograd.grad(fast, inputs, slope), gradients):
            close(gradient, expected)


def test_the_selective_scan_forgets_the_states_that_it_makes():
    saved = []
    inputs = scan_inputs(256)
    with torch.autograd.graph.saved_tensors_hooks(lambda v: saved.append(v.numel()) or v, lambda v: v):
        selective_scan(*inputs, chunk=32)
    assert sum(saved) == sum(v.numel() for v in inputs) + 256 // 32 * 2 * 3 * 5


def test_the_selective_scan_is_finite_for_extreme_steps():
    for size in (1e-6, 50.0, 1e4):
        x, dt, A, B, C = scan_inputs(40)
        dt = (size * dt.detach()).requires_grad_()
        y, _ = selective_scan(x, dt, A, B, C)
        gradients = torch.autograd.grad(y.sum(), (x, dt, A, B, C))
        assert all(v.isfinite().all() for v in (y, *gradients))


def test_the_convolution_is_that_of_torch():
    x, conv = torch.randn(2, 12, 5), nn.Conv1d(5, 5, 4, groups=5)
    close(depthwise(x, conv.weight, conv.bias), conv(x.mT).mT)


def test_mamba_starts_as_in_the_paper():
    mixer = Mamba(64, 16)
    steps = torch.nn.functional.softplus(mixer.dt_bias.detach())
    assert steps.min() >= 1e-3 * (1 - 1e-9)
    assert steps.max() <= 0.1 * (1 + 1e-9)
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.5)
    _, A, _, _ = mixer.parameters_of(torch.randn(1, 128))
    close(A.detach(), -torch.arange(1.0, 17)[:, None].expand(16, 128))
    assert mixer.dt.weight.abs().max() <= 0.5  # rank 4
    assert Backbone(16, 1, Mamba).blocks[0].mlp is None


@torch.no_grad()
def test_mamba_equals_that_of_transformers():
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(
        vocab_size=2,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        residual_in_fp32=False,
        layer_norm_epsilon=1e-5,
    )
    theirs = MambaModel(config).double().eval()
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    ours = Backbone(16, 2, partial(Mamba, state=4), norm=partial(nn.RMSNorm, eps=1e-5))
    names = {
        "layers": "blocks", "norm_f": "norm", "norm": "mixer_norm", "in_proj": "inner", "conv1d": "conv",
        "x_proj": "select", "dt_proj.bias": "dt_bias", "dt_proj": "dt", "out_proj": "out",
    }  # fmt: skip
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    weights = {
        pattern.sub(lambda found: names[found[0]], key): value
        for key, value in theirs.state_dict().items()
        if "embeddings" not in key
    }
    ours.load_state_dict(weights)
    x = torch.randn(2, 13, 16)
    # their states are float32 in places
    torch.testing.assert_close(ours(x), theirs(inputs_embeds=x).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mixer", "expected"),
    [
        ("s4", S4, {"A_log", "A_imag", "P", "B", "log_dt"}),
        ("s4d", S4D, {"A_log", "A_imag", "log_dt"}),
        ("lru", LRU, {"nu_log", "theta_log", "gamma_log"}),
    ],
)
def test_the_pattern_in_a_file_finds_the_parameters_of_its_paper(name, mixer, expected):
    from zoo.training.optimizers import labels

    (pattern,) = re.findall(r'match: "(.*?)"', (ROOT / f"configs/mixer/{name}.yaml").read_text())
    found = [label for label in labels(Backbone(16, 1, mixer)) if re.search(pattern, label)]
    assert {label.split(":")[0].split(".")[-1] for label in found} == expected
