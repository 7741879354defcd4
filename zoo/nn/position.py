"""How a network knows where its tokens stand: the places where an encoding can act, and the encodings.

t is a position, an integer, (T,) for all examples or (B, T) for each; it is always given, never counted. q
and k are queries and keys, (B, H, T, d) with d = D / H; t_q and t_k are their positions, n = t_q - t_k their
distance, positive for keys in the past. A file that adds an encoding adds one class.

    in the input        LearnedPosition, SinusoidalPosition, MultiplicativePosition, RecurrentPosition,
                        ConvPosition
    in queries, keys    Rotary, Rotary2D, XPos
    in the scores       by distance alone: ALiBi, KERPLE, T5Bias
                        by distance and content: TransformerXL, DeBERTa, Shaw
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.feedforward import scaled_init

PLACES = ("embed", "rotate", "bias", "scores", "values")


class Position(nn.Module):
    """What an encoding may do; it acts in the places whose methods it defines, and `places` names them.

    Built once by a backbone, `position(dim, heads, depth)`: width, query heads and number of blocks. All
    blocks share it, unless `layer` hands out parts. Arguments named causal, length (of the longest sequence)
    and width (tokens in a row of an image) that are still None are told by the backbone.

    causal_only     whether it is of no use to tokens that see their future
    reach           how many inputs before a token `embed` looks at
    """

    places: ClassVar[frozenset[str]] = frozenset()
    causal_only: ClassVar[bool] = False
    reach: int = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.places = frozenset(
            place for place in PLACES if getattr(cls, place) is not getattr(Position, place)
        )

    def __init__(self, dim: int, heads: int = 1, depth: int = 1) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads

    def layer(self, layer: int) -> "Position":
        """What the mixer of block 0, 1, ... of those that take it gets: this, or a new part of its own."""
        return self

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        """The input of block `layer`, with positions in it; mostly of layer 0 only.  (B, T, D) -> same"""
        return x

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys after a linear map that depends on t; k may have fewer heads.  (B, H, T, d)"""
        return q, k

    def bias(self, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the scaled scores, whatever the content.  -> (H, Tq, Tk), or (B, H, Tq, Tk)"""

    def scores(self, q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the scaled scores, from content; k has as many heads as q.  -> (B, H, Tq, Tk)"""

    def values(self, weights: Tensor, t_q: Tensor, t_k: Tensor) -> Tensor | None:
        """What is added to the output of each head, from its weights (B, H, Tq, Tk).  -> (B, H, Tq, d)"""


class NoPosition(Position):
    """Nothing. A causal network can still count the tokens it sees (Kazemnejad et al. 2023)."""

    causal_only = True


class LearnedPosition(Position):
    """A vector for each position, added to the input: x_t + p_t. Gehring et al. 2017.

    length      rows of the table; None is the longest sequence of the network

    Raises ValueError without a length, and for a position beyond the table.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, length: int | None = None) -> None:
        super().__init__(dim, heads, depth)
        self.table = nn.Parameter(torch.empty(known_length(length), dim).normal_(std=0.02))

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x + row(self.table, t).type_as(x)


class MultiplicativePosition(Position):
    """A vector for each position, multiplied with the input: x_t * p_t, p near 1. Jianlin Su 2021.

    length      rows of the table; None is the longest sequence of the network

    Raises ValueError without a length, and for a position beyond the table.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, length: int | None = None) -> None:
        super().__init__(dim, heads, depth)
        self.table = nn.Parameter(torch.empty(known_length(length), dim).normal_(mean=1, std=0.02))

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x * row(self.table, t).type_as(x)


class SinusoidalPosition(Position):
    """Sinusoids of the position, added to the input. Vaswani et al. 2017, section 3.5.

    x_t + scale * [sin(t w_0), cos(t w_0), sin(t w_1), ...], w_i = base^(-2i/D)

    scale       of the sinusoids; the paper has 1, and embeddings near 1

    Raises ValueError if dim is odd: a sine and a cosine go together.
    """

    def __init__(
        self, dim: int, heads: int = 1, depth: int = 1, *, base: float = 10000.0, scale: float = 1.0
    ) -> None:
        super().__init__(dim, heads, depth)
        if dim % 2:
            raise ValueError(f"dim={dim} is odd, and sinusoids come in pairs; try dim={dim + 1}")
        self.base, self.scale = base, scale

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer:
            return x
        a = angles(t, self.dim, self.base, wide(x))
        return x + self.scale * torch.stack([a.sin(), a.cos()], -1).flatten(-2).type_as(x)


