"""Performer: softmax attention by random features, at a cost that grows with T.

B examples, T tokens, D features; H heads of d = D / H features, of which m random ones are made.
"""

import math
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.chunked import ByHead, end, in_groups, kept, precise, recur
from zoo.nn.feedforward import scaled_init
from zoo.nn.linear_attention import check_causal, check_decay, decay
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary

NOTHING = -1e30  # the largest exponent of no keys


class State(NamedTuple):
    """Sums of k v' and k (B, H, m, d + 1), times exp(-c) (B, H), and the next position."""

    sums: Tensor
    c: Tensor
    t: Tensor


class Performer(nn.Module):
    """Attention with phi(q)'phi(k) in place of exp(q'k / sqrt(d)), which is its mean.  x (B, T, D) -> same

    phi(x)_r = exp(w_r'x - |x|^2 / 2 - c) / sqrt(m), with x / d^(1/4) for x. The rows w_r are orthogonal within
    blocks of d and as long as normal ones: Choromanski et al. 2020, section 2.3 and 2.4 (FAVOR+).

    c keeps exp in range and cancels: for queries their largest exponent; for keys the largest so far, so that
    no token tells of its future, and what was summed before decays as it grows. Nothing is added to the
    features, which the authors' code does: with a maximum over all keys that leaks the future.

    features    m; None is d log(d). They are drawn once, with the weights
    position    rotary encodings turn q and k before phi; ALiBi is a decay exp(-slope) of the past
    bias        whether the linear maps have biases

    Raises ValueError if dim is no multiple of heads, and for ALiBi without causal=True.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"rotate"})
    honours_causal: ClassVar[frozenset[str]] = frozenset({"ALiBi"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        features: int | None = None,
        causal: bool = True,
        position: Position | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.causal = heads, causal
        self.position = NoPosition(dim, heads) if position is None else position
        check_decay(self.position, causal)
        d = dim // heads
        self.register_buffer("w", orthogonal(features or max(1, round(d * math.log(d))), d))
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.qkv, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            return self.prefill(x)[0]
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        q, k = queries(q, self.w), log_features(k, self.w)
        k = (k - k.detach().amax((2, 3), keepdim=True)).exp()
        return self.merge(ratio(torch.cat([q @ (k.mT @ v), q @ k.sum(2).unsqueeze(-1)], -1)), x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the attention is not causal.
        """
        check_causal(self)
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        g = decay(self.position, v.shape[:3], x)
        g = torch.zeros_like(v[..., 0]) if g is None else kept(g.to(v), lengths)
        there = kept(torch.ones_like(g), lengths)
        state = v.new_zeros(*v.shape[:2], len(self.w), v.shape[3] + 1), v.new_full(v.shape[:2], NOTHING)
        with torch.autocast(x.device.type, enabled=False):
            o, (sums, c) = in_groups(partial(pieces, self.w), (q, k, v, g, there), state, chunk=64, group=16)
        return self.merge(o, x), State(sums, c, end(x, lengths))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        q, k, v = (x.squeeze(2) for x in self.project(x_t.unsqueeze(1), state.t))
        q, k = queries(q, self.w), log_features(k, self.w)
        g = decay(self.position, v.shape[:2], x_t)
        before = state.c if g is None else state.c + g
        c = torch.maximum(before, k.amax(-1))
        o, sums = recur(q, (k - c.unsqueeze(-1)).exp(), F.pad(v, (0, 1), value=1.0), before - c, state.sums)
        y = self.merge(ratio(o).unsqueeze(2), x_t.unsqueeze(1)).squeeze(1)
        return y, State(sums, c, state.t + 1)

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, T, d), in float32 at least."""
        q, k, v = precise(*self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4))
        return *self.position.rotate(q, k, t), v

    def merge(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(o.transpose(1, 2).flatten(2).type_as(x))  # (B, H, T, d) -> (B, T, D)


def pieces(
    w: Tensor, state: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, g: Tensor, there: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """n chunks, of zoo.nn.chunked.in_groups: features are made for so many tokens at once.

    state (B, H, m, d + 1) and c (B, H); q, k, v (B, H, n, C, d); g (B, H, n, C); there is 0 at what is no token
    """
    sums, c = state
    k, half = exponents(k, w)
    largest = (k.amax(-1) - half).detach().masked_fill(there == 0, NOTHING)
    c, g = (x.unflatten(2, g.shape[2:]) for x in stabiliser(largest.flatten(2), g.flatten(2), c))
    k = (k - (half + c.masked_fill(there == 0, math.inf)).unsqueeze(-1)).exp_()
    q = queries(q, w)
    o, sums = ByHead.apply(sums, q, k, F.pad(v, (0, 1), value=1.0), g)
    return ratio(o), (sums, c[:, :, -1, -1])


def stabiliser(largest: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """c_t = max(c_{t-1} + g_t, largest_t), and the log-decay g_t + c_{t-1} - c_t <= 0, (B, H, T) each.

    Sums divided by exp(c_t) decay by this much more; c (B, H) stands before the first token. With g, a large
    key is forgotten by c as by the sums.
    """
    ramp = g.cumsum(-1)
    after = torch.maximum((largest - ramp).cummax(-1).values, c.unsqueeze(-1)) + ramp
    before = torch.cat([c.unsqueeze(-1), after[..., :-1]], -1)
    return after, (before + g - after).clamp(min=-50)  # exp(-50) is as good as 0


def queries(q: Tensor, w: Tensor) -> Tensor:
    """Features of queries, the largest of each 1: the factor cancels.  (..., d), (m, d) -> (..., m)"""
    q, _ = exponents(q, w)
    return (q - q.detach().amax(-1, keepdim=True)).exp_()


def log_features(x: Tensor, w: Tensor) -> Tensor:
    """w_r'x - |x|^2 / 2, x divided by d^(1/4).  (..., d), (m, d) -> (..., m)"""
    x, half = exponents(x, w)
    return x - half.unsqueeze(-1)


def exponents(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """w_r'x and |x|^2 / 2, x divided by d^(1/4).  (..., d), (m, d) -> (..., m), (...)"""
    scale = x.shape[-1] ** -0.25
    with torch.autocast(x.device.type, enabled=False):
        # flat: one large product of matrices, not many small ones
        inner = F.linear(x.flatten(0, -2), scale * w.to(x)).unflatten(0, x.shape[:-1])
    return inner, x.square().sum(-1) * (0.5 * scale**2)


def ratio(o: Tensor) -> Tensor:
    """Sums of weighted values over the sum of weights, which stands in the last column."""
    return o[..., :-1] / o[..., -1:].clamp(min=torch.finfo(o.dtype).tiny)


def orthogonal(rows: int, d: int) -> Tensor:
    """Rows that are each N(0, 1)^d, and orthogonal within blocks of d.  -> (rows, d)

    Q of a QR decomposition is evenly distributed only if R has a positive diagonal, which LAPACK does not see
    to: without the signs the mean of the features is off by 2 %, however many there are.
    """
    q, r = torch.linalg.qr(torch.randn(math.ceil(rows / d), d, d))
    blocks = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return blocks.flatten(0, 1)[:rows] * torch.randn(rows, d).norm(dim=1, keepdim=True)
