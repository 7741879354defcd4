"""One engine for all linear recurrences: a state that is a matrix, in time and memory that grow with T.

    S_t = exp(g_t) * S_{t-1} + k_t v_t',    o_t = q_t' S_t

B examples, T tokens, H heads. q and k (B, H, T, d), or with fewer heads, each shared by neighbouring heads of v;
v and o (B, H, T, e); g <= 0 is the log-decay, (B, H, T) for the whole of S_t, (B, H, T, d) for each of its rows;
S (B, H, d, e). A chunk is C tokens; G is g summed up inside a chunk, the own token included.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Piece = Callable[..., tuple[Tensor, Any]]


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
    group: int = 16,
) -> tuple[Tensor, Tensor]:
    """All outputs and the last state, chunk by chunk: `loop`, but fast.  -> (B, H, T, e), (B, H, d, e)

    Inside a chunk tokens meet in a masked product of matrices, between chunks goes the state:

        o = exp(G) q S + (q k' * exp(G_i - G_j) * [j <= i]) v;    S <- exp(G_C) S + (exp(G_C - G) k)' v

    All exponents are <= 0. Sums are float32 at least: in bfloat16 a long one stands still. Dao & Gu 2024,
    section 6; Yang et al. 2023, section 4, for decays by row.

    g           None is no decay
    state       S before the first token; None is zeros
    chunk       tokens in a chunk
    group       chunks that are computed at once, so that they stay in a cache. The backward pass keeps inputs,
                outputs and states between chunks, and makes the rest anew
    """
    q, k, v, g, state = precise(q, k, v, g, state)
    # exp(-50) is as good as 0, and larger sums would cost the weights after it their last digits
    inputs = (q, k, v) if g is None else (q, k, v, g.clamp(min=-50))
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1])
    with torch.autocast(v.device.type, enabled=False):
        if g is None or g.ndim == 3:
            return in_groups(ByHead.apply, inputs, state, chunk, group)
        return in_groups(by_row, inputs, state, chunk, group, anew=True)


def loop(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, token by token: what `chunked` must equal."""
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[2]):
        o, state = recur(q[:, :, t], k[:, :, t], v[:, :, t], None if g is None else g[:, :, t], state)
        outputs.append(o)
    return torch.stack(outputs, 2), state


