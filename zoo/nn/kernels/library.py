"""Published kernels behind the house's own signatures: the arguments turned to their layouts, and back.

mamba-ssm, Gu & Dao 2023, Dao & Gu 2024; flash-linear-attention, Yang & Zhang 2024. Sums are float32 in all of them.
Their own options stay off: no scale of the scores, no step sizes made inside, no state before the first token.
"""

from torch import Tensor

from zoo.nn.chunked import precise, repeated
from zoo.nn.kernels import working_type


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """zoo.nn.mamba.selective_scan.  theirs: x, dt (B, E, T); A (E, N); B, C (B, N, T) -> (B, E, T), (B, E, N)"""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, dt, B, C = (v.mT.contiguous() for v in (x.to(dt.dtype), dt, B, C))
    y, last = selective_scan_fn(x, dt, A.T.contiguous(), B, C, delta_softplus=False, return_last_state=True)
    return y.mT, last.detach().mT


def state_space(x: Tensor, dt: Tensor, A: Tensor, k: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(dt_t A) S_{t-1} + k_t (dt_t x_t)', o_t = S_t'q_t: Mamba-2.

    x (B, T, H, P), dt (B, T, H), A (H,), k and q (B, T, groups, N) -> o as x, S (B, H, N, P); theirs: S (B, H, P, N)
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x, k, q = (v.to(working_type(x)) for v in (x, k, q))
    dt, A = precise(dt, A)
    o, last = mamba_chunk_scan_combined(
        x, dt, A, k, q, chunk_size=256, dt_softplus=False, return_final_states=True
    )
    return o, precise(last.mT)[0]


def linear(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """zoo.nn.chunked.chunked, without decays by row.  theirs: q, k (B, T, H, d), v (B, T, H, e), g (B, T, H)

    Retention is this with a decay that is always the same, and linear attention without one.
    """
    from fla.ops.simple_gla import chunk_simple_gla

    q, k = (repeated(x, v.shape[1] // x.shape[1]) for x in (q, k))
    kind = working_type(v)
    q, k, v = (x.to(kind).transpose(1, 2).contiguous() for x in (q, k, v))
    if g is not None:
        g = precise(g)[0].transpose(1, 2).contiguous()
    o, last = chunk_simple_gla(q, k, v, g=g, scale=1.0, output_final_state=True)
    return precise(o.transpose(1, 2))[0], last


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """zoo.nn.delta.delta.  theirs: q, k (B, T, H, d), v (B, T, H, e), beta and g (B, T, H)"""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    kind = working_type(v)
    q, k, v = (x.to(kind).transpose(1, 2).contiguous() for x in (q, k, v))
    beta, g = (x.transpose(1, 2).contiguous() for x in precise(beta, g))
    o, last = chunk_gated_delta_rule(q, k, v, g=g, beta=beta, scale=1.0, output_final_state=True)
    return precise(o.transpose(1, 2))[0], last
