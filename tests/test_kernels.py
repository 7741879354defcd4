"""Kernels: whatever computes a mixer, the result is that of the loop. Run as a program, this file measures the Triton
scan by Triton's interpreter, which must be chosen before Triton is imported."""

import inspect
import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from zoo.nn import (
    KERPLE,
    ALiBi,
    Attention,
    DeBERTa,
    GatedDelta,
    LinearAttention,
    Mamba,
    Mamba2,
    Retention,
    Rotary,
    Shaw,
    SlidingWindow,
)
from zoo.nn.chunked import chunked, loop
from zoo.nn.delta import delta, delta_loop
from zoo.nn.kernels import LIBRARIES, choose, library, obstacle
from zoo.nn.kernels.flex import takes_flex
from zoo.nn.mamba import selective_scan, selective_scan_loop
from zoo.nn.position import NoPosition, encodings

pytestmark = [  # what flex says on a CPU, and Triton of a default to come
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch on Linux only")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a kernel on a GPU, and there is none")
# examples, tokens, channels, numbers of a channel
SCANS = {
    "odd": (2, 13, 37, 5),
    "one token": (1, 1, 3, 16),
    "whole blocks": (2, 16, 32, 4),
    "three blocks": (1, 11, 70, 1),
}


def scan_inputs(examples, T, E, N, kind=torch.float64, device="cpu"):
    torch.manual_seed(T)
    x, B, C = (torch.randn(examples, T, size) for size in (E, N, N))
    dt, A = F.softplus(torch.randn(examples, T, E)), -torch.rand(N, E) * 4
    return [v.to(device, kind).requires_grad_() for v in (x, dt, A, B, C)]


def scan_errors(inputs, kernel):
    """How far outputs, last state and all five gradients are from those of the loop."""
    weight = torch.randn_like(inputs[0])
    found = []
    for run in (partial(selective_scan, kernel=kernel), selective_scan_loop):
        y, last = run(*inputs)
        found.append((y, last, *torch.autograd.grad((y * weight).sum(), inputs)))
    names = ("y", "last", "dx", "ddt", "dA", "dB", "dC")
    return {name: float((a - b).abs().max()) for name, a, b in zip(names, *found, strict=True)}


def mixer_errors():
    """How far a Mamba by Triton is from one by PyTorch, for prompts of two lengths, and steps after them."""
    torch.manual_seed(0)
    fused, plain = (Mamba(8, 3, kernel=kernel).double() for kernel in ("triton", "torch"))
    plain.load_state_dict(fused.state_dict())
    x, lengths = torch.randn(2, 7, 8).double(), torch.tensor([7, 4])
    (y, state), (Y, State) = fused.prefill(x, lengths), plain.prefill(x, lengths)
    next_y, next_Y = fused.step(x[:, 0], state)[0], plain.step(x[:, 0], State)[0]
    (y * x).sum().backward()
    (Y * x).sum().backward()
    slopes = [
        (a.grad - b.grad).abs().max() for a, b in zip(fused.parameters(), plain.parameters(), strict=True)
    ]
    far = {"y": y - Y, "h": state.h - State.h, "step": next_y - next_Y, "slopes": torch.stack(slopes)}
    return {name: float(x.abs().max()) for name, x in far.items()}


@pytest.fixture(scope="module")
def interpreted():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@triton
@pytest.mark.parametrize("case", SCANS)
def test_the_triton_scan_is_the_loop_with_all_gradients(interpreted, case):
    errors = interpreted[case]
    assert len(errors) == 7
    assert max(errors.values()) < 1e-12, errors


@triton
def test_a_mixer_by_triton_keeps_prompts_of_two_lengths_and_steps(interpreted):
    assert max(interpreted["mixer"].values()) < 1e-12, interpreted["mixer"]


@triton
def test_the_triton_scan_of_no_tokens_is_a_state_of_zeros(interpreted):
    assert interpreted["nothing"] == [[2, 0, 3], 0.0]


