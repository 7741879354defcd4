"""Attention through landmarks: the Nyström method.

B examples, T tokens, H heads of d features; m landmarks.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import check_heads
from zoo.nn.feedforward import scaled_init
from zoo.nn.position import NoPosition, Position
from zoo.nn.rotary_position import Rotary


class Nystrom(nn.Module):
    """Softmax attention approximated by m landmarks; its cost grows with T m, not with T squared.

    x (B, T, D) -> (B, T, D). Landmarks q~, k~ are means of m segments of queries and keys, and

        softmax(q k~') pinv(softmax(q~ k~')) softmax(q~ k') v + conv(v),    scores over sqrt(d),

    so with m >= T and enough iterations it is softmax attention. The pseudo-inverse is found by iteration in
    float32 at least. Rotary positions are honoured as far as a mean of rotated vectors can. Xiong et al. 2021;
    the last segment may be shorter, and T below m is nothing special.

    landmarks   m; of fewer than m tokens each is one
    iterations  steps towards the pseudo-inverse: 6 leave some percent, which does no harm; 20 are exact
    kernel      width of the convolution of the values over tokens, one filter a head, odd; None for none
    causal      only False: a landmark is a mean over tokens of all times

    Raises ValueError if it is to be causal, if dim is no multiple of heads, or the kernel is even.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"rotate"})
    ordered: ClassVar[bool] = False
    own = Rotary

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        kernel: int | None = 33,
        causal: bool = False,
        position: Position | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if causal:
            raise ValueError(
                "Nystrom mixes tokens of all times in each landmark, so it cannot be causal; take it in a "
                "bidirectional model, as model=roformer, or a mixer like softmax or window here"
            )
        check_heads(dim, heads)
        if kernel is not None and kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} has no middle, so it would shift; try kernel={kernel + 1}")
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.position = NoPosition(dim, heads) if position is None else position
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.qkv, self.out):
            scaled_init(linear)
        # (B, H, T, d): a filter along T for each head, the same for its d features
        self.conv = None
        if kernel is not None:
            self.conv = nn.Conv2d(
                heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False
            )

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d)
        q, k = self.position.rotate(q, k, t)
        y = nystrom(q, k, v, self.landmarks, self.iterations)
        if self.conv is not None:
            y = y + self.conv(v)
        return self.out(y.transpose(1, 2).flatten(2))


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int, iterations: int) -> Tensor:
    """The Nyström approximation of softmax(q k' / sqrt(d)) v.  (B, H, T, d) -> (B, H, T, d)"""
    scale = 1 / math.sqrt(q.shape[-1])
    q_mean, k_mean = segment_means(q, landmarks), segment_means(k, landmarks)
    first = (q @ k_mean.mT * scale).softmax(-1)  # (B, H, T, m)
    middle = (q_mean @ k_mean.mT * scale).softmax(-1)  # (B, H, m, m)
    read = F.scaled_dot_product_attention(q_mean, k, v)  # (B, H, m, d)
    return (first @ (pseudo_inverse(middle, iterations).type_as(read) @ read)).type_as(v)


def segment_means(x: Tensor, m: int) -> Tensor:
    """Means of at most m segments of equal length, the last may be shorter.  (B, H, T, d) -> (B, H, m, d)"""
    T = x.shape[2]
    size = -(-T // m)
    n = -(-T // size)
    total = F.pad(x, (0, 0, 0, n * size - T)).unflatten(2, (n, size)).sum(3)
    count = (T - size * torch.arange(n, device=x.device)).clamp(max=size)
    return total / count.unsqueeze(-1).to(x)


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse of matrices with non-negative entries, nearly.  (..., m, m) -> same

    z_0 = a' / (largest column sum * largest row sum);
    z = z (13 - a z (15 - a z (7 - a z))) / 4: Razavi et al. 2014, as in Xiong et al. 2021, eq. 11. The largest
    sums are of each matrix, not of the whole batch, so that examples do not depend on each other.
    """
    with torch.autocast(a.device.type, enabled=False):
        a = a.to(torch.promote_types(a.dtype, torch.float32))  # an inverse does not survive in half precision
        one = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
        columns, rows = a.sum(-2).amax(-1), a.sum(-1).amax(-1)
        z = a.mT / (columns * rows)[..., None, None]
        for _ in range(iterations):
            az = a @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z
