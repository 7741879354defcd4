"""Performer: softmax attention by random features, at a cost that grows with T.

B examples, T tokens, D features; H heads of d = D / H features, of which m random ones are made.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zoo.nn.chunked import end, kept, precise, recur
from zoo.nn.feedforward import gpt2_init
from zoo.nn.linear_attention import check_causal, check_decay, check_heads, decay, weighted
from zoo.nn.position import NoPosition, Position, Rotary


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

    honours: ClassVar[frozenset[str]] = frozenset({"rotate", "ALiBi"})
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
            gpt2_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            return self.prefill(x)[0]
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        k = (k - k.detach().amax((2, 3), keepdim=True)).exp()
        return self.merge(ratio(q @ (k.mT @ v), q @ k.sum(2).unsqueeze(-1)), x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the attention is not causal.
        """
        check_causal(self)
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        c, g = stabiliser(k.detach().amax(-1), decay(self.position, v.shape[:3], x))
        k = kept((k - c.unsqueeze(-1)).exp(), lengths)
        sums, weight, products, keys = weighted(q, k, v, kept(g, lengths))
        if x.shape[1] == 0:
            last = c.new_full(c.shape[:2], -math.inf)
        elif lengths is None:
            last = c[:, :, -1]
        else:
            last = c[torch.arange(len(x), device=x.device), :, lengths - 1]
        return self.merge(ratio(sums, weight), x), State(torch.cat([products, keys], -1), last, end(x, lengths))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        q, k, v = (x.squeeze(2) for x in self.project(x_t.unsqueeze(1), state.t))
        g = decay(self.position, v.shape[:2], x_t)
        before = state.c if g is None else state.c + g
        c = torch.maximum(before, k.amax(-1))
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        o, sums = recur(q, (k - c.unsqueeze(-1)).exp(), v, before - c, state.sums)
        y = self.merge(ratio(o[..., :-1], o[..., -1:]).unsqueeze(2), x_t.unsqueeze(1)).squeeze(1)
        return y, State(sums, c, state.t + 1)

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries (B, H, T, m), logarithms of those of keys, values (B, H, T, d)."""
        q, k, v = precise(*self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4))
        q, k = self.position.rotate(q, k, t)
        q, k = log_features(q, self.w), log_features(k, self.w)
        return (q - q.detach().amax(-1, keepdim=True)).exp(), k, v

    def merge(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(o.transpose(1, 2).flatten(2).type_as(x))  # (B, H, T, d) -> (B, T, D)


def log_features(x: Tensor, w: Tensor) -> Tensor:
    """w_r'x - |x|^2 / 2, x divided by d^(1/4).  (..., d), (m, d) -> (..., m)"""
    x = x / x.shape[-1] ** 0.25
    with torch.autocast(x.device.type, enabled=False):
        return x @ w.to(x).mT - x.square().sum(-1, keepdim=True) / 2


def stabiliser(largest: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor]:
    """c_t = max(c_{t-1} + g_t, largest_t), and the log-decay g_t + c_{t-1} - c_t <= 0.  (B, H, T) each

    Sums divided by exp(c_t) decay by this much more. With g, a large key is forgotten by c as by the sums.
    """
    ramp = torch.zeros_like(largest) if g is None else g.to(largest).cumsum(-1)
    c = (largest - ramp).cummax(-1).values + ramp
    before = torch.cat([c[..., :1], c[..., :-1]], -1)
    if g is not None:
        before = torch.cat([before[..., :1], before[..., 1:] + g[..., 1:]], -1)
    return c, before - c


def ratio(sums: Tensor, weight: Tensor) -> Tensor:
    return sums / weight.clamp(min=torch.finfo(weight.dtype).tiny)


def orthogonal(rows: int, d: int) -> Tensor:
    """Rows that are each N(0, 1)^d, and orthogonal within blocks of d.  -> (rows, d)

    Q of a QR decomposition is evenly distributed only if R has a positive diagonal, which LAPACK does not see
    to: without the signs the mean of the features is off by 2 %, however many there are.
    """
    q, r = torch.linalg.qr(torch.randn(math.ceil(rows / d), d, d))
    blocks = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return blocks.flatten(0, 1)[:rows] * torch.randn(rows, d).norm(dim=1, keepdim=True)