@triton
@pytest.mark.parametrize("rows", [4, 256])
def test_the_triton_scan_compiles_without_a_gpu(tmp_path, monkeypatch, rows):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from zoo.nn.kernels import scan

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    options = scan.blocks(rows)
    threads = {"num_warps": options.pop("num_warps")}
    for kernel in (scan.forward_kernel, scan.backward_kernel):
        sizes = {"T", "E", "N", "every"}
        names = inspect.signature(kernel.fn).parameters
        kinds = {name: "i32" if name in sizes else "*fp32" for name in names} | dict.fromkeys(
            options, "constexpr"
        )
        built = compile(ASTSource(kernel, kinds, options), GPUTarget("cuda", 86, 32), threads)
        assert built.metadata.shared <= 99 * 1024  # what an RTX 30 has for a block
        assert "st.local" not in built.asm["ptx"]  # registers were enough


# the libraries, as their documentation has them: layouts, defaults, what they refuse


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    examples, E, T = u.shape
    N = A.shape[1]
    assert delta.shape == u.shape
    assert A.shape == (E, N)
    assert B.shape == C.shape == (examples, N, T)
    assert len({x.dtype for x in (u, delta, B, C)}) == 1
    assert D is None
    assert z is None
    assert delta_bias is None
    assert not delta_softplus
    h, outputs = u.new_zeros(examples, E, N), []
    for t in range(T):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    return (torch.stack(outputs, -1), h) if return_last_state else torch.stack(outputs, -1)


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
    cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False,
):  # fmt: skip
    examples, T, H, P = x.shape
    groups, N = B.shape[2:]
    assert dt.shape == (examples, T, H)
    assert A.shape == (H,)
    assert C.shape == B.shape == (examples, T, groups, N)
    assert chunk_size & (chunk_size - 1) == 0
    assert D is None
    assert z is None
    assert dt_bias is None
    assert initial_states is None
    assert not dt_softplus
    B, C = (v.repeat_interleave(H // groups, 2) for v in (B, C))
    state, outputs = x.new_zeros(examples, H, P, N), []
    for t in range(T):
        rate = torch.exp(dt[:, t] * A)[..., None, None]
        state = rate * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append((state * C[:, t, :, None]).sum(-1))
    return (torch.stack(outputs, 1), state) if return_final_states else torch.stack(outputs, 1)


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False
):  # fmt: skip
    assert q.shape == k.shape
    assert q.shape[:3] == v.shape[:3]
    assert q.dtype == k.dtype == v.dtype
    assert g is None or g.shape == q.shape[:3]
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    state, outputs = v.new_zeros(len(v), v.shape[2], k.shape[-1], v.shape[-1]), []
    for t in range(v.shape[1]):
        if g is not None:
            state = g[:, t].exp()[..., None, None] * state
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((scale * q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, 1), state if output_final_state else None


def chunk_gated_delta_rule(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False
):
    assert q.shape == k.shape
    assert q.dtype == k.dtype == v.dtype != torch.float32
    assert g.shape == beta.shape == q.shape[:3] == v.shape[:3]
    assert not use_qk_l2norm_in_kernel
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    state, outputs = v.new_zeros(len(v), v.shape[2], k.shape[-1], v.shape[-1]), []
    for t in range(v.shape[1]):
        state = g[:, t].exp()[..., None, None] * state
        new = beta[:, t, :, None] * (v[:, t] - (k[:, t, :, :, None] * state).sum(-2))
        state = state + k[:, t, :, :, None] * new[:, :, None]
        outputs.append((scale * q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, 1), state if output_final_state else None


FAKES = {
    "selective_scan": selective_scan_fn,
    "state_space": mamba_chunk_scan_combined,
    "linear": chunk_simple_gla,
    "delta": chunk_gated_delta_rule,
}


@pytest.fixture
def libraries(monkeypatch):
    """Libraries that compute token by token, in place of the real ones; what they were given."""
    given = {}

    def recording(name, fake):
        def called(*args, **options):
            given[name] = inspect.signature(fake).bind(*args, **options).arguments
            return fake(*args, **options)

        return called

    for name, fake in FAKES.items():
        module = ModuleType(LIBRARIES[name].module)
        setattr(module, fake.__name__, recording(name, fake))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


MIXERS = {
    "mamba": partial(Mamba, state=3),
    "mamba2": partial(Mamba2, state=3, head=4, groups=2),
    "linear": partial(LinearAttention, heads=2),
    "linear with rope": lambda dim, **kw: LinearAttention(dim, 2, position=Rotary(dim, 2), **kw),
    "linear with decay": lambda dim, **kw: LinearAttention(dim, 2, position=ALiBi(dim, 2), **kw),
    "retention": partial(Retention, heads=2),
    "gated delta": partial(GatedDelta, heads=2),
    "delta": partial(GatedDelta, heads=2, decay=False, negative=True),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_by_a_library_has_the_same_outputs_states_and_gradients(libraries, monkeypatch, mixer):
    torch.manual_seed(0)
    fused, plain = (MIXERS[mixer](8, kernel=kernel).double() for kernel in ("library", "torch"))
    plain.load_state_dict(fused.state_dict())
    x, lengths = torch.randn(2, 5, 8).double(), torch.tensor([5, 3])
    Y, State = plain.prefill(x, lengths)
    for module in ("mamba", "mamba2", "linear_attention", "retention", "delta"):  # as if this were a GPU
        monkeypatch.setattr(f"zoo.nn.{module}.choose", lambda *_: "library")
    y, state = fused.prefill(x, lengths)
    assert len(libraries) == 1  # it was asked
    for a, b in zip(state, State, strict=True):
        close(a, b)
    close(fused.step(x[:, 0], state)[0], plain.step(x[:, 0], State)[0])
    there = torch.arange(5) < lengths[:, None]
    close(y[there], Y[there])
    y[there].sum().backward()
    Y[there].sum().backward()
    for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad, message=name)


def test_heads_that_share_their_keys_are_repeated_for_the_library(libraries):
    q, k = torch.randn(2, 2, 2, 6, 3).double()
    v, g = torch.randn(2, 4, 6, 5).double(), -torch.rand(2, 4, 6).double()
    for a, b in zip(library.linear(q, k, v, g), loop(q, k, v, g), strict=True):
        close(a, b)


def test_under_autocast_libraries_multiply_in_half_precision_and_decay_in_full(libraries):
    q, k = torch.randn(2, 1, 2, 6, 3)
    v, g, beta = torch.randn(1, 2, 6, 5), -torch.rand(1, 2, 6), torch.rand(1, 2, 6)
    x, dt, A = torch.randn(1, 6, 2, 4), torch.rand(1, 6, 2), -torch.rand(2)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [
            *library.linear(q, k, v, g),
            *library.delta(q, k, v, beta, g),
            *library.state_space(x, dt, A, q.transpose(1, 2), k.transpose(1, 2)),
        ]
    half = {"linear": "qkv", "delta": "qkv", "state_space": "xBC"}
    full = {"linear": ["g"], "delta": ["g", "beta"], "state_space": ["dt", "A"]}
    for name, given in libraries.items():
        assert all(given[x].dtype == torch.bfloat16 for x in half[name])
        assert all(given[x].dtype == torch.float32 for x in full[name])
    assert len(libraries) == 3
    close(outputs[0], loop(q, k, v, g)[0], 0.1)
    close(outputs[2], delta_loop(q, k, v, beta, g)[0], 0.1)


def cuda_like(kind=torch.bfloat16, width=32):
    """What is asked of a tensor on a GPU, without one."""
    return SimpleNamespace(
        is_cuda=True, device=torch.device("cuda"), dtype=kind, numel=lambda: 1, shape=(1, 2, 8, width)
    )


@pytest.mark.parametrize(
    ("kernel", "operation", "x", "width", "there", "sentence"),
    [
        (
            "triton",
            "selective_scan",
            torch.ones(1),
            4,
            {"triton"},
            "kernel=triton needs a GPU, .* on cpu; take",
        ),
        ("triton", "selective_scan", cuda_like(), 4, set(), "needs the package triton; pip install triton"),
        (
            "library",
            "linear",
            torch.ones(1),
            4,
            {"fla"},
            "kernel=library needs a GPU, .* on cpu; take kernel=auto",
        ),
        ("library", "linear", cuda_like(), 4, set(), "pip install flash-linear-attention, or take"),
        ("library", "selective_scan", cuda_like(), 4, set(), "pip install mamba-ssm, or take kernel=auto"),
        (
            "library",
            "linear",
            cuda_like(torch.float32),
            4,
            {"fla"},
            "bfloat16, float16, and this is float32; train",
        ),
        ("library", "selective_scan", cuda_like(torch.float64), 4, {"mamba_ssm"}, "and this is float64"),
        ("library", "delta", cuda_like(), 300, {"fla"}, "up to 256 features, and these have 300"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(monkeypatch, kernel, operation, x, width, there, sentence):
    monkeypatch.setattr("zoo.nn.kernels.installed", lambda module: module.partition(".")[0] in there)
    with pytest.raises(ValueError, match=sentence):
        choose(kernel, operation, x, width)


def test_auto_takes_the_fastest_that_is_there(monkeypatch):
    there = {"triton", "mamba_ssm", "fla"}
    monkeypatch.setattr("zoo.nn.kernels.installed", lambda module: module.partition(".")[0] in there)
    real = cuda_like(torch.float32)
    assert choose("auto", "selective_scan", torch.ones(1), 16) == "torch"
    assert choose("auto", "selective_scan", real, 16) == "library"
    assert choose("auto", "selective_scan", cuda_like(torch.float64), 16) == "triton"
    assert choose("auto", "linear", cuda_like(), 16) == "library"
    assert choose("auto", "linear", real, 16) == "torch"  # the library would round
    torch.use_deterministic_algorithms(True)
    try:
        assert choose("auto", "selective_scan", real, 16) == "triton"
        assert choose("auto", "linear", cuda_like(), 16) == "torch"
    finally:
        torch.use_deterministic_algorithms(False)
    there.clear()
    assert choose("auto", "selective_scan", real, 16) == "torch"


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_kernel_that_is_not_there_is_refused_when_a_mixer_is_built(mixer):
    with pytest.raises(ValueError, match="kernel=cuda is none of auto, torch, library"):
        MIXERS[mixer](8, kernel="cuda")
    if mixer != "mamba":
        with pytest.raises(ValueError, match="kernel=triton is not there for this mixer"):
            MIXERS[mixer](8, kernel="triton")


# FlexAttention

BIASED = {
    kind.__name__: kind
    for kind in encodings()
    if "bias" in kind.places and kind.__module__ == "zoo.nn.relative_position"
}
BIASED |= {"KERPLE power": partial(KERPLE, power=True)}
NONE = {"Rotary": Rotary, "NoPosition": NoPosition}


def pair(mixer=Attention, position=NoPosition, device="cpu", kind=torch.float64, dim=16, **options):
    """Two mixers of the same weights, by flex and by sdpa, and an encoding each."""
    torch.manual_seed(0)
    made = []
    for kernel in ("flex", "sdpa"):
        told = inspect.signature(position).parameters
        asked = {"causal": options.get("causal", True)} if "causal" in told else {}
        made.append(
            mixer(dim, 4, position=position(dim, 4, **asked), kernel=kernel, **options).to(device, kind)
        )
    made[1].load_state_dict(made[0].state_dict())
    return made


@pytest.fixture
def uncompiled():
    """flex_attention without the compiler, which it calls on a CPU too; a test below lets it."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_all_encodings_by_distance_are_tried():
    assert {"ALiBi", "KERPLE", "T5Bias"} <= set(BIASED)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", {**BIASED, **NONE})
def test_flex_is_the_written_out_form(position, causal):
    x = torch.randn(2, 9, 16).double()
    for options in ({}, {"cap": 0.5}, {"kv_heads": 2, "qk_norm": True, "cap": 0.5}):
        fused, plain = pair(position={**BIASED, **NONE}[position], causal=causal, **options)
        with torch.no_grad():
            close(fused(x), plain(x))
            close(fused(x[:, :1]), plain(x[:, :1]))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["ALiBi", "T5Bias", "Rotary"])
def test_a_window_by_flex_is_the_window_by_blocks(position, causal):
    position = {**BIASED, **NONE}[position]
    x = torch.randn(2, 11, 16).double()
    for window, options in ((1, {}), (4, {"cap": 0.5}), (4, {"kv_heads": 1}), (20, {})):
        fused, plain = pair(SlidingWindow, position, causal=causal, window=window, **options)
        with torch.no_grad():
            close(fused(x), plain(x))
            close(fused(x), fused.naive(x))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mixer", [Attention, partial(SlidingWindow, window=4)])
def test_steps_go_on_where_flex_has_read_the_prompt(mixer):
    fused, _ = pair(mixer, ALiBi)
    x = torch.randn(2, 8, 16).double()
    with torch.no_grad():
        whole = fused(x)
        y, state = fused.prefill(x[:, :5])
        close(y, whole[:, :5])
        for t in range(5, 8):
            y, state = fused.step(x[:, t], state)
            close(y, whole[:, t])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("position", ["KERPLE", "KERPLE power", "T5Bias"])
def test_gradients_reach_a_learned_curve_through_flex(position, window):
    mixer = Attention if window is None else partial(SlidingWindow, window=window)
    found = []
    for made in pair(mixer, BIASED[position], cap=0.8):
        attention = getattr(made, "attention", made)
        attention.qkv.requires_grad_(False)  # on a CPU flex has no backward pass for queries, keys and values
        torch.manual_seed(1)
        x = torch.randn(2, 9, 16).double()
        with torch.inference_mode():
            made(x)  # what it keeps must serve training too
        found.append(torch.autograd.grad(made(x).square().sum(), list(attention.position.parameters())))
    for a, b in zip(*found, strict=True):
        close(a, b)
        assert a.abs().max() > 1e-4


def test_what_flex_compiled_serves_other_lengths_windows_and_caps():
    for T, window, cap in ((9, 3, None), (11, 4, 0.5), (12, 5, 0.8)):
        fused, plain = pair(SlidingWindow, KERPLE, window=window, cap=cap)
        x = torch.randn(2, T, 16).double()
        with torch.no_grad():
            close(fused(x), plain(x))


def test_flex_says_where_it_cannot_serve():
    for name, dim in ((DeBERTa, 16), (Shaw, 16)):
        with pytest.raises(ValueError, match=f"{name.__name__} is more than that; take kernel=sdpa"):
            Attention(dim, 4, position=name(dim, 4), kernel="flex")
    with pytest.raises(ValueError, match="kernel=flex drops no weights, and dropout"):
        SlidingWindow(16, 4, dropout=0.1, kernel="flex")
    with pytest.raises(ValueError, match="kernel=flash is none of auto, sdpa, flex"):
        Attention(16, 4, kernel="flash")
    with pytest.raises(ValueError, match="kernel=flex has no backward pass on cpu; take kernel=auto"):
        Attention(16, 4, kernel="flex")(torch.randn(1, 3, 16))


def test_auto_takes_flex_where_it_saves_a_matrix(monkeypatch):
    monkeypatch.setattr("zoo.nn.kernels.flex.installed", lambda _: True)
    there, alibi, rope = cuda_like(), ALiBi(16, 4), Rotary(16, 4)
    assert takes_flex("auto", there, alibi)
    assert takes_flex("auto", there, rope, cap=50.0)
    assert takes_flex("auto", there, rope, window=8)
    assert not takes_flex("auto", there, rope)  # sdpa does it
    assert not takes_flex("auto", there, alibi, dropout=0.1)
    assert not takes_flex("auto", there, Shaw(16, 4), cap=50.0)
    assert not takes_flex("auto", there, KERPLE(16, 4))  # learned
    assert not takes_flex("auto", cuda_like(width=8), alibi)
    assert not takes_flex("auto", torch.ones(1, 2, 8, 32), alibi)
    assert not takes_flex("sdpa", there, alibi)


def close(a, b, tolerance=1e-11, message=None):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=message)


# on a GPU


@gpu
@pytest.mark.parametrize("case", [*SCANS.values(), (4, 1000, 512, 16), (2, 70, 64, 256)])
def test_the_triton_scan_is_the_loop_on_a_gpu(case):
    errors = scan_errors(scan_inputs(*case, device="cuda"), "triton")
    assert max(errors.values()) < 1e-9, errors
    inputs = scan_inputs(*case, kind=torch.float32, device="cuda")
    twice = [torch.autograd.grad(selective_scan(*inputs, kernel="triton")[0].sum(), inputs) for _ in range(2)]
    assert all(map(torch.equal, *twice))  # same in, same out


@gpu
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("position", {**BIASED, **NONE})
def test_flex_is_the_written_out_form_on_a_gpu_with_its_gradients(position, window):
    mixer = Attention if window is None else partial(SlidingWindow, window=window)
    made = pair(mixer, {**BIASED, **NONE}[position], "cuda", torch.float32, dim=128, kv_heads=2, cap=5.0)
    x, found = torch.randn(2, 300, 128, device="cuda"), []
    for mixer in made:
        y = mixer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


@gpu
@pytest.mark.parametrize("operation", FAKES)
def test_the_real_library_is_the_loop(operation):
    shape, d, e = (2, 4, 200), 64, 64
    real = {"device": "cuda"}
    q, k, v = (torch.randn(*shape, n, **real) for n in (d, d, e))
    k, g, beta = F.normalize(k, dim=-1), -torch.rand(shape, **real), torch.rand(shape, **real)
    like = v if operation == "selective_scan" else v.bfloat16()
    if why := obstacle("library", operation, like, d):
        pytest.skip(why)
    if operation == "selective_scan":
        inputs = scan_inputs(2, 200, 64, 16, torch.float32, "cuda")
        errors = scan_errors(inputs, "library")
        assert max(errors.values()) < 1e-2, errors
        return
    with torch.autocast("cuda", torch.bfloat16):
        if operation == "state_space":
            A = -torch.rand(4, **real)
            dt = beta.transpose(1, 2)
            ours = chunked(q, k, v * beta.unsqueeze(-1), A[:, None] * beta)
            o, last = library.state_space(v.transpose(1, 2), dt, A, k.transpose(1, 2), q.transpose(1, 2))
            theirs = (o.transpose(1, 2), last)
        else:
            run, other = ((chunked, library.linear), (delta, library.delta))[operation == "delta"]
            inputs = (q, k, v, g) if operation == "linear" else (q, k, v, beta, g)
            ours, theirs = run(*inputs), other(*inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 2e-2 * a.norm()


def measured():
    """Every case by the interpreter: what the tests above hold to their bounds."""
    found = {name: scan_errors(scan_inputs(*case), "triton") for name, case in SCANS.items()}
    y, last = selective_scan(*scan_inputs(2, 0, 3, 4), kernel="triton")
    return {**found, "mixer": mixer_errors(), "nothing": [list(y.shape), float(last.abs().sum())]}


if __name__ == "__main__":
    print(json.dumps(measured()))
