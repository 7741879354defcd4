"""FLASH: gated attention units that are quadratic within chunks and linear between them.

T tokens of D features; e the width of values and gate, s that of queries and keys; chunks of C tokens.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.feedforward import scaled_init
from zoo.nn.gau import Gate, squared_relu
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary


class MixedState(NamedTuple):
    """What a step needs: the chunk so far, and sums of k v' over whole chunks before it.

    k, v        (B, C, s), (B, C, e) of the present chunk, 0 at tokens to come
    past        (B, s, e), the sum of all earlier chunks
    part        (B, s, e), the sum of the present one, which joins `past` when it is full
    t           the next position, (1,) or (B, 1)
    """

    k: Tensor
    v: Tensor
    past: Tensor
    part: Tensor
    t: Tensor


class MixedChunk(nn.Module):
    """Mixed chunk attention: exact attention to the own chunk, linear attention to others.  (B, T, D) -> same

        y_t = out(u_t * (sum_s relu(q_t k_s / sqrt(s) + b)^2 v_s / C  +  q'_t mean_r k'_r v_r' / sqrt(s)))

    s runs over the own chunk; r over all tokens of earlier chunks (causal=False: of all chunks, the own one
    included). u, v, q, k, q', k' are the gate, values and two pairs of queries and keys of a gated attention
    unit; b is what `position` adds. Its cost grows with T. Hua et al. 2022, section 3.3. The mean is ours:
    there a sum is divided by a constant, and grows with the number of chunks.

    chunk       C
    expand      e / D
    width       s

    Raises ValueError if the width is odd or the chunk below 1.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"rotate", "bias"})
    ordered: ClassVar[bool] = True  # which tokens share a chunk depends on their places
    whole: ClassVar[bool] = True
    own = Rotary

    def __init__(
        self,
        dim: int,
        *,
        chunk: int = 256,
        expand: float = 2.0,
        width: int = 128,
        causal: bool = True,
        position: Position | None = None,
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"chunk={chunk} holds no token; try chunk=256")
        self.chunk, self.causal = chunk, causal
        self.position = NoPosition(dim) if position is None else position
        self.gate = Gate(dim, expand=expand, width=width, pairs=2)
        self.out = nn.Linear(int(expand * dim), dim)
        scaled_init(self.out)

    def forward(self, x: Tensor) -> Tensor:
        u, v, q, k = self.project(x, torch.arange(x.shape[1], device=x.device))
        return self.out(u * self.attend(q, k, v))

    def naive(self, x: Tensor) -> Tensor:
        """forward by T x T weights: slow, obvious."""
        t = torch.arange(x.shape[1], device=x.device)
        u, v, q, k = self.project(x, t)
        chunk = t // self.chunk
        own = chunk.unsqueeze(1) == chunk
        if self.causal:
            own = own & (t <= t.unsqueeze(1))
        linear = torch.ones_like(own) if not self.causal else chunk < chunk.unsqueeze(1)
        near = squared_relu(q[:, :1], k[:, :1], self.position, t, t).squeeze(1) * own / self.chunk
        far = q[:, 1] @ k[:, 1].mT / math.sqrt(q.shape[-1]) * linear / linear.sum(1, True).clamp(min=1)
        return self.out(u * ((near + far) @ v))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, MixedState]:
        """forward, and what `step` needs.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if it is not causal.
        """
        if not self.causal:
            raise ValueError("FLASH with causal=False has no state to step from; build it with causal=True")
        T, C = x.shape[1], self.chunk
        t = torch.arange(T, device=x.device)
        u, v, q, k = self.project(x, t)
        y = self.out(u * self.attend(q, k, v))
        end = torch.full((1,), T, device=x.device) if lengths is None else lengths.unsqueeze(1)
        # a chunk that is just full stays the present one, until the next token
        start = (end - 1).clamp(min=0) // C * C
        before, present = (t < start).unsqueeze(-1), ((t >= start) & (t < end)).unsqueeze(-1)
        # float32 at least: a running sum loses bits
        real = torch.promote_types(v.dtype, torch.float32)
        past, part = ((k[:, 1].mT @ (v * mask)).to(real) for mask in (before, present))
        place = (start + torch.arange(C, device=x.device)).expand(len(x), C)
        here = (place < end).unsqueeze(-1)
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        place = place.clamp(max=max(T - 1, 0))
        return y, MixedState(k[rows, 0, place] * here, v[rows, place] * here, past, part, end)

    def step(self, x_t: Tensor, state: MixedState) -> tuple[Tensor, MixedState]:
        """The output for one more token.  x_t (B, D) -> (B, D); the state is changed: it serves once"""
        k_near, v_near, past, part, t = state
        u, v, q, k = self.project(x_t.unsqueeze(1), t)
        place = t % self.chunk  # (1,) or (B, 1)
        new = (place == 0).view(-1, 1, 1)
        past = torch.where(new, past + part, past)
        update = k[:, 1].mT @ v
        part = torch.where(new, update, part + update)
        rows, slot = torch.arange(len(x_t), device=x_t.device), place.flatten()
        k_near[rows, slot], v_near[rows, slot] = k[:, 0, 0].type_as(k_near), v[:, 0].type_as(v_near)
        slots = torch.arange(self.chunk, device=x_t.device)
        weights = squared_relu(q[:, :1], k_near.unsqueeze(1), self.position, t, t - place + slots).squeeze(1)
        near = (weights * (slots <= place).view(-1, 1, self.chunk)) @ v_near / self.chunk
        past_mean = (past / (t - place).clamp(min=1).view(-1, 1, 1)).type_as(q)
        far = q[:, 1] @ past_mean / math.sqrt(q.shape[-1])
        return self.out(u * (near + far)).squeeze(1), MixedState(k_near, v_near, past, part, t + 1)

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u and v (B, T, e), q and k (B, 2, T, s): first those of the own chunk, then the linear ones."""
        u, v, q, k = self.gate(x)
        return u, v, *self.position.rotate(q, k, t)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each token gathers.  q, k (B, 2, T, s), v (B, T, e) -> (B, T, e)"""
        T, C = v.shape[1], max(min(self.chunk, v.shape[1]), 1)
        n = -(-T // C)
        q, k = (F.pad(x, (0, 0, 0, n * C - T)).unflatten(2, (n, C)) for x in (q, k))  # (B, 2, n, C, s)
        v = F.pad(v, (0, 0, 0, n * C - T)).unflatten(1, (n, C))  # (B, n, C, e)
        t = torch.arange(n * C, device=v.device).view(n, C)
        weights = squared_relu(q[:, :1].transpose(1, 2), k[:, :1].transpose(1, 2), self.position, t, t)
        weights = weights.squeeze(2)  # (B, n, C, C)
        # float32 at least: sums over chunks lose bits
        sums = (k[:, 1].mT @ v).to(torch.promote_types(v.dtype, torch.float32))  # (B, n, s, e)
        if self.causal:
            weights = weights.tril()
            sums = F.pad(sums.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0))
            count = t[:, :1].clamp(min=1).unsqueeze(-1)  # (n, 1, 1)
        else:
            sums, count = sums.sum(1, True), torch.full((), max(T, 1), device=v.device)
        far = q[:, 1] @ (sums / count).type_as(q) / math.sqrt(q.shape[-1])
        return (weights @ v / self.chunk + far).flatten(1, 2)[:, :T]
