"""Softmax attention, with a key-value cache.

B examples, T tokens, D features; H query heads of d = D / H features; S keys. t_q and t_k are positions of
queries and keys.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.feedforward import scaled_init
from zoo.nn.kernels.flex import check_flex, flex, takes_flex
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary

SCORED = frozenset({"bias", "scores", "values"})  # where an encoding asks for the positions of keys


class Attention(nn.Module):
    """Every token looks at all others (causal: at those before and itself) and takes a mean of their values.

    x (B, T, D) -> (B, T, D):  softmax(q k' / sqrt(d) + what `position` adds) v, for each head. Vaswani et al.
    2017, section 3.2.

    kv_heads    heads of keys and values, each shared by heads / kv_heads neighbouring query heads (Ainslie et
                al. 2023); None is as many as queries, 1 is multi-query attention
    position    an encoding (zoo.nn.Position), or None for none
    dropout     probability that a weight is dropped while training
    qk_norm     RMS norm of each head's queries and keys, before they are rotated (Henry et al. 2020)
    cap         scores s become cap tanh(s / cap), so that none is larger (Gemma 2, Riviere et al. 2024); None
                for no cap. Of the kernels only flex has it, sdpa keeps all T x T weights
    bias        whether the linear maps have biases
    kernel      sdpa, PyTorch's fused product, or flex (zoo.nn.kernels.flex), which changes scores inside and
                is for whole sequences; auto is flex on GPUs where it saves a T x T matrix: with a cap, or
                a bias by distance that is not learned

    Raises ValueError if dim is no multiple of heads, or heads none of kv_heads; if cap is not positive;
    for flex with dropout, or with an encoding that is more than a bias by distance.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"embed", "rotate", "bias", "scores", "values"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
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
        kv_heads = kv_heads or heads
        check_heads(dim, heads)
        if heads % kv_heads:
            raise ValueError(
                f"heads={heads} cannot share kv_heads={kv_heads}; "
                f"try kv_heads={nearest_divisor(heads, kv_heads)}"
            )
        if cap is not None and not cap > 0:
            raise ValueError(f"cap={cap} bounds the scores, so it is positive, or null for none; try cap=50")
        self.heads, self.kv_heads, self.causal, self.dropout = heads, kv_heads, causal, dropout
        self.cap, self.kernel = cap, kernel
        self.position = NoPosition(dim, heads) if position is None else position
        check_flex(kernel, self.position, dropout)
        self.qkv = nn.Linear(dim, dim // heads * (heads + 2 * kv_heads), bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.q_norm = nn.RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim // heads) if qk_norm else nn.Identity()
        for linear in (self.qkv, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        q, k, v = self.project(x, t)
        return self.merge(self.sequence(q, k, v, t))

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, "Cache"]:
        """forward, and what `step` needs.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the attention is not causal: a later token would change all earlier outputs.
        """
        if not self.causal:
            raise ValueError(
                "attention with causal=False has no state to step from; build it with causal=True"
            )
        t = torch.arange(x.shape[1], device=x.device)
        q, k, v = self.project(x, t)
        return self.merge(self.sequence(q, k, v, t)), Cache(k, v, lengths)

    def step(self, x_t: Tensor, state: "Cache") -> tuple[Tensor, "Cache"]:
        """The output for one more token.  x_t (B, D) -> (B, D); the state is changed: it serves once"""
        t = state.next
        q, k, v = self.project(x_t.unsqueeze(1), t)
        k, v = state.append(k, v)
        t_k = state.positions if self.position.places & SCORED else t  # else nobody asks where the keys are
        return self.merge(self.attend(q, k, v, t, t_k, seen=state.seen)).squeeze(1), state

    def project(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, d), keys and values (B, H_kv, T, d)."""
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(x).unflatten(-1, (sum(heads), -1)).transpose(1, 2).split_with_sizes(heads, 1)
        q, k = self.position.rotate(self.q_norm(q), self.k_norm(k), t)
        return q, k, v

    def sequence(self, q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The heads' outputs of tokens 0 ... T - 1, (B, H, T, d)."""
        if self.flexes(q):
            return flex(q, k, v, self.position, causal=self.causal, cap=self.cap)
        return self.attend(q, k, v, t, t, causal=self.causal)

    def flexes(self, q: Tensor, window: int | None = None) -> bool:
        """Whether FlexAttention computes a whole sequence, in a window if there is one."""
        dropout = self.dropout if self.training else 0.0
        return takes_flex(self.kernel, q, self.position, dropout=dropout, cap=self.cap, window=window)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        t_q: Tensor,
        t_k: Tensor,
        *,
        causal: bool = False,
        seen: Tensor | None = None,
    ) -> Tensor:
        """The heads' outputs (B, H, Tq, d); seen (B, 1, 1 or Tq, S) is False at keys that are not seen."""
        places, dropout = self.position.places, self.dropout if self.training else 0.0
        gqa = self.kv_heads < self.heads
        if self.cap is None and not places & SCORED:
            return F.scaled_dot_product_attention(q, k, v, seen, dropout, is_causal=causal, enable_gqa=gqa)
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) if gqa else x for x in (k, v))
        logits = q.new_zeros(1, 1, q.shape[2], k.shape[2])
        if "bias" in places:
            logits = logits + self.position.bias(t_q, t_k).type_as(q)
        if "scores" in places:
            logits = logits + self.position.scores(q, k, t_q, t_k).type_as(q)
        # the fused product keeps its weights to itself and caps nothing, so for these they are written out
        if written := self.cap is not None or "values" in places:
            logits = logits + q @ k.mT / math.sqrt(q.shape[-1])
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        if causal:
            later = t_k.unsqueeze(-2) > t_q.unsqueeze(-1)  # (Tq, S), or (B, Tq, S)
            logits = logits.masked_fill(later.unsqueeze(-3), -math.inf)
        if seen is not None:
            logits = logits.masked_fill(~seen, -math.inf)
        if not written:
            return F.scaled_dot_product_attention(q, k, v, logits, dropout)
        weights = F.dropout(logits.softmax(-1), dropout)
        y = weights @ v
        return y + self.position.values(weights, t_q, t_k) if "values" in places else y

    def merge(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))  # (B, H, T, d) -> (B, T, D)


