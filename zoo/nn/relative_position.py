"""Encodings in the scores: what a key is worth to a query by their distance, alone or with what they contain.

q and k are (B, H, T, d), t_q and t_k their positions; n = t_q - t_k is their distance, positive for keys in the past.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.feedforward import scaled_init
from zoo.nn.position import Position, angles, distance, wide


class ALiBi(Position):
    """Scores fall with distance along a line, for each head with another slope: Press et al. 2022.

    bias_h = -m_h |n|, m_h = 2^(-8 h / H), h = 1 ... H, if the number of heads H is a power of two; if not,
    the slopes of the power below, then every second one of the power above. In a bidirectional network it
    cannot tell left from right.
    """

    slopes: Tensor

    def __init__(self, dim: int, heads: int = 1, depth: int = 1) -> None:
        super().__init__(dim, heads, depth)
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        n = distance(t_q, t_k).abs().unsqueeze(-3)
        return -self.slopes[:, None, None] * n


class KERPLE(Position):
    """Scores fall with distance along a learned curve, two numbers for each head: Chi et al. 2022.

    bias_h = -r1_h log(1 + r2_h |n|), or with power=True -r1_h |n|^r2_h, r2 <= 2. Both numbers stay positive
    by a softplus, and r2 below 2 by a sigmoid, where the authors clamp them. Shared by all blocks.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, power: bool = False) -> None:
        super().__init__(dim, heads, depth)
        self.power = power
        r1, r2 = torch.rand(2, heads).clamp(0.01, 0.99)
        self.raw1 = nn.Parameter((r1 if power else 2 * r1).expm1().log())
        self.raw2 = nn.Parameter(r2.logit() if power else r2.expm1().log())

    @property
    def r1(self) -> Tensor:
        return F.softplus(self.raw1)

    @property
    def r2(self) -> Tensor:
        return 2 * self.raw2.sigmoid() if self.power else F.softplus(self.raw2)

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        n = distance(t_q, t_k).abs().unsqueeze(-3)
        r1, r2 = self.r1[:, None, None], self.r2[:, None, None]
        if self.power:
            return -r1 * n**r2
        return -r1 * torch.log1p(r2 * n)