class RecurrentPosition(Position):
    """Positions that follow from each other by a learned flow, added to the input: FLOATER, Liu et al. 2020.

    dp/ds = outer(tanh(inner(p) + s * clock)), p_t = p(t * delta), x_t + p_t

    One step of Runge and Kutta's fourth order for each position; the authors take five, with ReLU, and have a
    flow for each of q, k and v. It goes on for ever, in as many steps as there are positions. While no
    gradient is asked for, the positions are kept beside the weights that they came from.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, delta: float = 0.01) -> None:
        super().__init__(dim, heads, depth)
        self.delta = delta
        self.first = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.clock = nn.Parameter(torch.empty(dim).normal_())
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.kept: tuple[list[Tensor], Tensor] | None = None

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        return x if layer else x + self.positions(int(t.max()) + 1 if t.numel() else 1)[t].type_as(x)

    def positions(self, length: int) -> Tensor:
        """At least the first `length`, (length, D)."""
        if torch.is_grad_enabled():
            return self.flow(length)
        weights: list[Tensor] = list(self.parameters())
        if self.kept is None or not same(self.kept[0], weights) or len(self.kept[1]) < length:
            room = max(16, 2 ** math.ceil(math.log2(length)))  # so that steps mostly find theirs
            self.kept = [w.detach().clone() for w in weights], self.flow(room)
        return self.kept[1]

    def flow(self, length: int) -> Tensor:
        """p_0 ... p_(length - 1), one after the other."""
        h = self.delta
        p: Tensor = self.first
        all_p = [p]
        # in half precision, steps as small as these are lost
        with torch.autocast(p.device.type, enabled=False):
            for s in (t * h for t in range(length - 1)):
                a = self.slope(s, p)
                b = self.slope(s + h / 2, p + h / 2 * a)
                c = self.slope(s + h / 2, p + h / 2 * b)
                d = self.slope(s + h, p + h * c)
                p = p + h / 6 * (a + 2 * b + 2 * c + d)
                all_p.append(p)
        return torch.stack(all_p)

    def slope(self, s: float, p: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(p) + s * self.clock))


class ConvPosition(Position):
    """A convolution of the input over the tokens before, added to it; it knows order, not place.

    x_t + sum_k w_k * x_(t-k), k = 0 ... kernel - 1, for each feature alone. Chu et al. 2021 (who look to both
    sides of an image), causal.
    """

    def __init__(self, dim: int, heads: int = 1, depth: int = 1, *, kernel: int = 4) -> None:
        super().__init__(dim, heads, depth)
        self.reach = kernel - 1
        self.conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)

    def embed(self, x: Tensor, t: Tensor, layer: int) -> Tensor:
        if layer or not x.shape[1]:  # torch does not convolve an empty prompt
            return x
        return x + self.conv(F.pad(x.mT, (self.reach, 0))).mT


class Rotary(Position):
    """Rotary position embedding: scores depend on the distance of two tokens, through angles between them.

    (x_2i, x_2i+1) is turned by the angle t base^(-2i/d), so that <q at t, k at s> is a function of t - s. Su
    et al. 2021, eq. 34; pairs are interleaved, not split in halves. Angles are float32 at least: in bfloat16
    they are wrong after 256.

    interpolation   positions are divided by it, to read sequences so many times longer (Chen et al. 2023)
    ntk             the same by a larger base, base * ntk^(d/(d-2)), which leaves the fastest pair as it is
                    and slows the slowest down by ntk (bloc97 2023)

    Raises ValueError if a head's width is odd: features are rotated in pairs.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        base: float = 10000.0,
        interpolation: float = 1.0,
        ntk: float = 1.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        d = head_width(dim, heads, 2, "Rotary turns pairs of features")
        self.base = base * ntk ** (d / (d - 2)) if d > 2 else base  # the pair of d = 2 is the fastest
        self.interpolation = interpolation

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        turn = unit(angles(t, q.shape[-1], self.base, wide(q), self.interpolation))
        return turned(q, turn), turned(k, turn)


