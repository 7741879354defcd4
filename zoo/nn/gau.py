"""The gated attention unit: attention with one head and a gate, in place of attention and feed-forward block.

T tokens of D features; e the width of values and gate, s that of queries and keys.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Cache
from zoo.nn.feedforward import scaled_init
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary


class GatedAttention(nn.Module):
    """Gated attention unit: what each token gathers is multiplied by a gate of its own.  (B, T, D) -> same

        u, v = silu(x W_u), silu(x W_v);   q, k = z * gamma + beta, two of each, z = silu(x W_z)
        y_t = out(u_t * mean_s relu(q_t k_s / sqrt(s) + b)^2 v_s),    over the tokens that t sees

    b is what `position` adds. One head; two units stand for one attention and one feed-forward block. Hua et
    al. 2022, eq. 3 to 6. There relu(q k / n)^2 is summed, with n the length; a mean over what is seen instead
    (as in Su 2022, kexue.fm/archives/8934) makes a step equal the parallel form, and texts longer than those in
    training no louder. gamma starts at 1.

    expand      e / D
    width       s

    Raises ValueError if the width is odd.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"rotate", "bias"})
    ordered: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    own = Rotary

    def __init__(
        self,
        dim: int,
        *,
        expand: float = 2.0,
        width: int = 128,
        causal: bool = True,
        position: Position | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.position = NoPosition(dim) if position is None else position
        self.gate = Gate(dim, expand=expand, width=width, pairs=1)
        self.out = nn.Linear(int(expand * dim), dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        u, v, q, k = self.project(x, t)
        return self.out(u * self.attend(q, k, v, t, t))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Cache]:
        """forward, and what `step` needs.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the unit is not causal.
        """
        if not self.causal:
            raise ValueError("a unit with causal=False has no state to step from; build it with causal=True")
        t = torch.arange(x.shape[1], device=x.device)
        u, v, q, k = self.project(x, t)
        return self.out(u * self.attend(q, k, v, t, t)), Cache(k, v.unsqueeze(1), lengths)

    def step(self, x_t: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """The output for one more token.  x_t (B, D) -> (B, D); the state is changed: it serves once"""
        t = state.next
        u, v, q, k = self.project(x_t.unsqueeze(1), t)
        k, v = state.append(k, v.unsqueeze(1))
        seen = None if state.seen is None else state.seen.squeeze(1)
        return self.out(u * self.attend(q, k, v.squeeze(1), t, state.positions, seen)).squeeze(1), state

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u and v (B, T, e), q and k (B, 1, T, s)."""
        u, v, q, k = self.gate(x)
        return u, v, *self.position.rotate(q, k, t)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, t_q: Tensor, t_k: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """mean_s relu(q k + b)^2 v; seen (B, 1, S) is False at keys that nobody sees.  -> (B, Tq, e)"""
        weights = squared_relu(q, k, self.position, t_q, t_k).squeeze(1)
        count = torch.full((), t_k.shape[-1], device=q.device)
        if self.causal:
            weights = weights * (t_k.unsqueeze(-2) <= t_q.unsqueeze(-1))
            count = t_q.unsqueeze(-1) + 1
        if seen is not None:
            weights = weights * seen
        return weights @ v / count.to(v)


class Gate(nn.Module):
    """Gate, values, and pairs of queries and keys from one x.

    x (B, T, D) -> u and v (B, T, e), q and k (B, pairs, T, s).
    """

    def __init__(self, dim: int, *, expand: float, width: int, pairs: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(
                f"width={width} of queries is odd, and they are rotated in pairs; try {width + 1}"
            )
        self.widths = (int(expand * dim), int(expand * dim), width)
        self.inner = nn.Linear(dim, sum(self.widths))
        self.gamma = nn.Parameter(torch.ones(2, pairs, 1, width))
        self.beta = nn.Parameter(torch.zeros(2, pairs, 1, width))
        scaled_init(self.inner)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, v, z = F.silu(self.inner(x)).split(self.widths, -1)
        q, k = (z.unsqueeze(1) * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))
        return u, v, q, k


def squared_relu(q: Tensor, k: Tensor, position: Position, t_q: Tensor, t_k: Tensor) -> Tensor:
    """relu(q k' / sqrt(s) + what `position` adds)^2.  (B, 1, Tq, s), (B, 1, Tk, s) -> (B, 1, Tq, Tk)"""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    bias = position.bias(t_q, t_k)
    if bias is not None:
        scores = scores + bias.type_as(scores)
    return F.relu(scores).square()
