"""Layers for sequences: against those of peers, and how their time and memory grow with the length.

One layer of width 256 with 4 heads, forward and backward, 1,024 tokens, batch 1, float32, unless a row says
otherwise; the same on a GPU where there is one. How time and memory are taken: benchmarks.layers.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import decoding, growth, mfu
from benchmarks.layers import Step
from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from benchmarks.ssd import ssd
from zoo.nn import LinearAttention, Mamba, Performer
from zoo.nn.chunked import chunked
from zoo.nn.mamba import selective_scan, selective_scan_loop
from zoo.nn.scan import scan_loop

T, DIM, HEADS = 1024, 256, 4
SIZE = f"one layer, width {DIM}, {T:,} tokens, forward and backward"


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, T, DIM)
    yield from against("Mamba", Mamba(DIM), mambapy, x, "mambapy", most=0.45, memory=0.15)
    yield slow_mamba(x)
    yield from scans()
    yield from listing()
    linear = LinearAttention(DIM, HEADS)
    yield from against(
        "causal linear attention", linear, linear_peer, x, "linear-attention-transformer", least=8
    )
    performer = Performer(DIM, HEADS)
    yield from against("Performer, causal", performer, performer_peer, x, "performer-pytorch", least=6)
    yield from growth.rows()
    yield from decoding.rows()
    yield mfu.row()


def against(
    what: str,
    ours: nn.Module,
    peer: Callable[[], nn.Module],
    x: Tensor,
    package: str,
    *,
    most: float | None = None,
    least: float | None = None,
    memory: float | None = None,
) -> Iterator[Row]:
    """Time and memory beside a peer's: ratios at most `most` and `memory`, or `least` times as fast."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        yield Row(f"{what}: time and memory", theirs=package, note=INSTALL)
        return
    steps = {"ours": Step(ours, x), "theirs": Step(peer(), x)}
    seconds = interleaved(steps, 15)
    ratios = over(seconds["ours"], seconds["theirs"])
    if least is not None:
        ratios = over(seconds["theirs"], seconds["ours"])
    times = ms(seconds["ours"]), ms(seconds["theirs"])
    yield Row(f"{what}: time", *times, ratios, most=most, least=least, note=f"{package}; {SIZE}")
    bytes_ = {name: step.memory() for name, step in steps.items()}
    ratio = [bytes_["ours"] / bytes_["theirs"]]
    told = f"{bytes_['ours']:.3g} MB", f"{bytes_['theirs']:.3g} MB"
    yield Row(f"{what}: memory", *told, ratio, most=memory, note=f"{package}; peak of the allocator")


def mambapy() -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=DIM, n_layers=1))


def linear_peer() -> nn.Module:
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    return SelfAttention(DIM, HEADS, causal=True, blindspot_size=1)  # exact, as ours


def performer_peer() -> nn.Module:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has no CUDA code
        from performer_pytorch import SelfAttention

        return SelfAttention(DIM, heads=HEADS, dim_head=DIM // HEADS, causal=True)


def slow_mamba(x: Tensor) -> Row:
    """Against what `transformers` runs where its kernels are not installed; once, for it takes long."""
    what, peer = "Mamba: time", "the slow path of transformers' MambaMixer"
    if importlib.util.find_spec("transformers") is None:
        return Row(what, theirs=peer, note=INSTALL)
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = MambaConfig(
        hidden_size=DIM, num_hidden_layers=1, vocab_size=1, use_mambapy=False, use_associative_scan=False
    )
    steps = {"ours": Step(Mamba(DIM), x), "theirs": Step(MambaMixer(config, 0), x)}
    steps["ours"]()  # the first is slower
    seconds = interleaved(steps, 1, warm=0)
    ratios = over(seconds["theirs"], seconds["ours"])
    return Row(
        what, ms(seconds["ours"]), ms(seconds["theirs"]), ratios, least=50, note=f"{peer}; {SIZE}; once"
    )


def scans() -> Iterator[Row]:
    """The selective scan alone, against its definition and against a reference as the authors wrote theirs."""
    E, N = 2 * DIM, 16
    x, dt, A = torch.randn(1, T, E), torch.rand(1, T, E) * 0.1, -torch.rand(N, E) * N
    inputs = (x, dt, A, torch.randn(1, T, N), torch.randn(1, T, N))
    for scan, note in (
        (selective_scan_loop, "zoo.nn.mamba.selective_scan_loop, token by token"),
        (materialised, "all decays and inputs first, then token by token, as the authors' reference; once"),
    ):
        steps = {"ours": Step(selective_scan, *inputs), "theirs": Step(scan, *inputs)}
        steps["ours"]()  # the first is slower
        seconds = interleaved(steps, 1 if scan is materialised else 5, warm=0)
        ratios = over(seconds["theirs"], seconds["ours"])
        about = f"{note}; the scan alone, {E} channels, {N} states, {T:,} tokens"
        yield Row(
            "Mamba's scan: time", ms(seconds["ours"]), ms(seconds["theirs"]), ratios, least=50, note=about
        )


def materialised(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The selective scan from (B, T, N, E) decays and inputs: x, dt (B, T, E); A (N, E); B, C (B, T, N)."""
    a, b = (dt.unsqueeze(2) * A).exp(), (dt * x).unsqueeze(2) * B.unsqueeze(-1)
    return (scan_loop(a, b) * C.unsqueeze(-1)).sum(2)


def listing() -> Iterator[Row]:
    """Mamba-2's recurrence against the paper's own listing of it."""
    H, P, N = 2 * DIM // 64, 64, 128
    q, k, v = torch.randn(1, 1, T, N), torch.randn(1, 1, T, N) / N, torch.randn(1, H, T, P)
    inputs = (q, k, v, -torch.rand(1, H, T))
    ours, theirs = Step(chunked, *inputs), Step(ssd, *inputs)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.layer(*ours.inputs)[0], theirs.layer(*theirs.inputs), atol=1e-4, rtol=1e-3
        )
    seconds = interleaved({"ours": ours, "theirs": theirs}, 15)
    note = f"the paper's minimal listing, benchmarks.ssd; {H} heads of {P}, {N} states, {T:,} tokens"
    times = ms(seconds["ours"]), ms(seconds["theirs"])
    yield Row(
        "Mamba-2's recurrence: time", *times, over(seconds["ours"], seconds["theirs"]), most=1.0, note=note
    )
    mine, other = ours.memory(), theirs.memory()
    told = f"{mine:.3g} MB", f"{other:.3g} MB"
    yield Row("Mamba-2's recurrence: memory", *told, [mine / other], most=1.0, note="peak of the allocator")