class Rotary2D(Position):
    """Rotary position embedding of images: half of a head is turned by the row, half by the column.

    Token t is in row t // width and column t % width; scores depend on how far apart two tokens are, down and
    across. Jianlin Su 2021 (kexue.fm/archives/8397).

    width       tokens in a row, pixels times channels; None is what the network says

    Raises ValueError without a width, and if a head's width is no multiple of 4: each half is turned in
    pairs.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        width: int | None = None,
        base: float = 10000.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        head_width(dim, heads, 4, "Rotary2D turns pairs of features in each half")
        if width is None:
            raise ValueError(
                "Rotary2D needs width, the tokens in a row, and a sequence has no rows; "
                "give position.width, or take rope"
            )
        self.width, self.base = width, base

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        half, real = q.shape[-1] // 2, wide(q)
        row, column = t // self.width, t % self.width
        a = torch.cat([angles(row, half, self.base, real), angles(column, half, self.base, real)], -1)
        turn = unit(a)
        return turned(q, turn), turned(k, turn)


class XPos(Position):
    """Rotary, with scores that fade with distance: extrapolatable position embedding, Sun et al. 2022.

    Pair i of q is also scaled by z_i^(t/scale), of k by z_i^(-t/scale), z_i = (2i/d + gamma) / (1 + gamma).
    So the scores of keys in the past shrink by z_i^(n/scale), and those of keys in the future would grow
    without end: it is for causal networks. Good for some 30,000 positions, where float32 ends.

    Raises ValueError if a head's width is odd: features are rotated in pairs.
    """

    causal_only = True

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        depth: int = 1,
        *,
        base: float = 10000.0,
        gamma: float = 0.4,
        scale: float = 512.0,
    ) -> None:
        super().__init__(dim, heads, depth)
        head_width(dim, heads, 2, "XPos turns pairs of features")
        self.base, self.gamma, self.scale = base, gamma, scale

    def rotate(self, q: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        d, real = q.shape[-1], wide(q)
        a = angles(t, d, self.base, real)
        z = (torch.arange(0, d, 2, device=q.device, dtype=real) / d + self.gamma) / (1 + self.gamma)
        size = z ** (t.unsqueeze(-1).to(real) / self.scale)  # (T, d/2) or (B, T, d/2)
        return turned(q, torch.polar(size, a)), turned(k, torch.polar(1 / size, a))


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


def distance(t_q: Tensor, t_k: Tensor) -> Tensor:
    """n = t_q - t_k, positive for keys in the past.  (..., Tq), (..., Tk) -> (..., Tq, Tk)"""
    return t_q.unsqueeze(-1) - t_k.unsqueeze(-2)


def angles(t: Tensor, dim: int, base: float, dtype: torch.dtype, interpolation: float = 1.0) -> Tensor:
    """t base^(-2i/dim) / interpolation, i = 0 ... dim/2 - 1.  (..., T) -> (..., T, dim/2)"""
    return t.unsqueeze(-1) * frequencies(dim, base, interpolation, dtype, t.device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept, and a tensor of inference mode may meet no gradient later
def frequencies(
    dim: int, base: float, interpolation: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """base^(-2i/dim) / interpolation, i = 0 ... dim/2 - 1: (dim/2,)"""
    return base ** (-torch.arange(0, dim, 2, device=device, dtype=dtype) / dim) / interpolation


def wide(x: Tensor) -> torch.dtype:
    """The type in which positions of x are computed: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def unit(angle: Tensor) -> Tensor:
    """e^(i angle)"""
    return torch.polar(torch.ones_like(angle), angle)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of features as complex numbers, times turn.  x (B, H, T, d); turn (T, d/2), or (B, T, d/2)"""
    turn = turn if turn.ndim == 2 else turn.unsqueeze(1)  # one turn for all heads
    pairs = x.to(wide(x)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses real numbers only; outside of it, complex ones are faster
        return turned_real(pairs, turn).flatten(-2).type_as(x)
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).type_as(x)


def turned_real(pairs: Tensor, turn: Tensor) -> Tensor:
    """(a + b i) turn, written out.  pairs (..., d/2, 2), turn (..., d/2) complex"""
    (a, b), (cos, sin) = pairs.unbind(-1), (turn.real, turn.imag)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)


def head_width(dim: int, heads: int, parts: int, why: str) -> int:
    """d = dim / heads; raises ValueError if it is no multiple of parts."""
    d = dim // heads
    if d % parts:
        raise ValueError(
            f"a head of dim={dim}, heads={heads} is {d} wide, and {why}; "
            f"try dim={heads * parts * (d // parts + 1)}"
        )
    return d


def known_length(length: int | None) -> int:
    """Raises ValueError if there is none."""
    if length is None:
        raise ValueError(
            "a table of positions needs length, its number of rows; "
            "give position.length, or take an encoding without end, as rope"
        )
    return length


def row(table: Tensor, t: Tensor) -> Tensor:
    """table[t], (..., T, D); raises ValueError beyond its end."""
    # a read from the device, which waits for it, is made for single steps alone
    last = int(t.max()) if t.shape[-1] == 1 else t.shape[-1] - 1
    if last >= len(table):
        raise ValueError(
            f"position {last} is beyond a table of length={len(table)}; "
            "make position.length larger, or take an encoding without end, as rope"
        )
    return table[t]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether these are the same numbers, on the same device."""
    return all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(some, others, strict=True)
    )


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


def auto() -> None:
    """The choice of no encoding in particular: a backbone that gets None takes its mixer's own."""


def fits(position: type[Position], mixer: object, causal: bool) -> bool:
    """Whether a mixer can do what an encoding asks of it.

    A mixer's class says so by `honours`, the places (or the names of single encodings) it can honour beside
    "embed", which is the backbone's work; by `honours_causal`, those that it can honour in causal networks
    alone; and by `ordered`, False if its output ignores the order of what it sees.
    """
    honours = {"embed"} | set(getattr(mixer, "honours", ()))
    honours |= set(getattr(mixer, "honours_causal", ())) if causal else set()
    # what acts nowhere is enough for a mixer with an order of its own
    enough = not position.places and getattr(mixer, "ordered", True)
    return (causal or enough or not position.causal_only) and (
        position.places <= honours or position.__name__ in honours
    )


def encodings(kind: type[Position] = Position) -> Iterator[type[Position]]:
    """All encodings that have been defined so far."""
    for child in kind.__subclasses__():
        yield child
        yield from encodings(child)
