"""S4: a HiPPO state space for each channel, whose kernel comes from its Fourier transform.

A = diag(Lambda) - P P^* has N complex modes in conjugate pairs, of which one is kept, N/2: sums over all are
2 Re. Kernels are (D, T): T taps of each channel.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.nn.chunked import precise
from zoo.nn.feedforward import scaled_init
from zoo.nn.hippo import legs_dplr, log_uniform
from zoo.nn.s4d import convolve, newest_first
from zoo.nn.scan import chunks, tokens_at_once


class State(NamedTuple):
    """h (B, D, N/2), complex, and the C (D, N/2) that reads it."""

    h: Tensor
    C: Tensor


class S4(nn.Module):
    """A HiPPO state space for each channel, then a linear map with a gate.  (B, T, D) -> (B, T, D)

    h' = A h + B u, y = C h + D u, by the bilinear rule in steps of dt; then glu(gelu(y) W_out). Gu et al.
    2021. A, P and B start as HiPPO-LegS and are shared by all channels; C and dt are each channel's own.

    state       N, real numbers that a channel remembers
    length      L, taps of the kernel. What is trained is C (I - a^L), a = the state's factor per step, as in
                the paper's section 3.2, started as N(0, 1). A shorter sequence takes the first taps, a longer
                one is exact too, but slow to set up: give the data's length
    dt_min, dt_max      each channel's step starts between them, evenly in its logarithm

    The paper trains A_log, A_imag, P, B and log_dt at 0.001 at most, without decay.
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, dim: int, state: int = 64, *, length: int = 1024, dt_min: float = 1e-3, dt_max: float = 0.1
    ) -> None:
        super().__init__()
        if state % 2:
            raise ValueError(f"state={state} cannot be made of conjugate pairs; try state={state + 1}")
        real = torch.get_default_dtype()
        A, P, B = legs_dplr(state)
        self.length = length
        self.A_log = nn.Parameter((-A.real).log().to(real))
        self.A_imag = nn.Parameter(A.imag.to(real, copy=True))
        self.P = nn.Parameter(torch.view_as_real(P).to(real))
        self.B = nn.Parameter(torch.view_as_real(B).to(real))
        self.C = nn.Parameter(torch.randn(dim, state // 2, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(log_uniform(dim, dt_min, dt_max).log())
        self.D = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(convolve(x, self.kernel(x.shape[1])), x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        parts = self.parts()
        h = parts.after(newest_first(x, lengths))
        return self.forward(x), State(h, parts.untruncated(self.length))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        h = self.parts().update(state.h, x_t)
        return self.gate(2 * (state.C * h).sum(-1).real, x_t), State(h, state.C)

    def gate(self, y: Tensor, x: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu((y + self.D * x).type_as(x))), -1)

    def parts(self) -> "DPLR":
        A_log, A_imag, log_dt, *PBC = precise(self.A_log, self.A_imag, self.log_dt, self.P, self.B, self.C)
        A = torch.complex(-A_log.exp(), A_imag)
        return DPLR(A, *(torch.view_as_complex(v) for v in PBC), log_dt.exp().unsqueeze(-1))

    def kernel(self, T: int) -> Tensor:
        """K_t = C a^t b for t < T, (D, T), a and b the factors of state and input per step."""
        parts, length = self.parts(), self.length
        while length < T:
            parts, length = parts.doubled(length), 2 * length
        return torch.fft.irfft(parts.spectrum(length), length)[:, :T]

    def kernel_loop(self, T: int) -> Tensor:
        """kernel as the response to a 1 followed by zeros, token by token."""
        parts = self.parts()
        C, h, taps = parts.untruncated(self.length), torch.zeros_like(parts.C)[None], []
        for t in range(T):
            h = parts.update(h, torch.full_like(self.D, float(t == 0))[None])
            taps.append(2 * (C * h[0]).sum(-1).real)
        return torch.stack(taps, -1)


class DPLR(NamedTuple):
    """A discretised state space, diagonal plus low rank: A, P, B (N/2,), C (D, N/2) complex, dt (D, 1)."""

    A: Tensor
    P: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        """The next state: (I - dt/2 A)^-1 ((I + dt/2 A) h + dt B x).  h (B, D, N/2), x (B, D)"""
        A, P, B, _, dt = self
        h = (1 + dt / 2 * A) * h - dt / 2 * P * paired(P, h) + dt * B * x.unsqueeze(-1)
        E = 1 / (1 - dt / 2 * A)
        h = E * h
        return h - E * P * paired(P, h) / (2 / dt + paired(P, E * P))

    def after(self, past: Tensor) -> Tensor:
        """The state that tokens leave, the newest first.  (B, T, D) -> (B, D, N/2)

        A token of age t = i m + j, j < m, leaves a^(i m) a^j b x: sums over j, then h = a^m h + sum_i from the
        oldest i on, about 2 sqrt(T) steps where `update` takes T.
        """
        m = math.isqrt(max(past.shape[1] - 1, 0)) + 1
        h, left = torch.zeros_like(self.C)[None], []
        for j in range(m):
            h = self.update(h, torch.full_like(self.dt[:, 0], float(j == 0))[None])
            left.append(h[0])
        past = F.pad(past.mT, (0, m * m - past.shape[1])).unflatten(-1, (m, m))  # (B, D, i, j)
        sums = torch.einsum("bdij,dnj->ibdn", past.to(h.dtype), torch.stack(left, -1))
        power = torch.linalg.matrix_power(self.factor(), m)[:, : h.shape[-1]].to(h.dtype)  # (D, N/2, N)
        h = torch.zeros_like(sums[0])
        for i in reversed(range(m)):
            h = torch.einsum("dnk,bdk->bdn", power, torch.cat([h, h.conj()], -1)) + sums[i]
        return h

    def spectrum(self, length: int) -> Tensor:
        """The Fourier transform of the first taps, (D, length/2 + 1), if C is that of a kernel cut at length.

        With z = exp(-2 pi i l / length), p = 2 (1 - z)/dt, s = 1 + z and k(u, v) = sum_n u_n v_n / (p - s
        A_n) it is 2 (k(C, B) - s k(C, P) k(P^*, B) / (1 + s k(P^*, P))): the paper's algorithm 1, times s/s,
        which is finite at z = -1. Sums are made again in the backward pass: (D, length, N) never exists.
        """
        angle = torch.arange(length // 2 + 1, device=self.dt.device).to(self.dt) * (-2 * math.pi / length)
        z = torch.polar(torch.ones_like(angle), angle)
        step = tokens_at_once(self.C.numel(), z.device)
        parts = [checkpoint(self.at, z[now], use_reentrant=False) for now in chunks(len(z), step)]
        return torch.cat(parts, -1)

    def at(self, z: Tensor) -> Tensor:
        """The spectrum at some roots of unity.  z (F,) -> (D, F)"""
        A, P, B, C, dt = self
        p, s = 2 * (1 - z) / dt, 1 + z
        # v/(p - s A) and its partner with conjugate v and A share this denominator
        r = 1 / ((p.unsqueeze(-1) - s[:, None] * A) * (p.unsqueeze(-1) - s[:, None] * A.conj()))
        v = torch.stack(torch.broadcast_tensors(C * B, C * P, P.conj() * B, P.conj() * P), -1)  # (D, N/2, 4)
        top = torch.cat([v.real, (v * A.conj().unsqueeze(-1)).real], -1).to(r.dtype)
        with_p, with_s = (2 * r @ top).chunk(2, -1)
        CB, CP, PB, PP = (p.unsqueeze(-1) * with_p - s[:, None] * with_s).unbind(-1)
        return 2 * (CB - s * CP * PB / (1 + s * PP))

    def factor(self) -> Tensor:
        """The state's factor per step with all N modes, (D, N, N), in float64 for its high powers."""
        A, P = (torch.cat([v, v.conj()]).to(torch.complex128) for v in (self.A, self.P))
        A = self.dt.double().unsqueeze(-1) / 2 * (torch.diag(A) - torch.outer(P, P.conj()))
        one = torch.eye(len(P), dtype=A.dtype, device=A.device)
        return torch.linalg.solve(one - A, one + A)

    def untruncated(self, length: int) -> Tensor:
        """C of the whole, endless kernel, (D, N/2): C (I - a^length)^-1."""
        C = torch.cat([self.C, self.C.conj()], -1).to(torch.complex128).unsqueeze(-2)
        power = torch.linalg.matrix_power(self.factor(), length)
        one = torch.eye(power.shape[-1], dtype=power.dtype, device=power.device)
        C = torch.linalg.solve(one - power, C, left=False).squeeze(-2)
        return C[..., : C.shape[-1] // 2].to(self.C.dtype)

    def doubled(self, length: int) -> "DPLR":
        """The same, cut at twice the length: C (I - a^2L) = C (I - a^L) (I + a^L)."""
        C = torch.cat([self.C, self.C.conj()], -1).to(torch.complex128).unsqueeze(-2)
        C = (C + C @ torch.linalg.matrix_power(self.factor(), length)).squeeze(-2)
        return self._replace(C=C[..., : C.shape[-1] // 2].to(self.C.dtype))


def paired(P: Tensor, h: Tensor) -> Tensor:
    """P^* h over all N modes, which is real.  (..., N/2) -> (..., 1)"""
    return 2 * (P.conj() * h).sum(-1, keepdim=True).real
