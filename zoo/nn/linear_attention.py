"""Linear attention: weights that are products of features, so that sums over keys are made once.

B examples, T tokens, D features; H heads of d = D / H features; phi maps d features to f positive ones.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.chunked import chunked, end, kept, precise, recur
from zoo.nn.feedforward import scaled_init
from zoo.nn.kernels import check_kernel, choose, library
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary


class State(NamedTuple):
    """What there is to know of the past: sums of k v' (B, H, f, d) and k (B, H, f, 1), the next position."""

    products: Tensor
    keys: Tensor
    t: Tensor


class LinearAttention(nn.Module):
    """Attention whose cost grows with T, not with T squared.  x (B, T, D) -> (B, T, D)

    o_i = sum_j phi(q_i)'phi(k_j) v_j / sum_j phi(q_i)'phi(k_j), over j <= i if causal: a recurrence then, with
    the state of `State`. Katharopoulos et al. 2020, eqs. 7 to 12.

    phi         positive features of queries and keys, (..., d) -> (..., f): elu1, exp, relu, taylor
    position    rotary encodings turn phi(q) and phi(k), in the numerator only (Su et al. 2021, eq. 19), so
                that the denominator stays positive. ALiBi is a decay exp(-slope) of both sums with each token
    bias        whether the linear maps have biases
    kernel      auto, torch or library (flash-linear-attention): zoo.nn.kernels

    Raises ValueError if dim is no multiple of heads, for ALiBi without causal=True, and for a rotation of
    features that are more than d: they are no pairs.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"Rotary", "Rotary2D"})
    honours_causal: ClassVar[frozenset[str]] = frozenset({"ALiBi"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        phi: Callable[[Tensor], Tensor] | None = None,
        causal: bool = True,
        position: Position | None = None,
        bias: bool = True,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(kernel, "linear")
        check_heads(dim, heads)
        self.heads, self.causal, self.kernel = heads, causal, kernel
        self.phi = elu1 if phi is None else phi
        self.position = NoPosition(dim, heads) if position is None else position
        check_decay(self.position, causal)
        features = self.phi(torch.zeros(dim // heads)).shape[-1]
        if "rotate" in self.position.places and features != dim // heads:
            raise ValueError(
                f"phi makes {features} features of {dim // heads}, which {type(self.position).__name__} cannot "
                "turn; try phi=elu1 or position=none"
            )
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.qkv, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            return self.prefill(x)[0]
        q, k, v = self.project(x)
        turned_q, turned_k = self.position.rotate(q, k, torch.arange(x.shape[1], device=x.device))
        weight = q @ k.sum(2).unsqueeze(-1)
        return self.merge(ratio(turned_q @ (turned_k.mT @ v), weight), x)

    def prefill(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """forward, and the state after it.  x (B, T, D); lengths (B,) if only x[b, :lengths[b]] counts

        Raises ValueError if the attention is not causal: a later token would change all earlier outputs.
        """
        check_causal(self)
        q, k, v = self.project(x)
        k = kept(k, lengths)  # phi(0) is not 0
        fused = choose(self.kernel, "linear", v, q.shape[-1]) == "library"
        run = library.linear if fused else chunked
        if "rotate" in self.position.places:
            turned_q, turned_k = self.position.rotate(q, k, torch.arange(x.shape[1], device=x.device))
            sums, products = run(turned_q, turned_k, v)
            weight, keys = (q * k.cumsum(2)).sum(-1, keepdim=True), k.sum(2).unsqueeze(-1)
        else:
            g = decay(self.position, v.shape[:3], x)
            sums, weight, products, keys = weighted(run, q, k, v, None if g is None else kept(g, lengths))
        return self.merge(ratio(sums, weight), x), State(products, keys, end(x, lengths))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for one more token.  x_t (B, D) -> (B, D)"""
        q, k, v = self.project(x_t.unsqueeze(1))
        turned_q, turned_k = self.position.rotate(q, k, state.t)
        q, k, v, turned_q, turned_k = (x.squeeze(2) for x in (q, k, v, turned_q, turned_k))
        g = decay(self.position, v.shape[:2], x_t)
        sums, products = recur(turned_q, turned_k, v, g, state.products)
        weight, keys = recur(q, k, torch.ones_like(v[..., :1]), g, state.keys)
        y = self.merge(ratio(sums, weight).unsqueeze(2), x_t.unsqueeze(1)).squeeze(1)
        return y, State(products, keys, state.t + 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys (B, H, T, f), values (B, H, T, d), in float32 at least."""
        q, k, v = precise(*self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4))
        return self.phi(q), self.phi(k), v

    def merge(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(o.transpose(1, 2).flatten(2).type_as(x))  # (B, H, T, d) -> (B, T, D)


class EfficientAttention(nn.Module):
    """Softmax on queries and keys apart: softmax_d(q) (softmax_T(k)' v).  x (B, T, D) -> (B, T, D)

    Each of the d features of the keys is a map over all T tokens, and a query takes a mean of the d means of
    values under these maps. A later token changes every map, so there is no causal form. Shen et al. 2018.

    position    rotary encodings turn both after their softmax
    bias        whether the linear maps have biases

    Raises ValueError for causal=True, and if dim is no multiple of heads.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"Rotary", "Rotary2D"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        causal: bool = False,
        position: Position | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if causal:
            raise ValueError(
                "EfficientAttention takes the softmax of its keys over all tokens, so it cannot be causal; "
                "try LinearAttention"
            )
        check_heads(dim, heads)
        self.heads = heads
        self.position = NoPosition(dim, heads) if position is None else position
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.qkv, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        t = torch.arange(x.shape[1], device=x.device)
        q, k = self.position.rotate(q.softmax(-1).type_as(v), k.softmax(2).type_as(v), t)
        return self.out((q @ (k.mT @ v)).transpose(1, 2).flatten(2))


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1, Katharopoulos et al. 2020."""
    return F.elu(x) + 1


def exp(x: Tensor) -> Tensor:
    """exp(x - max_r x_r): the largest feature of each token is 1, so that none overflows."""
    return (x - x.detach().amax(-1, keepdim=True)).exp()


def relu(x: Tensor) -> Tensor:
    """max(x, 0). Where no feature of a query meets one of a key, the output is 0."""
    return F.relu(x)


def taylor(x: Tensor) -> Tensor:
    """phi(q)'phi(k) = 1 + s + s^2 / 2, s = q'k / sqrt(d): exp(s) to its second order, at least 1/2.

    1 + d + d (d + 1) / 2 features, so it is for narrow heads. Arora et al. 2024 (Based), section 4.1.
    """
    d = x.shape[-1]
    x = x / d**0.25
    i, j = torch.triu_indices(d, d, device=x.device)
    squares = x[..., i] * x[..., j] * (1 - 0.5 * (i == j).to(x)).sqrt()
    return torch.cat([torch.ones_like(x[..., :1]), x, squares], -1)


def weighted(
    run: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, g: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numerators, denominators, and the states of both: a value that is always 1 counts what is summed."""
    o, state = run(q, k, F.pad(v, (0, 1), value=1.0), g)
    return o[..., :-1], o[..., -1:], state[..., :-1], state[..., -1:]


def ratio(sums: Tensor, weight: Tensor) -> Tensor:
    """A weighted mean; weights that are all zero give zero."""
    return sums / (weight + 1e-6)


def decay(position: Position, shape: torch.Size, x: Tensor) -> Tensor | None:
    """Of an encoding that lowers a weight by a slope per token, the log-decay (B, H, ...); else None."""
    slopes = getattr(position, "slopes", None)
    if slopes is None:
        return None
    return -slopes.to(x.device).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def check_decay(position: Position, causal: bool) -> None:
    """Raise ValueError for an encoding that is a decay where tokens see their future."""
    if getattr(position, "slopes", None) is not None and not causal:
        raise ValueError(
            f"{type(position).__name__} is a decay of the past to attention without scores, so it needs "
            "causal=True; a bidirectional one takes Rotary"
        )


def check_causal(mixer: nn.Module) -> None:
    """Raise ValueError for a network that sees its future: it has no state to go on from."""
    if not mixer.causal:
        raise ValueError(
            f"{type(mixer).__name__} with causal=False has no state to step from; build it with causal=True"
        )
