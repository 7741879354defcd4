"""TransNormer: softmax attention inside blocks in early layers, linear attention with a norm in late ones.

B examples, T tokens, D features; H heads of d = D / H features; w is the width of a block.
"""

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.chunked import chunked, end, kept, precise, recur
from zoo.nn.feedforward import scaled_init
from zoo.nn.linear_attention import check_causal, elu1
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary


class Sums(NamedTuple):
    """Of a late layer: S (B, H, d, d), and the next position."""

    sums: Tensor
    t: Tensor


class Part(NamedTuple):
    """Of an early layer: keys and values of the last w positions (B, H, w, d), and the next position.

    Position t is at t % w: what stands behind it is of the block before, and not seen.
    """

    k: Tensor
    v: Tensor
    t: Tensor


class TransNormer(nn.Module):
    """DiagAttention in the first half of the depth, NormAttention in the second.  x (B, T, D) -> (B, T, D)

    diag    softmax(q k' / sqrt(d)) v, inside blocks of w tokens: early layers need no more, and linear attention
            spreads thin there
    norm    rms_norm(phi(q) phi(k)' v), phi = elu + 1, the norm over all D features of a token: without a
            denominator that may come close to 0 gradients stay bounded
    Qin et al. 2022, section 4; their T2. Their rotation has learned angles (LRPE), here `position` turns queries
    and keys: phi(q) and phi(k) in late layers.

    layer, depth    which block of how many this is
    block           w
    position        a rotary encoding, or None for none
    bias            whether the linear maps have biases

    Raises ValueError if dim is no multiple of heads.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"Rotary", "Rotary2D"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        layer: int,
        depth: int,
        block: int = 64,
        causal: bool = True,
        position: Position | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.block, self.causal = heads, block, causal
        self.local = layer < depth // 2
        self.position = NoPosition(dim, heads) if position is None else position
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.qkv, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        if self.local:
            return self.merge(diag(q, k, v, self.block, self.causal), x)
        o = chunked(q, k, v)[0] if self.causal else q @ (k.mT @ v)
        return self.merge(o, x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the attention is not causal: a later token would change all earlier outputs.
        """
        check_causal(self)
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        t = end(x, lengths)
        if self.local:
            k_last, v_last = (latest(y, t, self.block) for y in (k, v))
            return self.merge(diag(q, k, v, self.block, causal=True), x), Part(k_last, v_last, t)
        o, sums = chunked(q, kept(k, lengths), v)
        return self.merge(o, x), Sums(sums, t)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The output for one more token.  x_t (B, D) -> (B, D); the state is changed: it serves once"""
        q, k, v = self.project(x_t.unsqueeze(1), state.t)
        t = state.t.view(-1)  # (1,) or (B,)
        if self.local:
            rows, slot = torch.arange(len(x_t), device=x_t.device), t % self.block
            state.k[rows, :, slot] = k[:, :, 0]
            state.v[rows, :, slot] = v[:, :, 0]
            seen = torch.arange(self.block, device=x_t.device) <= slot[:, None]
            o = F.scaled_dot_product_attention(q, state.k, state.v, seen[:, None, None])
            return self.merge(o, x_t).squeeze(1), state._replace(t=state.t + 1)
        o, sums = recur(q[:, :, 0], k[:, :, 0], v[:, :, 0], None, state.sums)
        return self.merge(o.unsqueeze(2), x_t).squeeze(1), Sums(sums, state.t + 1)

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, T, d): of late layers with phi, and in float32 at least."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if not self.local:
            q, k, v = precise(q, k, v)
            q, k = elu1(q), elu1(k)
        q, k = self.position.rotate(q, k, t)
        return q, k, v

    def merge(self, o: Tensor, x: Tensor) -> Tensor:
        """o (B, H, T, d), of the type of x then -> (B, T, D)"""
        o = o.transpose(1, 2).flatten(2)
        return self.out((o if self.local else simple_rms(o)).type_as(x))


def diag(q: Tensor, k: Tensor, v: Tensor, block: int, causal: bool) -> Tensor:
    """Softmax attention of each token to those of its own block, causal: up to itself.  (B, H, T, d) -> same"""
    whole = q.shape[2] // block * block
    outputs = []
    for part, size in ((slice(whole), block), (slice(whole, None), q.shape[2] - whole)):
        if q[:, :, part].shape[2]:
            cut = (x[:, :, part].unflatten(2, (-1, size)) for x in (q, k, v))  # (B, H, n, w, d)
            outputs.append(F.scaled_dot_product_attention(*cut, is_causal=causal).flatten(2, 3))
    return torch.cat(outputs, 2) if outputs else v


def latest(x: Tensor, t: Tensor, block: int) -> Tensor:
    """Of x (B, H, T, d) the block that position t is in, if t is one of T, in room for all of it.  -> (B, H, w, d)"""
    start = t.view(-1, 1) // block * block
    at = (start + torch.arange(block, device=x.device)).expand(len(x), -1)  # (B, w)
    x = F.pad(x, (0, 0, 0, block))  # zeros behind: filled by what comes, and not seen before
    return x.gather(2, at[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def simple_rms(x: Tensor) -> Tensor:
    """x / (sqrt(mean(x^2)) + 0.01), over features: SimpleRMSNorm, of its authors' code."""
    return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-2)
