"""The Sparse Transformer's strided pattern: T tokens are rows of `stride`, read along rows and down columns.

l is the stride, n = T / l the number of rows.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Attention, Cache
from zoo.nn.position import Position
from zoo.nn.rotary_position import Rotary
from zoo.nn.window import SlidingWindow, WindowState


class Strided(nn.Module):
    """Attention whose blocks take turns: the last `stride` tokens, then every stride-th token before.

    x (B, T, D) -> (B, T, D). Blocks 0, 2, ... see s if 0 <= t - s < l; blocks 1, 3, ... see s <= t if t - s is a
    multiple of l (causal=False: |t - s| < l; every multiple). Any token reaches any later one in two blocks,
    and with l near sqrt(T) the cost grows with T sqrt(T). For images l is the width. Child et al. 2019, section
    4.3, in its first form: one pattern a block, not one a head. Columns keep all keys and read 1 / l of them.

    layer       index of the block: which of the two patterns it has
    stride      l, the length of a row
    all others  as zoo.nn.Attention has them

    Raises ValueError if the stride is below 1.
    """

    honours: ClassVar[frozenset[str]] = Attention.honours
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        layer: int,
        stride: int = 128,
        kv_heads: int | None = None,
        causal: bool = True,
        position: Position | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        cap: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride={stride} is the length of a row, at least 1; try the square root of T")
        options: dict[str, Any] = {
            "kv_heads": kv_heads,
            "causal": causal,
            "position": position,
            "dropout": dropout,
            "qk_norm": qk_norm,
            "cap": cap,
            "bias": bias,
        }
        if layer % 2 == 0:
            self.pattern: SlidingWindow | Columns = SlidingWindow(dim, heads, window=stride, **options)
        else:
            self.pattern = Columns(Attention(dim, heads, **options), stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pattern(x)

    def naive(self, x: Tensor) -> Tensor:
        """forward by a T x T mask: slow, obvious."""
        return self.pattern.naive(x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Cache | WindowState]:
        """forward, and what `step` needs.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts"""
        return self.pattern.prefill(x, lengths)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Cache | WindowState]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        return self.pattern.step(x_t, state)


class Columns(nn.Module):
    """Attention among the tokens whose positions differ by multiples of `stride`.  (B, T, D) -> (B, T, D)"""

    def __init__(self, attention: Attention, stride: int) -> None:
        super().__init__()
        self.attention, self.stride, self.causal = attention, stride, attention.causal

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        return self.attention.merge(self.attend(*self.attention.project(x, t)))

    def naive(self, x: Tensor) -> Tensor:
        """forward by a T x T mask: slow, obvious."""
        t = torch.arange(x.shape[1], device=x.device)
        distance = t.unsqueeze(1) - t
        seen = (distance % self.stride == 0) & (distance >= (0 if self.causal else -len(t)))
        return self.attention.merge(self.attention.attend(*self.attention.project(x, t), t, t, seen=seen))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Cache]:
        """forward, and what `step` needs; ValueError if it is not causal."""
        if not self.causal:
            raise ValueError(
                "columns with causal=False have no state to step from; build it with causal=True"
            )
        q, k, v = self.attention.project(x, torch.arange(x.shape[1], device=x.device))
        return self.attention.merge(self.attend(q, k, v)), Cache(k, v, lengths)

    def step(self, x_t: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """The output for one more token.  x_t (B, D) -> (B, D); the state is changed: it serves once"""
        t = state.next
        q, k, v = self.attention.project(x_t.unsqueeze(1), t)
        k, v = state.append(k, v)
        above = -(-k.shape[2] // self.stride)  # at most so many tokens in a column
        t_k = t - self.stride * torch.arange(above - 1, -1, -1, device=t.device)  # (n,) or (B, n)
        place = t_k
        if state.lengths is not None:  # later tokens stand after the longest prompt
            ends = state.lengths.unsqueeze(1)
            place = torch.where(t_k < ends, t_k, t_k - ends + state.prompt)
        rows = torch.arange(len(k), device=k.device).unsqueeze(1)
        place = place.clamp(min=0).expand(len(k), above)
        k, v = k[rows, :, place].transpose(1, 2), v[rows, :, place].transpose(1, 2)
        seen = (t_k >= 0).view(-1, 1, 1, above)
        return self.attention.merge(self.attention.attend(q, k, v, t, t_k, seen=seen)).squeeze(1), state

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each column by itself.  (B, H, T, d) -> (B, H, T, d)"""
        B, _, T, _ = q.shape
        width = min(self.stride, T)
        n = -(-T // width)
        q, k, v = (columns(F.pad(x, (0, 0, 0, n * width - T)), width) for x in (q, k, v))
        t = torch.arange(n * width, device=q.device).view(n, width).T.repeat(B, 1)  # (B l, n)
        seen = None
        if not self.causal and n * width > T:  # what pads the end is seen by itself alone
            seen = ((t < T).unsqueeze(1) | (t.unsqueeze(1) == t.unsqueeze(2))).unsqueeze(1)
        y = self.attention.attend(q, k, v, t, t, causal=self.causal, seen=seen)
        return y.unflatten(0, (B, width)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :T]


def columns(x: Tensor, width: int) -> Tensor:
    """Columns as examples of their own.  (B, H, n l, d) -> (B l, H, n, d)"""
    return x.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
