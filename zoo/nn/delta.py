"""The gated delta rule: a linear recurrence that replaces what a key holds, instead of adding to it.

B examples, T tokens, H heads; q and k (B, H, T, d), v (B, H, T, e); beta in [0, 1] is how much is replaced, g <= 0
the log-decay, (B, H, T) both. C tokens make a chunk; G is g summed up inside it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.nn.attention import check_heads
from zoo.nn.causal_conv import CausalConv
from zoo.nn.chunked import decayed, decays, in_groups, kept, precise
from zoo.nn.feedforward import scaled_init
from zoo.nn.hippo import log_uniform
from zoo.nn.kernels import check_kernel, choose, library
from zoo.nn.mamba import inverse_softplus


class State(NamedTuple):
    """The last inputs of the convolution (B, conv - 1, 2 D + ratio D), and S (B, H, d, e)."""

    conv: Tensor
    sums: Tensor


class GatedDelta(nn.Module):
    """Gated DeltaNet: memory that is both forgotten and overwritten.  x (B, T, D) -> (B, T, D)

    S' = exp(g_t) S_{t-1};    S_t = S' + k_t beta_t (v_t - S''k_t)';    o_t = S_t'q_t / sqrt(d)
    q, k, v = silu(conv(x W)), q and k of length 1;  beta = sigmoid(x W_b);  g = -A softplus(x W_a + dt_bias)
    y = (norm(o) * silu(x W_g)) W_o, the RMS norm over each head. Yang et al. 2024 (Gated Delta Networks), eq. 10
    and section 3.4.

    ratio       width of values and gate for that of queries and keys
    conv        width of the convolution
    decay       False leaves g out: DeltaNet, Yang et al. 2024 (Parallelizing Linear Transformers)
    negative    beta in [0, 2] instead, so that a state can change its sign (Grazzi et al. 2024)
    kernel      auto, torch or library (flash-linear-attention): zoo.nn.kernels

    Raises ValueError if dim is no multiple of heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        ratio: int = 2,
        conv: int = 4,
        decay: bool = True,
        negative: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(kernel, "delta")
        check_heads(dim, heads)
        self.heads, self.ratio, self.negative, self.kernel = heads, ratio, negative, kernel
        self.parts = ((2 + ratio) * dim, ratio * dim, heads, heads if decay else 0)  # q, k, v; gate; beta; g
        self.inner = nn.Linear(dim, sum(self.parts), bias=False)
        self.conv = CausalConv(self.parts[0], conv, bias=False)
        if decay:
            self.A_log = nn.Parameter(torch.empty(heads).uniform_(1e-3, 16).log())
            self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(heads, 1e-3, 0.1)))
        self.norm = nn.RMSNorm(ratio * dim // heads, eps=1e-5)
        self.out = nn.Linear(ratio * dim, dim, bias=False)
        for linear in (self.inner, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        qkv, gate, *rates = self.inner(x).split(self.parts, -1)
        q, k, v = (y.transpose(1, 2) for y in self.split(self.conv(qkv)))
        beta, g = (y.transpose(1, 2) for y in self.rates(*rates))
        fused = choose(self.kernel, "delta", v, q.shape[-1]) == "library"
        o, sums = (library.delta if fused else delta)(q, k, v, kept(beta, lengths), kept(g, lengths))
        return self.merge(o.transpose(1, 2), gate), State(self.conv.state(qkv, lengths), sums)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        qkv, gate, *rates = self.inner(x_t).split(self.parts, -1)
        qkv, conv = self.conv.step(qkv, state.conv)
        o, sums = delta_recur(*self.split(qkv), *self.rates(*rates), state.sums)
        return self.merge(o, gate), State(conv, sums)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (..., H, d), v (..., H, e): q has its scale"""
        D = qkv.shape[-1] // (2 + self.ratio)
        q, k, v = precise(*F.silu(qkv).split((D, D, self.ratio * D), -1))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        return F.normalize(q, dim=-1, eps=1e-6) * q.shape[-1] ** -0.5, F.normalize(k, dim=-1, eps=1e-6), v

    def rates(self, beta: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """beta and g, (..., H) each"""
        beta, a = precise(beta, a)
        beta = beta.sigmoid() * (2 if self.negative else 1)
        if a.shape[-1] == 0:
            return beta, torch.zeros_like(beta)
        return beta, -self.A_log.exp() * F.softplus(a + self.dt_bias)

    def merge(self, o: Tensor, gate: Tensor) -> Tensor:
        """o (..., H, e), gate (..., H e) -> (..., D)"""
        return self.out(self.norm(o).flatten(-2).type_as(gate) * F.silu(gate))


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
    group: int = 16,
) -> tuple[Tensor, Tensor]:
    """All outputs and the last state, chunk by chunk: `delta_loop`, but fast.  -> (B, H, T, e), (B, H, d, e)

    What a chunk's tokens read and replace of each other is a triangular system, solved for all chunks at once;
    what they read of the state before is then a product:

        A = 1 + [j < i] beta_i k_i'k_j exp(G_i - G_j);    U = A^-1 beta v;    W = A^-1 beta exp(G) k
        v' = U - W S;    o = exp(G) q S + (q k' * exp(G_i - G_j) * [j <= i]) v';
        S <- exp(G_C) S + (exp(G_C - G) k)' v'

    Yang et al. 2024, section 3.3: the UT form of the WY representation. Memory and groups as in
    zoo.nn.chunked.chunked.
    """
    q, k, v, beta, g, state = precise(q, k, v, beta, g, state)
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1])
    with torch.autocast(v.device.type, enabled=False):
        return in_groups(DeltaChunks.apply, (q, k, v, beta, g.clamp(min=-50)), state, chunk, group)


class DeltaChunks(torch.autograd.Function):
    """n chunks of the delta rule.  state (B, H, d, e); q, k (B, H, n, C, d), v (B, H, n, C, e), beta, g (B, H, n, C)

    Of the forward pass it keeps U, W and the state before each chunk, and makes the rest anew.
    """

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        beta = beta.unsqueeze(-1)
        G, after, left, rate = decayed(g)
        Gamma = decays(G)
        A = beta * (k @ k.mT) * Gamma  # its diagonal and what is above it are not read
        both = torch.cat([beta * v, beta * after * k], -1)
        UW = torch.linalg.solve_triangular(A, both, upper=False, unitriangular=True)
        U, W = UW.split((v.shape[-1], k.shape[-1]), -1)
        before, replaced = [], []
        for u, w, end, r in zip(*(x.unbind(2) for x in (U, W, (left * k).mT, rate)), strict=True):
            before.append(state)
            replaced.append(u - w @ state)
            state = r * state + end @ replaced[-1]
        before, replaced = torch.stack(before, 2), torch.stack(replaced, 2)
        ctx.save_for_backward(q, k, v, beta, g, UW, before)
        return after * (q @ before) + ((q @ k.mT) * Gamma) @ replaced, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        q, k, v, beta, g, UW, before = ctx.saved_tensors
        G, after, left, rate = decayed(g)
        Gamma, (U, W) = decays(G), UW.split((v.shape[-1], k.shape[-1]), -1)
        A, P = beta * (k @ k.mT) * Gamma, (q @ k.mT) * Gamma
        replaced = U - W @ before
        # the outputs
        dP, faded = do @ replaced.mT, after * do
        dq, dbefore, dreplaced = faded @ before.mT, q.mT @ faded, P.mT @ do
        dG = (dq * q).sum(-1)
        # the states, from the last to the first
        dgain, dv_new, slope = [], [], dlast
        parts = (x.unbind(2) for x in (dreplaced, dbefore, left * k, W, rate))
        for own, outer, end, w, r in reversed(list(zip(*parts, strict=True))):
            dgain.append(slope)
            dv_new.append(own + end @ slope)
            slope = outer + r * slope - w.mT @ dv_new[-1]
        dgain, dU = torch.stack(dgain[::-1], 2), torch.stack(dv_new[::-1], 2)
        dk = left * (replaced @ dgain.mT)
        dleft = (dk * k).sum(-1)
        dG -= dleft
        dG[..., -1] += dleft.sum(-1) + (rate * dgain * before).sum((-2, -1))
        # the triangular system
        dUW = torch.cat([dU, -dU @ before.mT], -1)
        dboth = torch.linalg.solve_triangular(A.mT, dUW, upper=True, unitriangular=True)
        dA = -(dboth @ UW.mT).tril_(-1)
        dv, dW = dboth.split((v.shape[-1], k.shape[-1]), -1)
        of_k = (dW * after * k).sum(-1, keepdim=True)
        dA_A, dP_P = dA * (k @ k.mT) * Gamma, dP * P
        dbeta = (dv * v).sum(-1) + of_k.squeeze(-1) + dA_A.sum(-1)
        both = beta * dA_A + dP_P
        dG += (beta * of_k).squeeze(-1) + both.sum(-1) - both.sum(-2)
        # the products of keys and queries
        dkk, dqk = beta * dA * Gamma, dP * Gamma
        dq += dqk @ k
        dk += beta * after * dW + dkk @ k + dkk.mT @ k + dqk.mT @ q
        return slope, dq, dk, beta * dv, dbeta, dG.flip(-1).cumsum(-1).flip(-1)


def delta_loop(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, token by token: what `delta` must equal."""
    if state is None:
        state = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[2]):
        o, state = delta_recur(*(x[:, :, t] for x in (q, k, v, beta, g)), state)
        outputs.append(o)
    return torch.stack(outputs, 2), state


def delta_recur(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: the arguments are those of `delta` without T.  -> (B, H, e), (B, H, d, e)"""
    q, k, v, beta, g, state = precise(q, k, v, beta, g, state)
    with torch.autocast(v.device.type, enabled=False):
        state = g.exp()[..., None, None] * state
        held = (k.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k.unsqueeze(-1) * (beta.unsqueeze(-1) * (v - held)).unsqueeze(-2)
        return (q.unsqueeze(-2) @ state).squeeze(-2), state
