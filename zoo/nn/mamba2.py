"""Mamba-2: a state space model whose step sizes depend on the token, as one decaying state for each head.

B examples, T tokens, D features; E = expand D features inside, in H heads of P; N is the state's size for each of
them. Groups of heads share their B and C, here named k and q, as in attention.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import nearest_divisor
from zoo.nn.causal_conv import CausalConv
from zoo.nn.chunked import chunked, kept, precise, recur
from zoo.nn.feedforward import scaled_init
from zoo.nn.hippo import log_uniform
from zoo.nn.kernels import check_kernel, choose, library
from zoo.nn.mamba import inverse_softplus


class State(NamedTuple):
    """The last inputs of the convolution (B, conv - 1, E + 2 groups N), and S (B, H, N, P)."""

    conv: Tensor
    sums: Tensor


class Mamba2(nn.Module):
    """A selective state space block, which is a whole block: no feed-forward beside it.  (B, T, D) -> (B, T, D)

    z, x, k, q, dt = u W_in;    x, k, q = silu(conv(x, k, q));    dt = softplus(dt + dt_bias)
    S_t = exp(-dt_t A) S_{t-1} + k_t (dt_t x_t)',    y_t = S_t'q_t + D x_t
    out = norm(y * silu(z)) W_out, the RMS norm over each group of heads.

    Dao & Gu 2024, sections 6 and 7, and the first values of their code: A in [1, 16], dt in [1e-3, 0.1].

    state       N
    head        P, features of a head
    expand      E / D
    groups      of heads that share k and q
    conv        width of the convolution
    kernel      auto, torch or library (mamba-ssm): zoo.nn.kernels

    Raises ValueError if heads of P do not fill E, or groups do not divide the heads.
    """

    whole: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        *,
        state: int = 128,
        head: int = 64,
        expand: int = 2,
        groups: int = 1,
        conv: int = 4,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(kernel, "state_space")
        E = expand * dim
        if E % head:
            raise ValueError(
                f"{expand} * dim={dim} features cannot be split into heads of head={head}; "
                f"try head={nearest_divisor(E, head)}"
            )
        H = E // head
        if H % groups:
            raise ValueError(
                f"{H} heads cannot be split over groups={groups}; try groups={nearest_divisor(H, groups)}"
            )
        self.heads, self.groups, self.kernel = H, groups, kernel
        self.parts = (E, E + 2 * groups * state, H)  # z; x, k, q; dt
        self.inner = nn.Linear(dim, sum(self.parts), bias=False)
        self.conv = CausalConv(self.parts[1], conv)
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(H, 1e-3, 0.1)))
        self.D = nn.Parameter(torch.ones(H))
        self.norm = nn.Parameter(torch.ones(E))
        self.out = nn.Linear(E, dim, bias=False)
        for linear in (self.inner, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        z, xkq, dt = self.inner(x).split(self.parts, -1)
        x, k, q = self.split(self.conv(xkq))  # (B, T, heads, ...)
        dt = kept(self.step_size(dt).mT, lengths)  # (B, H, T); a step of no time leaves the state as it is
        A = -self.A_log.exp()
        if choose(self.kernel, "state_space", x, k.shape[-1]) == "library":
            o, sums = library.state_space(x, dt.mT, A, k, q)
        else:
            q, k, v = (y.transpose(1, 2) for y in (q, k, x))
            o, sums = chunked(q, k, v * dt.unsqueeze(-1), A.unsqueeze(-1) * dt)
            o = o.transpose(1, 2)
        return self.merge(o, x, z), State(self.conv.state(xkq, lengths), sums)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        z, xkq, dt = self.inner(x_t).split(self.parts, -1)
        xkq, conv = self.conv.step(xkq, state.conv)
        x, k, q = self.split(xkq)
        dt = self.step_size(dt)
        o, sums = recur(q, k, x * dt.unsqueeze(-1), -dt * self.A_log.exp(), state.sums)
        return self.merge(o, x, z), State(conv, sums)

    def split(self, xkq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., H, P), k and q (..., groups, N)"""
        E, rest = self.parts[0], (self.parts[1] - self.parts[0]) // 2
        x, k, q = F.silu(xkq).split((E, rest, rest), -1)
        groups = (self.groups, -1)
        return x.unflatten(-1, (self.heads, -1)), k.unflatten(-1, groups), q.unflatten(-1, groups)

    def step_size(self, dt: Tensor) -> Tensor:
        (dt,) = precise(dt)
        return F.softplus(dt + self.dt_bias)

    def merge(self, o: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """o and x (..., H, P), z (..., E) -> (..., D)"""
        y = (o + self.D.unsqueeze(-1) * x).flatten(-2) * F.silu(z)
        y = F.rms_norm(y.unflatten(-1, (self.groups, -1)), (y.shape[-1] // self.groups,), eps=1e-5)
        return self.out((y.flatten(-2) * self.norm).type_as(z))
