"""Retention: attention without a softmax, whose weights fade with distance at a rate for each head.

B examples, T tokens, D features; H heads of d = D / H features, their values `ratio` times as wide.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.chunked import chunked, end, kept, precise, recur
from zoo.nn.kernels import check_kernel, choose, library
from zoo.nn.rotary_position import turned, unit


class State(NamedTuple):
    """S (B, H, d, ratio d), and the next position, (1,) or (B, 1)."""

    sums: Tensor
    t: Tensor


class Retention(nn.Module):
    """Multi-scale retention.  x (B, T, D) -> (B, T, D)

    o_i = sum_{j <= i} gamma^(i-j) (q_i'k_j) v_j, which is S_t = gamma S_{t-1} + k_t v_t', o_t = q_t'S_t, with
    gamma = 1 - 2^(-5-h) in head h = 0, 1, ...; queries and keys are turned with their position.
    y = (silu(x W_g) * norm(o)) W_o, the norm over each head. Sun et al. 2023, eqs. 5 to 8; angles
    10000^(-i / (d/2 - 1)), the first weights and the norm's epsilon of its authors' code, without its divisors of
    rows and states, which the norm takes out again.

    ratio       width of values and gate for that of queries and keys
    kernel      auto, torch or library (flash-linear-attention): zoo.nn.kernels

    Raises ValueError if dim is no multiple of heads, or a head's width odd.
    """

    def __init__(self, dim: int, heads: int = 8, *, ratio: int = 2, kernel: str = "auto") -> None:
        super().__init__()
        check_kernel(kernel, "linear")
        check_heads(dim, heads)
        if dim // heads % 2:
            raise ValueError(
                f"a head of dim={dim}, heads={heads} is {dim // heads} wide, "
                f"and Retention turns pairs of features; try dim={heads * (dim // heads + 1)}"
            )
        self.heads, self.kernel = heads, kernel
        self.sizes = (dim, dim, ratio * dim, ratio * dim)
        self.inner = nn.Linear(dim, sum(self.sizes), bias=False)
        self.norm = nn.GroupNorm(heads, ratio * dim, eps=1e-6)
        self.out = nn.Linear(ratio * dim, dim, bias=False)
        for weight in self.inner.weight.split(self.sizes):
            nn.init.xavier_uniform_(weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        q, k, v, gate = self.project(x, torch.arange(x.shape[1], device=x.device))
        g = self.log_gamma(q)[:, None].expand(q.shape[:3])
        fused = choose(self.kernel, "linear", v, q.shape[-1]) == "library"
        o, sums = (library.linear if fused else chunked)(q, kept(k, lengths), v, kept(g, lengths))
        return self.merge(o, gate), State(sums, end(x, lengths))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        q, k, v, gate = self.project(x_t.unsqueeze(1), state.t)
        q, k, v = (x.squeeze(2) for x in (q, k, v))
        o, sums = recur(q, k, v, self.log_gamma(q).expand(q.shape[:2]), state.sums)
        return self.merge(o.unsqueeze(2), gate).squeeze(1), State(sums, state.t + 1)

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k (B, H, T, d), turned, v (B, H, T, ratio d); the gate (B, T, ratio D)."""
        *qkv, gate = self.inner(x).split(self.sizes, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in precise(*qkv))
        d = q.shape[-1]
        angles = t.unsqueeze(-1) * 10000.0 ** -torch.linspace(0, 1, d // 2, device=x.device, dtype=q.dtype)
        turn = unit(angles)
        return turned(q, turn), turned(k, turn) * d**-0.5, v, gate

    def log_gamma(self, q: Tensor) -> Tensor:
        """log(1 - 2^(-5-h)), (H,): as a logarithm, for in half precision 1 - 2^-12 is 1."""
        h = torch.arange(self.heads, device=q.device, dtype=q.dtype)
        return torch.log1p(-(2.0 ** (-5 - h)))

    def merge(self, o: Tensor, gate: Tensor) -> Tensor:
        """(B, H, T, ratio d), (B, T, ratio D) -> (B, T, D)"""
        B, H, T, e = o.shape
        weight, bias = self.norm.weight.type_as(o), self.norm.bias.type_as(o)
        o = F.group_norm(o.transpose(1, 2).reshape(B * T, H * e), H, weight, bias, self.norm.eps)
        return self.out(F.silu(gate) * o.view(B, T, H * e).type_as(gate))
