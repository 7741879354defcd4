"""RWKV-4: attention without queries, in which each channel forgets at its own rate; so it is a recurrence.

r, k, v are made of a token and the one before it. w = exp(time_decay) is what a channel forgets per token, u
= time_first the extra weight of the present one.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.feedforward import scaled_init
from zoo.nn.scan import final, scan

NEVER = -1e38  # the log of a weight that is none, and finite: differences with it make no NaN


class State(NamedTuple):
    """What a layer remembers, each (B, D): its last input, and exp(-p) times the sums of `wkv`."""

    x: Tensor
    values: Tensor
    weights: Tensor
    p: Tensor


class RWKV(nn.Module):
    """Time mixing: y = (sigmoid(r) wkv(k, v)) W_out.  x (B, T, D) -> (B, T, D)

    r, k, v are linear in mu x_t + (1 - mu) x_{t-1}, with a mu of their own for each channel. Peng et al.
    2023, section 3.1; time_decay, time_first and mu start as in its code for RWKV-4, by layer and channel.
    Linear maps start with PyTorch's variance, where that code has 0 and orthogonal ones. RWKVFeedForward goes with it.
    """

    honours: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1) -> None:
        super().__init__()
        channel, late = torch.arange(dim), layer / max(depth - 1, 1)
        rising = shares(dim, layer, depth)
        self.time_decay = nn.Parameter(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * late))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.mix_k = nn.Parameter(rising)
        self.mix_v = nn.Parameter(rising + 0.3 * late)
        self.mix_r = nn.Parameter(rising**0.5)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.key, self.value, self.receptance, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        r, k, v = self.project(x, shifted(x))
        y, *sums, p = wkv(self.time_decay.exp(), self.time_first, k, v)
        last = [final(part, lengths) for part in (x, *sums)]
        return self.out(r * y.type_as(x)), State(*last, final(p, lengths, start=NEVER))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        r, k, v = self.project(x_t, state.x)
        y, *sums = wkv_step(self.time_decay.exp(), self.time_first, k, v, *state[1:])
        return self.out(r * y.type_as(x_t)), State(x_t, *sums)

    def project(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sigmoid(r), and k and v in float32 at least."""
        k = self.key(torch.lerp(before, x, self.mix_k.type_as(x)))
        v = self.value(torch.lerp(before, x, self.mix_v.type_as(x)))
        r = self.receptance(torch.lerp(before, x, self.mix_r.type_as(x)))
        real = torch.promote_types(k.dtype, torch.float32)
        return r.sigmoid(), k.to(real), v.to(real)


class RWKVFeedForward(nn.Module):
    """Channel mixing: y = sigmoid(r) (relu(k)^2 W_out), a feed-forward that sees the token before too.

    r and k are linear in mu x_t + (1 - mu) x_{t-1}. Peng et al. 2023, section 3.1.  x (B, T, D) -> (B, T, D)

    ratio   width of k / D
    """

    def __init__(self, dim: int, *, ratio: float = 4.0, layer: int = 0, depth: int = 1) -> None:
        super().__init__()
        self.mix_k = nn.Parameter(shares(dim, layer, depth))
        self.mix_r = nn.Parameter(shares(dim, layer, depth))
        self.key = nn.Linear(dim, int(ratio * dim), bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(int(ratio * dim), dim, bias=False)
        for linear in (self.key, self.receptance, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, shifted(x))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """forward, and each example's last input, (B, D).  lengths (B,) if only x[b, :lengths[b]] counts"""
        return self.forward(x), final(x, lengths)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        return self.mix(x_t, state), x_t

    def mix(self, x: Tensor, before: Tensor) -> Tensor:
        k = self.key(torch.lerp(before, x, self.mix_k.type_as(x)))
        r = self.receptance(torch.lerp(before, x, self.mix_r.type_as(x)))
        return r.sigmoid() * self.out(k.relu().square())


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mean of all values so far, for each channel.  w, u (D,); k, v (B, T, D) -> (B, T, D)

    wkv_t = (sum_{s<t} exp(k_s - (t-1-s) w) v_s + exp(u + k_t) v_t) / (the same with 1 for v): Peng et al.
    2023, eq. 14. And the sums after t, which are those over s <= t divided by exp(p_t), and p, each (B, T, D):
    p_t = max(p_{t-1} - w, k_t) keeps all exponents below 0.
    """
    drift = w * torch.arange(k.shape[1], device=k.device).unsqueeze(-1)
    with torch.no_grad():  # any p gives the same means, so it has no part in their gradient
        p = (k + drift).cummax(1).values - drift
        p_before = F.pad(p[:, :-1], (0, 0, 1, 0), value=NEVER)
        top = torch.maximum(p_before, u + k)
    keep, add = (p_before - w - p).exp(), (k - p).exp()
    sums = scan(keep.unsqueeze(2), torch.stack([add * v, add], 2))  # (B, T, 2, D)
    values, weights = F.pad(sums[:, :-1], (0, 0, 0, 0, 1, 0)).unbind(2)
    old, new = (p_before - top).exp(), (u + k - top).exp()
    y = (old * values + new * v) / (old * weights + new)
    return y, *sums.unbind(2), p


def wkv_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """wkv, token by token."""
    sums = (torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], NEVER))
    steps = []
    for t in range(k.shape[1]):
        y, *sums = wkv_step(w, u, k[:, t], v[:, t], *sums)
        steps.append((y, *sums))
    return tuple(torch.stack(parts, 1) for parts in zip(*steps))


def wkv_step(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, values: Tensor, weights: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """wkv of one more token, and the sums and p after it: Peng et al. 2023, appendix D.  (B, D) each"""
    top = torch.maximum(p, u + k)
    old, new = (p - top).exp(), (u + k - top).exp()
    y = (old * values + new * v) / (old * weights + new)
    after = torch.maximum(p - w, k)
    keep, add = (p - w - after).exp(), (k - after).exp()
    return y, keep * values + add * v, keep * weights + add, after


def shifted(x: Tensor) -> Tensor:
    """The token before each, 0 before the first.  (B, T, D) -> (B, T, D)"""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def shares(dim: int, layer: int, depth: int) -> Tensor:
    """How much of a token a channel starts to take, (D,): from 0 to 1, and more of it in later layers."""
    return (torch.arange(dim) / dim) ** (1 - layer / depth)