class Cache:
    """Keys and values of the tokens so far, in room that doubles when it is full.

    k, v        of a prompt, (B, H_kv, P, d)
    lengths     (B,) tokens of each prompt that count, if not all P of them. Every later token has one place
                for the whole batch, after the longest prompt, and its own position in each example.
    """

    def __init__(self, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> None:
        self.k, self.v, self.lengths = k, v, lengths
        self.prompt = self.size = k.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token's (B, H_kv, 1, d) and return all, (B, H_kv, S, d)."""
        if self.size == self.k.shape[2]:
            self.k, self.v = roomier(self.k), roomier(self.v)
        self.k.narrow(2, self.size, 1).copy_(k)
        self.v.narrow(2, self.size, 1).copy_(v)
        self.size += 1
        return self.k.narrow(2, 0, self.size), self.v.narrow(2, 0, self.size)

    @property
    def next(self) -> Tensor:
        """The next token's position: (1,), or (B, 1) where prompts differ."""
        if self.lengths is None:
            return torch.full((1,), self.size, device=self.k.device)
        return self.lengths.unsqueeze(1) + (self.size - self.prompt)

    @property
    def positions(self) -> Tensor:
        """Of all tokens so far: (S,), or (B, S) where prompts differ."""
        t = torch.arange(self.size, device=self.k.device)
        if self.lengths is None:
            return t
        return torch.where(t < self.prompt, t, self.lengths[:, None] + t - self.prompt)

    @property
    def seen(self) -> Tensor | None:
        """Which of them count: (B, 1, 1, S), or None for all."""
        if self.lengths is None:
            return None
        t = torch.arange(self.size, device=self.k.device)
        return ((t < self.lengths[:, None]) | (t >= self.prompt))[:, None, None]


def roomier(x: Tensor) -> Tensor:
    """A copy of x (B, H, S, d) at the head of twice its room."""
    room = x.new_empty(*x.shape[:2], max(2 * x.shape[2], 16), x.shape[3])
    room[:, :, : x.shape[2]] = x
    return room


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError unless the heads divide the width."""
    if dim % heads:
        raise ValueError(
            f"dim={dim} cannot be split over heads={heads}; try heads={nearest_divisor(dim, heads)}"
        )


def nearest_divisor(whole: int, part: int) -> int:
    """The divisor of `whole` that is nearest to `part`, the larger of two equally near ones."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: (abs(d - part), -d))
