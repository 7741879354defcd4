"""zoo.nn.mamba.selective_scan as two Triton kernels, one forward and one back. Importing this needs Triton.

One program has 32 channels of one example and goes through its tokens; its state (N, 32) stays in registers, so what
is read and written is (T, E) and (T, N), never (T, N, E). The state is kept before every `every`-th token, some
sqrt(T) of them; the backward pass makes those between them anew, into a room of as many. Gu & Dao 2023, section
3.3.2. Sums over tokens and channels are made in one order: same in, same out.

b, e, n are an example, its channels, the numbers of a channel; h (N, E) as in zoo.nn.mamba.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHANNELS = 32


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """zoo.nn.mamba.selective_scan, the arguments of one type: float32 or float64."""
    return Scan.apply(*(v.contiguous() for v in (x, dt, A, B, C)))


class Scan(torch.autograd.Function):
    """Both kernels and the room that they work in. The last state has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        examples, T, E = x.shape
        N = len(A)
        every = max(1, math.isqrt(T))
        y, last = torch.empty_like(x), x.new_empty(examples, N, E)
        before = x.new_empty(examples, triton.cdiv(T, every), N, E)
        with torch.cuda.device_of(x):
            forward_kernel[grid(x)](
                x, dt, A, B, C, y, before, last, T, E, N, every, **blocks(N)
            )  # fmt: skip
        ctx.save_for_backward(x, dt, A, B, C, before)
        ctx.every = every
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, before = ctx.saved_tensors
        examples, T, E = x.shape
        N, parts = len(A), grid(x)[1]
        dx, ddt = torch.empty_like(x), torch.empty_like(dt)
        inside = x.new_empty(examples, ctx.every, N, E)
        dA = x.new_empty(examples, N, E)
        dB, dC = (x.new_empty(parts, examples, T, N) for _ in range(2))  # of each program's channels
        with torch.cuda.device_of(x):
            backward_kernel[grid(x)](
                x, dt, A, B, C, dy.contiguous(), before, inside, dx, ddt, dA, dB, dC, T, E, N, ctx.every, **blocks(N)
            )  # fmt: skip
        return dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0)


def grid(x: Tensor) -> tuple[int, int]:
    """Programs: examples, parts of the channels."""
    return len(x), triton.cdiv(x.shape[2], CHANNELS)


def blocks(N: int) -> dict[str, int]:
    """A program's size: its state in powers of two, tokens fetched ahead, 32 threads for each 16 numbers."""
    rows = triton.next_power_of_2(N)
    stages = 4 if rows <= 64 else 2  # more would not fit the shared memory of small GPUs
    return {"ROWS": rows, "COLUMNS": CHANNELS, "STAGES": stages, "num_warps": min(8, max(1, rows // 16))}


@triton.jit
def forward_kernel(
    x, dt, A, B, C, y, before, last, T, E, N, every,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y and the last h; `before` gets h before token 0, every, 2 every, ..."""
    b = tl.program_id(0).to(tl.int64)  # what it is multiplied with may be beyond 2^31
    e, n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    is_e, is_n = e < E, n < N
    ne, is_ne = n[:, None] * E + e[None, :], is_n[:, None] & is_e[None, :]
    x, dt, y = x + b * T * E + e, dt + b * T * E + e, y + b * T * E + e
    B, C = B + b * T * N + n, C + b * T * N + n
    A = tl.load(A + ne, is_ne, 0.0)
    h = tl.zeros_like(A)
    pieces = tl.cdiv(T, every)
    for piece in range(pieces):
        tl.store(before + (b * pieces + piece) * N * E + ne, h, is_ne)
        # tokens to come are fetched while one is computed
        for t in tl.range(piece * every, tl.minimum(piece * every + every, T), num_stages=STAGES):
            x_t, dt_t = tl.load(x + t * E, is_e, 0.0), tl.load(dt + t * E, is_e, 0.0)
            B_t, C_t = tl.load(B + t * N, is_n, 0.0), tl.load(C + t * N, is_n, 0.0)
            h = tl.exp(dt_t[None, :] * A) * h + (dt_t * x_t)[None, :] * B_t[:, None]
            tl.store(y + t * E, tl.sum(h * C_t[:, None], 0), is_e)
    tl.store(last + b * N * E + ne, h, is_ne)


@triton.jit
def backward_kernel(
    x, dt, A, B, C, dy, before, inside, dx, ddt, dA, dB, dC, T, E, N, every,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients; `inside` is room for h before each token of a piece. g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}"""
    b = tl.program_id(0).to(tl.int64)
    part = (tl.program_id(1) * tl.num_programs(0) + b) * T * N
    e, n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    is_e, is_n = e < E, n < N
    ne, is_ne = n[:, None] * E + e[None, :], is_n[:, None] & is_e[None, :]
    x, dt, dy = x + b * T * E + e, dt + b * T * E + e, dy + b * T * E + e
    dx, ddt = dx + b * T * E + e, ddt + b * T * E + e
    B, C, dB, dC = B + b * T * N + n, C + b * T * N + n, dB + part + n, dC + part + n
    A = tl.load(A + ne, is_ne, 0.0)
    inside += b * every * N * E + ne
    later = tl.zeros_like(A)  # exp(dt_{t+1} A) g_{t+1}
    slopes = tl.zeros_like(A)
    pieces = tl.cdiv(T, every)
    for back in range(pieces):
        piece = pieces - 1 - back
        start = piece * every
        size = tl.minimum(every, T - start)
        h = tl.load(before + (b * pieces + piece) * N * E + ne, is_ne, 0.0)
        for i in tl.range(0, size, num_stages=STAGES):
            t = start + i
            x_t, dt_t = tl.load(x + t * E, is_e, 0.0), tl.load(dt + t * E, is_e, 0.0)
            B_t = tl.load(B + t * N, is_n, 0.0)
            tl.store(inside + i * N * E, h, is_ne)
            h = tl.exp(dt_t[None, :] * A) * h + (dt_t * x_t)[None, :] * B_t[:, None]
        tl.debug_barrier()  # what one thread has written to `inside`, another reads
        for i in tl.range(0, size, num_stages=STAGES):
            t = start + size - 1 - i
            x_t, dt_t = tl.load(x + t * E, is_e, 0.0), tl.load(dt + t * E, is_e, 0.0)
            dy_t = tl.load(dy + t * E, is_e, 0.0)
            B_t, C_t = tl.load(B + t * N, is_n, 0.0), tl.load(C + t * N, is_n, 0.0)
            faded = tl.exp(dt_t[None, :] * A) * tl.load(inside + (size - 1 - i) * N * E, is_ne, 0.0)
            g = later + C_t[:, None] * dy_t[None, :]
            h = faded + (dt_t * x_t)[None, :] * B_t[:, None]
            tl.store(dC + t * N, tl.sum(h * dy_t[None, :], 1), is_n)
            tl.store(dB + t * N, tl.sum(g * (dt_t * x_t)[None, :], 1), is_n)
            du = tl.sum(g * B_t[:, None], 0)  # of dt x
            slope = g * faded  # of dt A
            tl.store(dx + t * E, du * dt_t, is_e)
            tl.store(ddt + t * E, tl.sum(slope * A, 0) + du * x_t, is_e)
            slopes += slope * dt_t[None, :]
            later = tl.exp(dt_t[None, :] * A) * g
        tl.debug_barrier()  # before the next piece writes there
    tl.store(dA + b * N * E + ne, slopes, is_ne)
