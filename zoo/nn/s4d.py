"""S4D: each channel is a linear state space with diagonal A, read as one long convolution.

Of conjugate pairs of modes one is kept, N/2 of N: sums over modes are 2 Re. Kernels are (D, T): T taps of
each channel.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.chunked import precise
from zoo.nn.feedforward import scaled_init
from zoo.nn.hippo import log_uniform, s4d_lin
from zoo.nn.scan import scan_loop


class S4D(nn.Module):
    """A diagonal state space for each channel, then a linear map with a gate.  (B, T, D) -> (B, T, D)

    h' = A h + u, y = 2 Re(C h) + D u, sampled in steps of dt: h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1)/A u_t
    (zero-order hold). Then glu(gelu(y) W_out). Gu et al. 2022, sections 3 and 4.

    state       N, real numbers that a channel remembers
    init        what A starts as, init(N) -> (N/2,): zoo.nn.s4d_lin, s4d_inv or s4d_legs
    dt_min, dt_max      each channel's step starts between them, evenly in its logarithm

    A = -exp(A_log) + i A_imag. The paper trains A_log, A_imag and log_dt at 0.001 at most, without decay.
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        dim: int,
        state: int = 64,
        *,
        init: Callable[[int], Tensor] = s4d_lin,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        if state % 2:
            raise ValueError(f"state={state} cannot be made of conjugate pairs; try state={state + 1}")
        A = init(state).expand(dim, -1)
        real = torch.get_default_dtype()
        self.A_log = nn.Parameter((-A.real).log().to(real))
        self.A_imag = nn.Parameter(A.imag.to(real, copy=True))
        self.C = nn.Parameter(torch.randn(dim, state // 2, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(log_uniform(dim, dt_min, dt_max).log())
        self.D = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(convolve(x, self.kernel(x.shape[1])), x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """forward, and the state after it, (B, D, N/2).  lengths (B,) if only x[b, :lengths[b]] counts"""
        log_a, b, _ = self.discrete()
        past = newest_first(x, lengths).mT.to(b.real.dtype)  # (B, D, T)
        coarse, fine = powers(log_a, x.shape[1])
        past = F.pad(past, (0, coarse.shape[-1] * fine.shape[-1] - past.shape[-1]))
        past = past.unflatten(-1, (coarse.shape[-1], fine.shape[-1])).to(b.dtype)
        h = torch.einsum("bdij,dni,dnj->bdn", past, coarse, fine)
        return self.forward(x), b * h

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        log_a, b, C = self.discrete()
        state = log_a.exp() * state + b * x_t.unsqueeze(-1)
        return self.gate(2 * (C * state).sum(-1).real, x_t), state

    def gate(self, y: Tensor, x: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu((y + self.D * x).type_as(x))), -1)

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """log of the state's factor per step, the input's factor, and C: (D, N/2) complex."""
        A_log, A_imag, C, log_dt = precise(self.A_log, self.A_imag, self.C, self.log_dt)
        A = torch.complex(-A_log.exp(), A_imag)
        log_a = log_dt.exp().unsqueeze(-1) * A
        return log_a, torch.expm1(log_a) / A, torch.view_as_complex(C)

    def kernel(self, T: int) -> Tensor:
        """K_t = 2 Re sum_n C_n b_n exp(t dt A_n), (D, T).

        t is split in two digits, t = i m + j, and so the sum in two factors: a matrix product for each
        channel, without the (D, N, T) numbers that it sums.
        """
        log_a, b, C = self.discrete()
        coarse, fine = powers(log_a, T)
        K = (2 * (C * b).unsqueeze(-1) * coarse).mT @ fine  # (D, digits, digits)
        return K.real.flatten(1)[:, :T]

    def kernel_loop(self, T: int) -> Tensor:
        """kernel as the response to a 1 followed by zeros, token by token."""
        log_a, b, C = self.discrete()
        pulse = torch.zeros(1, T, *b.shape, dtype=b.dtype, device=b.device)
        pulse[:, :1] = b
        h = scan_loop(log_a.exp().expand_as(pulse), pulse)
        return 2 * (C * h).sum(-1).real[0].T


def powers(log_a: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """a^(i m) and a^j, i and j < m, whose products are all powers below T.  (..., N) -> (..., N, m)"""
    j = torch.arange(math.isqrt(max(T - 1, 0)) + 1, device=log_a.device)
    return (log_a.unsqueeze(-1) * (j * len(j))).exp(), (log_a.unsqueeze(-1) * j).exp()


def convolve(x: Tensor, K: Tensor) -> Tensor:
    """y_t = sum_s K_s x_{t-s} for each channel.  x (B, T, D), K (D, T) -> (B, T, D) in the precision of K

    By Fourier transforms of twice the length, so that the end does not reach around to the start.
    """
    n = max(2 * x.shape[1], 1)
    spectrum = torch.fft.rfft(x.to(K.dtype), n, dim=1) * torch.fft.rfft(K.T, n, dim=0)
    return torch.fft.irfft(spectrum, n, dim=1)[:, : x.shape[1]]


def newest_first(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each example from its last token back to its first, then zeros.  (B, T, D) -> (B, T, D)"""
    if lengths is None:
        return x.flip(1)
    t = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)  # (B, T)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, t.clamp(min=0)] * (t >= 0).unsqueeze(-1)
