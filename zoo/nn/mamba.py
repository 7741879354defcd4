"""Mamba: a state space whose steps depend on the content, so that it can choose what to remember.

E = expand D channels, each with a state of N numbers: h is (B, N, E), the channels last. Delta (`dt`) is the
step size of each token and channel.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.nn.feedforward import scaled_init
from zoo.nn.hippo import log_uniform
from zoo.nn.kernels import check_kernel, choose, library
from zoo.nn.scan import chunks, scan_, scan_back_, tokens_at_once


class State(NamedTuple):
    """conv (B, K - 1, E), the last inputs of the convolution; h (B, N, E), in float32 at least."""

    conv: Tensor
    h: Tensor


class Mamba(nn.Module):
    """A gated, selective state space, which stands for attention and feed-forward both.

    x, z = halves of x W_in;  x = silu(conv(x));  y = selective_scan(x, softplus(...), A, B(x), C(x)) + D x;
    out = (y silu(z)) W_out. Gu & Dao 2023, section 3.  x (B, T, D) -> (B, T, D)

    state       N, numbers that a channel remembers
    conv        K, taps of the causal convolution of each channel
    expand      E / D
    rank        of the map to Delta; None is D / 16, rounded up
    dt_min, dt_max      Delta starts between them, evenly in its logarithm
    chunk       tokens that the scan works on at once; None is what fits a cache
    kernel      auto, torch, triton or library (mamba-ssm): zoo.nn.kernels

    A = -exp(A_log) starts at -1 ... -N. The paper decays neither A_log nor D.
    """

    honours: ClassVar[frozenset[str]] = frozenset()
    whole: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        state: int = 16,
        *,
        conv: int = 4,
        expand: int = 2,
        rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        chunk: int | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(kernel, "selective_scan")
        E, rank = expand * dim, rank or math.ceil(dim / 16)
        self.sizes, self.chunk, self.kernel = (rank, state, state), chunk, kernel
        self.inner = nn.Linear(dim, 2 * E, bias=False)
        self.conv = nn.Conv1d(E, E, conv, groups=E)
        self.select = nn.Linear(E, sum(self.sizes), bias=False)
        self.dt = nn.Linear(rank, E, bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(E, dt_min, dt_max).clamp(min=1e-4)))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out = nn.Linear(E, dim, bias=False)
        for linear in (self.inner, self.select, self.out):
            scaled_init(linear)
        nn.init.uniform_(self.dt.weight, -(rank**-0.5), rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        T, K = x.shape[1], self.conv.kernel_size[0]
        x, z = self.inner(x).chunk(2, -1)
        padded = F.pad(x, (0, 0, K - 1, 0))
        if lengths is None:
            recent = padded[:, T:]
        else:
            t = lengths[:, None] + torch.arange(K - 1, device=x.device)
            recent = padded[torch.arange(len(x), device=x.device)[:, None], t]
        x = F.silu(depthwise(padded, self.conv.weight, self.conv.bias))
        dt, A, B, C = self.parameters_of(x)
        if lengths is not None:  # a step of no time leaves the state as it is
            dt = dt * (torch.arange(T, device=x.device) < lengths[:, None]).unsqueeze(-1)
        y, h = selective_scan(x, dt, A, B, C, chunk=self.chunk, kernel=self.kernel)
        return self.gate(y, x, z), State(recent, h)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        x, z = self.inner(x_t).chunk(2, -1)
        window = torch.cat([state.conv, x.unsqueeze(1)], 1)
        x = F.silu(depthwise(window, self.conv.weight, self.conv.bias)).squeeze(1)
        dt, A, B, C = self.parameters_of(x)
        h, y = selective_step(state.h, x, dt, A, B, C)
        return self.gate(y, x, z), State(window[:, 1:], h)

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Delta (..., E), A (N, E), B and C (..., N), in float32 at least.  x (..., E)"""
        real = torch.promote_types(x.dtype, torch.float32)
        dt, B, C = self.select(x).split(self.sizes, -1)
        dt = F.softplus(self.dt(dt).to(real) + self.dt_bias)
        return dt, -self.A_log.exp().T, B.to(real), C.to(real)

    def gate(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return self.out(((y + self.D * x) * F.silu(z)).type_as(z))


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk: int | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t, and the last h.

    x, dt (B, T, E); A (N, E); B, C (B, T, N) -> (B, T, E), (B, N, E). Gu & Dao 2023, algorithm 2. States of a
    chunk of tokens at a time are made, used and forgotten, and made again in the backward pass: (B, T, N, E)
    never exists. The last h has no gradient. kernel as in zoo.nn.kernels; `chunk` is torch's.
    """
    kernel = choose(kernel, "selective_scan", dt, len(A))
    if kernel == "library":
        return library.selective_scan(x, dt, A, B, C)
    if kernel == "triton":
        from zoo.nn.kernels.scan import selective_scan as fused

        return fused(x.to(dt.dtype), dt, A, B, C)
    chunk = chunk or tokens_at_once(len(x) * A.numel(), x.device)
    return SelectiveScan.apply(x.to(dt.dtype), dt, A.contiguous(), B, C, chunk)


def selective_scan_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """selective_scan, token by token."""
    h, outputs = x.new_zeros(len(x), *A.shape, dtype=dt.dtype), []
    for t in range(x.shape[1]):
        h, y = selective_step(h, x[:, t], dt[:, t], A, B[:, t], C[:, t])
        outputs.append(y)
    return torch.stack(outputs, 1), h


def selective_step(
    h: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """The next state and its output.  h (B, N, E); x, dt (B, E); A (N, E); B, C (B, N) -> h, y (B, E)"""
    h = (dt.unsqueeze(1) * A).exp() * h + (dt * x).unsqueeze(1) * B.unsqueeze(-1)
    return h, (h * C.unsqueeze(-1)).sum(1)


class SelectiveScan(torch.autograd.Function):
    """selective_scan and its gradient, which keeps the states between chunks only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        y, h = torch.empty_like(x), x.new_zeros(len(x), *A.shape)
        before = []
        with torch.autocast(x.device.type, enabled=False):
            for now in chunks(x.shape[1], chunk):
                before.append(h)
                _, states = states_of(h, x[:, now], dt[:, now], A, B[:, now])
                y[:, now] = (C[:, now].unsqueeze(-2) @ states).squeeze(-2)
                h = states[:, -1].clone()
        ctx.save_for_backward(x, dt, A, B, C, *before)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(h)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, *before = ctx.saved_tensors
        dx, ddt, dA, dB, dC = (torch.empty_like(v) for v in (x, dt, A, B, C))
        dA.zero_()
        later = torch.zeros_like(A)  # the part of the last token's slope that comes from later chunks
        with torch.autocast(x.device.type, enabled=False):
            for now, start in zip(reversed(chunks(x.shape[1], ctx.chunk)), reversed(before)):
                x_, dt_, dy_ = x[:, now], dt[:, now], dy[:, now]
                a, h = states_of(start, x_, dt_, A, B[:, now])
                g = C[:, now].unsqueeze(-1) * dy_.unsqueeze(-2)
                g[:, -1] += later
                work = a.clone()
                scan_back_(work[:, 1:], g)
                later = a[:, 0] * g[:, 0]
                dC[:, now] = (h @ dy_.unsqueeze(-1)).squeeze(-1)
                dB[:, now] = (g @ (dt_ * x_).unsqueeze(-1)).squeeze(-1)
                du = (B[:, now].unsqueeze(-2) @ g).squeeze(-2)
                g *= a
                g[:, 1:] *= h[:, :-1]
                g[:, 0] *= start
                # now g is the slope of dt A
                ddt[:, now] = torch.mul(g, A, out=work).sum(-2).addcmul_(du, x_)
                dA += torch.mul(g, dt_.unsqueeze(-2), out=work).sum((0, 1))
                dx[:, now] = du * dt_
        return dx, ddt, dA, dB, dC, None


def states_of(h: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and the states of a chunk of tokens, both (B, C, N, E), from the state h before it."""
    a = (dt.unsqueeze(-2) * A).exp_()
    states = (dt * x).unsqueeze(-2) * B.unsqueeze(-1)
    states[:, 0].addcmul_(a[:, 0], h)
    scan_(a.clone(), states)
    return a, states


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of each channel alone.  x (B, T + K - 1, E), weight (E, 1, K) -> (B, T, E)"""
    taps = weight.squeeze(1).T
    T = x.shape[1] - len(taps) + 1
    y = bias + x[:, :T] * taps[0]
    for k in range(1, len(taps)):
        y = y + x[:, k : k + T] * taps[k]
    return y


def inverse_softplus(y: Tensor) -> Tensor:
    """x with log(1 + exp(x)) = y."""
    return y + torch.log(-torch.expm1(-y))
