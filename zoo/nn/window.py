"""Attention to what is near: a sliding window.

B examples, T tokens, w the window; blocks are w tokens long. H heads of d features; n = T / w blocks.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.kernels.flex import flex
from zoo.nn.position import Position
from zoo.nn.rotary_position import Rotary


class WindowState(NamedTuple):
    """The last keys and values, at most w - 1 of them, (B, H_kv, S, d), and the next position, (1,) or (B, 1)."""

    k: Tensor
    v: Tensor
    t: Tensor


class SlidingWindow(nn.Module):
    """Attention in which every token sees the `window` last ones, itself included: cost grows with T.

    x (B, T, D) -> (B, T, D). Position t sees s if 0 <= t - s < window; causal=False: if |t - s| < window. Each
    block of w queries meets the keys of its own and the neighbouring blocks, so no T x T matrix is made; the
    state holds window - 1 tokens. n layers see n (window - 1) + 1 tokens. The window counts as in Jiang et al.
    2023 (Mistral); Beltagy et al. 2020 (Longformer) see window / 2 on each side.

    window      tokens that a token sees, itself among them
    all others  as zoo.nn.Attention has them; kernel=auto is flex on GPUs

    Raises ValueError if the window is below 1.
    """

    honours: ClassVar[frozenset[str]] = Attention.honours
    ordered: ClassVar[bool] = False  # the order within a window is as open as that of all tokens
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        window: int = 128,
        kv_heads: int | None = None,
        causal: bool = True,
        position: Position | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        cap: float | None = None,
        bias: bool = True,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window} leaves a token nothing to see; try window=1, itself alone")
        self.window, self.causal = window, causal
        self.attention = Attention(
            dim,
            heads,
            kv_heads=kv_heads,
            causal=causal,
            position=position,
            dropout=dropout,
            qk_norm=qk_norm,
            cap=cap,
            bias=bias,
            kernel=kernel,
        )

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        return self.attention.merge(self.attend(*self.attention.project(x, t)))

    def naive(self, x: Tensor) -> Tensor:
        """forward by a T x T mask: slow, obvious."""
        t = torch.arange(x.shape[1], device=x.device)
        q, k, v = self.attention.project(x, t)
        return self.attention.merge(self.attention.attend(q, k, v, t, t, seen=self.sees(t, t)))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, WindowState]:
        """forward, and what `step` needs.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the window is not causal.
        """
        if not self.causal:
            raise ValueError(
                "a window with causal=False has no state to step from; build it with causal=True"
            )
        T = x.shape[1]
        t = torch.arange(T, device=x.device)
        q, k, v = self.attention.project(x, t)
        y = self.attention.merge(self.attend(q, k, v))
        end = torch.full((1,), T, device=x.device) if lengths is None else lengths.unsqueeze(1)
        return y, WindowState(*self.last(k, v, end), end)

    def step(self, x_t: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        q, k, v = self.attention.project(x_t.unsqueeze(1), state.t)
        k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        t_k = state.t - k.shape[2] + 1 + torch.arange(k.shape[2], device=k.device)
        seen = (t_k >= 0).view(-1, 1, 1, k.shape[2])
        y = self.attention.merge(self.attention.attend(q, k, v, state.t, t_k, seen=seen))
        S = min(self.window - 1, k.shape[2])
        start = k.shape[2] - S
        return y.squeeze(1), WindowState(k[:, :, start:], v[:, :, start:], state.t + 1)

    def last(self, k: Tensor, v: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The window - 1 keys and values before `end`, the last one last; what lies before 0 is arbitrary."""
        S = min(self.window - 1, k.shape[2])
        t = (end - S + torch.arange(S, device=k.device)).clamp(min=0).expand(len(k), S)
        rows = torch.arange(len(k), device=k.device).unsqueeze(1)
        return k[rows, :, t].transpose(1, 2), v[rows, :, t].transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each block of queries with the keys around it, or FlexAttention.  (B, H, T, d) -> (B, H, T, d)"""
        if self.attention.flexes(q, self.window):
            options = {"causal": self.causal, "cap": self.attention.cap, "window": self.window}
            return flex(q, k, v, self.attention.position, **options)
        B, _, T, _ = q.shape
        w = max(min(self.window, T), 1)
        n = -(-T // w)
        sides = (-1, 0) if self.causal else (-1, 0, 1)
        t_q = torch.arange(n * w, device=q.device).view(n, w)
        t_k = torch.cat([t_q + side * w for side in sides], 1)  # (n, 2w) or (n, 3w)
        # what pads the ends sees itself alone: a row without any key has no softmax
        seen = self.sees(t_q, t_k) & ((t_k >= 0) & (t_k < T)).unsqueeze(1)
        seen = seen | (t_k.unsqueeze(1) == t_q.unsqueeze(2))
        around = (w, n * w - T + w)  # a block before and one after
        q = blocks(F.pad(q, (0, 0, 0, n * w - T)), n)
        k, v = (F.pad(x, (0, 0, *around)) for x in (k, v))
        k, v = (
            torch.cat([blocks(x[:, :, (1 + side) * w : (1 + side + n) * w], n) for side in sides], 2)
            for x in (k, v)
        )
        t_q, t_k, seen = t_q.repeat(B, 1), t_k.repeat(B, 1), seen.unsqueeze(1).repeat(B, 1, 1, 1)
        y = self.attention.attend(q, k, v, t_q, t_k, seen=seen)
        return y.unflatten(0, (B, n)).transpose(1, 2).flatten(2, 3)[:, :, :T]

    def sees(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        """Which keys are in a query's window.  (..., Tq), (..., Tk) -> (..., Tq, Tk)"""
        distance = t_q.unsqueeze(-1) - t_k.unsqueeze(-2)
        return (distance < self.window) & (distance >= (0 if self.causal else 1 - self.window))


def blocks(x: Tensor, n: int) -> Tensor:
    """n blocks as examples of their own.  (B, H, n w, d) -> (B n, H, w, d)"""
    return x.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)