class T5Bias(Position):
    """A learned number for each head and each bucket of distances, shared by all blocks: Raffel et al. 2020.

    bias_h = table[h, bucket(n)]; scores stay scaled by 1/sqrt(d), which T5 leaves to the size of its weights.

    buckets, max_distance   as t5_bucket has them
    causal      whether all buckets are for keys in the past, or half of them for the future; None is as the
                network is

    Raises ValueError if buckets cannot be halved, or max_distance is not beyond the distances that have
    buckets of their own.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        causal: bool | None = None,
    ) -> None:
        super().__init__(dim, heads, depth)
        parts = 2 if causal else 4
        if buckets % parts or max_distance <= buckets // parts:
            raise ValueError(
                f"buckets={buckets} with max_distance={max_distance} cannot be dealt out to distances; "
                f"take a multiple of {parts}, and a max_distance above a {parts}th of it"
            )
        self.buckets, self.max_distance, self.causal = buckets, max_distance, bool(causal)
        self.table = nn.Parameter(torch.empty(heads, buckets).normal_(std=dim**-0.5))

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor:
        # buckets are found for few distances, not for all pairs: those beyond share one
        most = self.max_distance
        few = torch.arange(-most, most + 1, device=t_q.device)
        curve = self.table[:, t5_bucket(few, self.buckets, most, causal=self.causal)]
        n = (distance(t_q, t_k).clamp(-most, most) + most).unsqueeze(-3)
        n = n.expand(*n.shape[:-3], self.heads, *n.shape[-2:])
        return curve.unsqueeze(-2).expand(*n.shape[:-1], -1).gather(-1, n)


class TransformerXL(Position):
    """Content and position meet in four terms: Dai et al. 2019, section 3.3.

    score = ((q + u) k' + (q + v) (W R_n)') / sqrt(d), R_n the sinusoids of the distance, (D,); u and v belong
    to heads, and each block has its own W, u and v.

    Sinusoids of a difference are a rotation of sinusoids, sin(i - j) = sin i cos j - cos i sin j, so no table
    of distances is needed, and none is shifted.

    Raises ValueError if dim is odd: sinusoids come in pairs.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, base: float = 10000.0) -> None:
        super().__init__(dim, heads, depth)
        if dim % 2:
            raise ValueError(f"dim={dim} is odd, and sinusoids come in pairs; try dim={dim + 1}")
        self.base = base
        self.weight = nn.Parameter(torch.empty(heads, dim // heads, dim).normal_(std=(3 * dim) ** -0.5))
        self.u = nn.Parameter(torch.zeros(heads, 1, dim // heads))
        self.v = nn.Parameter(torch.zeros(heads, 1, dim // heads))

    def layer(self, layer: int) -> Position:
        return self if layer == 0 else TransformerXL(self.dim, self.heads, base=self.base)

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        # R_n = [sin n, cos n]
        of_sin, of_cos = ((q + self.v) @ self.weight).chunk(2, -1)  # (B, H, Tq, D/2)
        sin_i, cos_i = self.sinusoids(t_q, q)
        sin_j, cos_j = self.sinusoids(t_k, k)
        at_sin = of_cos * sin_i - of_sin * cos_i
        at_cos = of_sin * sin_i + of_cos * cos_i
        by_distance = torch.cat([at_sin, at_cos], -1) @ torch.cat([sin_j, cos_j], -1).mT
        return (self.u @ k.mT + by_distance) / math.sqrt(q.shape[-1])

    def sinusoids(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a = angles(t, self.dim, self.base, wide(like)).unsqueeze(-3)  # one for all heads
        return a.sin().type_as(like), a.cos().type_as(like)


class DeBERTa(Position):
    """Content and position are kept apart, and meet in three terms: He et al. 2021, section 3.1.

    score = (q k' + q (W_k P_n)' + (W_q P_n) k') / sqrt(3 d), P a table of 2 span vectors (D,), for distances
    n from -span to span - 1 and clipped there. All blocks share P, each has its own W_k and W_q. The third
    term reads P_n as the authors' code does, where the paper has P_-n.

    Made for bidirectional networks: a step costs as much as 2 span more keys.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, span: int = 512) -> None:
        super().__init__(dim, heads, depth)
        self.span = span
        self.table = nn.Parameter(torch.empty(2 * span, dim).normal_(std=0.02))
        self.key, self.query = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        for linear in (self.key, self.query):
            scaled_init(linear)

    def layer(self, layer: int) -> Position:
        if layer == 0:
            return self
        part = DeBERTa(self.dim, self.heads, span=self.span)
        part.table = self.table
        return part

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return q / math.sqrt(3), k

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        d = q.shape[-1]
        n = distance(t_q, t_k).clamp(-self.span, self.span - 1) + self.span
        index = n.unsqueeze(-3).expand(*q.shape[:2], *n.shape[-2:])
        keys, queries = (
            linear(self.table).unflatten(-1, (self.heads, d)).movedim(0, -1)  # (H, d, 2 span)
            for linear in (self.key, self.query)
        )
        content_to_position = (q @ keys).gather(-1, index)
        position_to_content = (k @ queries).gather(-1, index.mT).mT
        return (content_to_position + position_to_content / math.sqrt(3)) / math.sqrt(d)


class Shaw(Position):
    """A learned key and a learned value for each distance up to `clip`: Shaw et al. 2018.

    score = q (k + a_n)' / sqrt(d), output = sum_j weight_j (v_j + b_n), n clipped to -clip ... clip. All
    heads of a block share a and b, each block has its own.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, clip: int = 16) -> None:
        super().__init__(dim, heads, depth)
        self.clip = clip
        self.key_table = nn.Parameter(torch.empty(2 * clip + 1, dim // heads).normal_(std=0.02))
        self.value_table = nn.Parameter(torch.empty(2 * clip + 1, dim // heads).normal_(std=0.02))

    def layer(self, layer: int) -> Position:
        return self if layer == 0 else Shaw(self.dim, self.heads, clip=self.clip)

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        of_distance = q @ self.key_table.mT  # (B, H, Tq, 2 clip + 1)
        return of_distance.gather(-1, self.index(q, t_q, t_k)) / math.sqrt(q.shape[-1])

    def values(self, weights: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        of_distance = weights.new_zeros(*weights.shape[:-1], 2 * self.clip + 1)
        return of_distance.scatter_add(-1, self.index(weights, t_q, t_k), weights) @ self.value_table

    def index(self, x: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor:
        """Row of the tables for each pair, (B, H, Tq, Tk); x (B, H, ...)."""
        n = distance(t_q, t_k).clamp(-self.clip, self.clip) + self.clip
        return n.unsqueeze(-3).expand(*x.shape[:2], *n.shape[-2:])


def alibi_slopes(heads: int) -> Tensor:
    """2^-1 ... 2^-8 for 8 heads: (H,). For 12, eight of 8 heads and then every second one of 16."""
    n = 2 ** (heads.bit_length() - 1)
    exponents = [8 * (h + 1) / n for h in range(n)] + [4 * (2 * h + 1) / n for h in range(heads - n)]
    return 2 ** -torch.tensor(exponents)


def t5_bucket(n: Tensor, buckets: int = 32, max_distance: int = 128, *, causal: bool) -> Tensor:
    """The bucket of each distance, of the same shape, 0 ... buckets - 1.

    Half of the buckets are for one distance each, the others grow evenly in log n up to max_distance, and the
    last has all beyond. Causal: keys in the future are at distance 0. Else they have the second half.
    """
    future = 0 if causal else buckets // 2 * (n < 0)
    buckets = buckets if causal else buckets // 2
    n = n.clamp(min=0) if causal else n.abs()
    own = buckets // 2
    # float32 as in T5: another type rounds differently at the edges of buckets
    log = (n.clamp(min=own).float() / own).log() / math.log(max_distance / own)
    far = (own + (log * (buckets - own)).long()).clamp(max=buckets - 1)
    return future + torch.where(n < own, n, far)
