"""Elementwise linear recurrences, h_t = a_t h_{t-1} + b_t: all states at once, in few large operations.

a and b are (B, T, ...), real or complex; a may have size 1 where b has more, but not in time. `scan` has a
gradient, `scan_` and `scan_back_` are what it and other recurrences are made of.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def scan(a: Tensor, b: Tensor, h: Tensor | None = None, *, chunk: int | None = None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for t = 1 ... T.  a, b (B, T, ...) -> (B, T, ...)

    Work is in proportion to T, in 3 log2(chunk) operations for each chunk of tokens; beside a and the result
    it keeps nothing for the backward pass. Its gradient is the same recurrence from the end, g_t = dh_t +
    conj(a_{t+1}) g_{t+1}: Martin & Cundy 2018.

    h       (B, ...) the state before the first token, None for 0
    chunk   tokens at once; None is what fits a cache
    """
    h = torch.zeros_like(b[:, 0]) if h is None else h
    return Scan.apply(a, b, h, chunk or tokens_at_once(h.numel(), b.device))


def scan_loop(a: Tensor, b: Tensor, h: Tensor | None = None) -> Tensor:
    """scan, token by token."""
    h = torch.zeros_like(b[:, 0]) if h is None else h
    states = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


class Scan(torch.autograd.Function):
    """scan and its gradient, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor, chunk: int) -> Tensor:
        h, state = b.clone(memory_format=torch.contiguous_format), h0
        for now in chunks(b.shape[1], chunk):
            part = h[:, now]
            part[:, 0].addcmul_(a[:, now.start], state)
            scan_(a[:, now].clone(), part)
            state = part[:, -1]
        ctx.save_for_backward(a, h0, h)
        ctx.chunk = chunk
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, h0, h = ctx.saved_tensors
        a = a.conj().resolve_conj()
        g, after = slope.clone(memory_format=torch.contiguous_format), torch.zeros_like(h0)
        for now in reversed(chunks(h.shape[1], ctx.chunk)):
            part = g[:, now]
            part[:, -1].add_(after)
            scan_back_(a[:, now][:, 1:].clone(), part)
            after = a[:, now.start] * part[:, 0]
        before = torch.cat([h0.unsqueeze(1), h[:, :-1]], 1)
        return (g * before.conj()).sum_to_size(a.shape), g, after, None


def scan_(a: Tensor, b: Tensor) -> None:
    """b becomes its states, from a state of 0; a is used up.  (B, T, ...)

    Neighbours are joined to pairs, h_2i+1 = (a_2i+1 a_2i) h_2i-1 + (a_2i+1 b_2i + b_2i+1), pairs are solved
    as a recurrence of half the length, and give the states between them: Blelloch 1990.
    """
    T = b.shape[1]
    if T < 2:
        return
    pairs = T // 2
    a_first, a_second = a[:, 0 : 2 * pairs : 2], a[:, 1::2]
    first, second = b[:, 0 : 2 * pairs : 2], b[:, 1::2]
    second.addcmul_(a_second, first)
    if pairs > 1:
        a_second.mul_(a_first)
        scan_(a_second, second)
    if T > 2:
        b[:, 2::2].addcmul_(a[:, 2::2], second[:, : (T - 1) // 2])


def scan_back_(a: Tensor, b: Tensor) -> None:
    """b becomes g_t = b_t + a_t g_{t+1}, from the end; a is used up.  a (B, T - 1, ...), b (B, T, ...)"""
    T = b.shape[1]
    if T < 2:
        return
    odd, pairs = T % 2, T // 2
    a_first, a_second = a[:, odd::2], a[:, odd + 1 :: 2]  # (B, pairs, ...), (B, pairs - 1, ...)
    first, second = b[:, odd::2], b[:, odd + 1 :: 2]
    first.addcmul_(a_first, second)
    if pairs > 1:
        a_joined = a_first[:, :-1].mul_(a_second)
        scan_back_(a_joined, first)
        second[:, :-1].addcmul_(a_second, first[:, 1:])
    if odd:
        b[:, 0].addcmul_(a[:, 0], b[:, 1])


def chunks(T: int, chunk: int) -> list[slice]:
    """The places of 0 ... T - 1, `chunk` at a time."""
    return [slice(start, min(start + chunk, T)) for start in range(0, T, chunk)]


def tokens_at_once(numbers: int, device: torch.device) -> int:
    """How many tokens of so many numbers each a cache holds on a CPU, or keep a GPU busy."""
    room = 2**18 if device.type == "cpu" else 2**24
    return max(16, room // max(1, numbers))


def final(h: Tensor, lengths: Tensor | None, start: float = 0.0) -> Tensor:
    """The states of each example's last token, `start` before its first.

    h (B, T, ...), lengths (B,) or None for T -> (B, ...)
    """
    if lengths is None:
        return h[:, -1]
    last = h[torch.arange(len(h), device=h.device), (lengths - 1).clamp(min=0)]
    begun = (lengths > 0).view(-1, *[1] * (last.ndim - 1))
    return torch.where(begun, last, torch.full_like(last, start))