def recur(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the arguments are those of `chunked` without T.  -> (B, H, e), (B, H, d, e)"""
    q, k, v, g, state = precise(q, k, v, g, state)
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    if g is not None:
        state = state * g.exp().unsqueeze(-1).view(*g.shape[:2], -1, 1)
    state = state + k.unsqueeze(-1) * v.unsqueeze(-2)
    with torch.autocast(v.device.type, enabled=False):
        return (q.unsqueeze(-2) @ state).squeeze(-2), state


def in_groups(
    piece: Piece, inputs: tuple[Tensor, ...], state: Any, chunk: int, group: int, *, anew: bool = False
) -> tuple[Tensor, Any]:
    """Run piece(state, *inputs) -> (outputs, state) over the chunks, `group` of them at a time.

    inputs (B, H, T, ...) are handed on as (B, H, n, C, ...). The last chunk is filled up with zeros, so an input
    must change nothing where it is zero. -> (B, H, T, ...) and the last state

    anew    of more than one group keep the inputs only, and compute each again in the backward pass
    """
    T = inputs[0].shape[2]
    C = max(1, min(chunk, T))
    n = max(1, math.ceil(T / C))
    if n * C > T:
        inputs = tuple(F.pad(x, (0, 0) * (x.ndim - 3) + (0, n * C - T)) for x in inputs)
    cut = [x.unflatten(2, (n, C)) for x in inputs]
    if anew and torch.is_grad_enabled() and n > group:
        piece = partial(checkpoint, piece, use_reentrant=False, preserve_rng_state=False)
    outputs = []
    for parts in zip(*(x.split(group, 2) for x in cut), strict=True):
        o, state = piece(state, *parts)
        outputs.append(o)
    return torch.cat(outputs, 2).flatten(2, 3)[:, :, :T], state


class ByHead(torch.autograd.Function):
    """n chunks where all of a state decays alike, or does not.  state (B, H, d, e); the others (B, H, n, C, ...)

    Of the forward pass it keeps the state before each chunk; what is as large as C x C is made anew.
    """

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        R = v.shape[1] // q.shape[1]
        G, after, left, rate = decayed(g)
        weights = weighed(repeated(q @ k.mT, R), G)
        before, last = states(state, repeated(k, R).mT @ times(left, v), rate)
        ctx.save_for_backward(q, k, v, g, before)
        return (weights @ v).add_(times(after, repeated(q, R) @ before)), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, before = ctx.saved_tensors
        R = v.shape[1] // q.shape[1]
        G, after, left, rate = decayed(g)
        # what the state before gave
        faded = times(after, do)
        dq = faded @ before.mT
        dgain, dstate = states_back(dlast, repeated(q, R).mT @ faded, rate)
        # what is in the state after
        dk = times(left, v) @ dgain.mT
        dv = times(left, repeated(k, R) @ dgain)
        # inside a chunk
        dscores = weighed(do @ v.mT, G)
        scores = repeated(q @ k.mT, R)
        dg = None
        if g is not None and g.requires_grad:
            dafter, dleft = (dq * repeated(q, R)).sum(-1), (dk * repeated(k, R)).sum(-1)
            both = scores * dscores
            dG = dafter - dleft + both.sum(-1) - both.sum(-2)
            dG[..., -1] += dleft.sum(-1) + (rate * dgain * before).sum((-2, -1))
            dg = dG.flip(-1).cumsum(-1).flip(-1)
        dv += weighed(scores, G).mT @ do
        dscores, dq, dk = (x if R == 1 else x.unflatten(1, (-1, R)).sum(2) for x in (dscores, dq, dk))
        return dstate, dq.add_(dscores @ k), dk.add_(dscores.mT @ q), dv, dg


def by_row(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """n chunks where each row of a state, a feature of k, has its decay.  g (B, H, n, C, d)"""
    R = v.shape[1] // q.shape[1]
    q, k = repeated(q, R), repeated(k, R)
    G = g.cumsum(-2)
    left = (G[..., -1:, :] - G).exp()
    before, state = states(state, (left * k).mT @ v, G[..., -1, :].exp().unsqueeze(-1))
    return scores_by_row(q, k, G) @ v + (q * G.exp()) @ before, state


def states(state: Tensor, gain: Tensor, rate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The state before each of n chunks, and after all.  gain (B, H, n, d, e), rate (B, H, n, d or 1, 1)"""
    # unbind: the backward pass of gain[:, :, i] would fill a whole gain with zeros, for each i
    rates = [None] * gain.shape[2] if rate is None else rate.unbind(2)
    before = []
    for new, rate in zip(gain.unbind(2), rates, strict=True):
        before.append(state)
        state = new + (state if rate is None else rate * state)
    return torch.stack(before, 2), state


def states_back(slope: Tensor, dbefore: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
    """The slopes of `states`, of each gain and of the first state: from that of the last and of those before."""
    rates = [None] * dbefore.shape[2] if rate is None else rate.unbind(2)
    gains = []
    for own, rate in zip(reversed(dbefore.unbind(2)), reversed(rates), strict=True):
        gains.append(slope)
        slope = own + (slope if rate is None else rate * slope)
    return torch.stack(gains[::-1], 2), slope


def decayed(g: Tensor | None) -> tuple[Tensor | None, ...]:
    """G; what is left of the state before at each token, and of each token and of that state at the end.

    g (B, H, n, C) -> (B, H, n, C), 2 (B, H, n, C, 1), (B, H, n, 1, 1), or nothing of nothing
    """
    if g is None:
        return None, None, None, None
    G = g.cumsum(-1)
    return G, G.exp().unsqueeze(-1), (G[..., -1:] - G).exp().unsqueeze(-1), G[..., -1:, None].exp()


def times(decay: Tensor | None, x: Tensor) -> Tensor:
    """decay x, where there is a decay."""
    return x if decay is None else decay * x


def weighed(scores: Tensor, G: Tensor | None) -> Tensor:
    """Scores of what is not in the future, each with what is left of it: they are changed."""
    return scores.tril_() if G is None else scores.mul_(decays(G))


def decays(G: Tensor) -> Tensor:
    """What is left at i of what came in at j: exp(G_i - G_j) for j <= i, else 0.  (..., C) -> (..., C, C)

    A difference of sums is right to their size times 1e-7 in float32, some 1e-5 for 64 strong decays.
    """
    future = torch.ones(G.shape[-1], G.shape[-1], dtype=torch.bool, device=G.device).triu(1)
    # before exp: what would overflow there, times 0, is no number in the backward pass
    return (G.unsqueeze(-1) - G.unsqueeze(-2)).masked_fill_(future, -math.inf).exp_()


def scores_by_row(q: Tensor, k: Tensor, G: Tensor) -> Tensor:
    """sum_c q_ic k_jc exp(G_ic - G_jc) for j <= i, else 0.  (..., C, d) -> (..., C, C)

    In blocks of up to 16 tokens: keys of earlier blocks meet queries in a product of matrices, both scaled
    from the end of the block before the query's, so that no exponent is positive; keys of the same block
    meet them feature by feature. Yang et al. 2023, section 4.3.
    """
    C = q.shape[-2]
    size = math.gcd(C, 16)
    at = torch.arange(C, device=q.device)
    q_in, k_in, G_in = (x.unflatten(-2, (-1, size)) for x in (q, k, G))  # (..., s, 16, d)
    start = F.pad(G_in[..., :-1, -1, :], (0, 0, 1, 0)).unsqueeze(-2)  # (..., s, 1, d)
    later = (at >= at[::size, None]).unsqueeze(-1)  # (s, C, 1)
    earlier = k.unsqueeze(-3) * (start - G.unsqueeze(-3)).masked_fill(later, -math.inf).exp()
    scores = (q_in * (G_in - start).exp()) @ earlier.mT  # (..., s, 16, C)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1).unsqueeze(-1)
    inside = (G_in.unsqueeze(-2) - G_in.unsqueeze(-3)).masked_fill(future, -math.inf).exp()
    inside = ((q_in.unsqueeze(-2) * k_in.unsqueeze(-3)) * inside).sum(-1)  # (..., s, 16, 16)
    own = torch.eye(C // size, dtype=q.dtype, device=q.device)[:, None, :, None]
    return (scores.unflatten(-1, (-1, size)) + own * inside.unsqueeze(-2)).flatten(-2).flatten(-3, -2)


def repeated(x: Tensor, times: int) -> Tensor:
    """Each head `times` times, next to each other."""
    return x if times == 1 else x.repeat_interleave(times, 1)


def precise(*tensors: Tensor | None) -> list[Tensor | None]:
    """In float32, or float64 where one of them is."""
    real = torch.float32
    for x in tensors:
        real = real if x is None else torch.promote_types(real, x.dtype)
    return [None if x is None else x.to(real) for x in tensors]


def kept(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero from lengths[b] on, where a prompt has ended; a recurrence then stands still.  x (B, H, T, ...)"""
    if lengths is None:
        return x
    there = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
    return x * there.view(len(x), 1, -1, *[1] * (x.ndim - 3))


def end(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The position after a prompt x (B, T, D): (1,), or (B, 1) where prompts differ in length."""
    return torch.full((1,), x.shape[1], device=x.device) if lengths is None else lengths.unsqueeze(1)
