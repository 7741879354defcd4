"""The U-Net of diffusion: residual blocks that know the time, at several resolutions, with shortcuts across.

x (B, C, H, W), t (B,), c what is told; h (B, E) is the embedding of t and of c.vector, memory (B, L, D) the words
and mask (B, 1, 1, L) which of them are there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import nearest_divisor
from zoo.nn.autoencoder import lowest
from zoo.nn.conditions import Condition, words
from zoo.nn.field_dropout import FieldDropout
from zoo.nn.norm_silu import NormSiLU
from zoo.nn.time_embedding import TimeEmbedding


class UNet(nn.Module):
    """DDPM's network: down to small fields, up again, each block up also given what one on its way down made.

    x (B, C, H, W), t (B,), c -> (B, C, H, W). Ho et al. 2020, appendix B, whose 35.7 M parameters for CIFAR-10 are the
    defaults; with a context, attention to words follows that of the field to itself, as in Rombach et al. 2022, and a
    class is a single word. What ends a branch, and the last layer, start at zero.

    shape       (C, H, W) of an image; others can be given, if they can be halved as often
    context     width of a condition, None for none
    dim         channels at the full size
    mult        channels at each size, in units of dim; len(mult) - 1 is how often the sides are halved. None: 1, 2, 2,
                2, or fewer where the sides cannot be halved so often
    depth       residual blocks at each size on the way down; there is one more on the way up
    attention   heights H at which each block is followed by attention, besides the smallest; None: half of the image's,
                which is 16 for CIFAR-10
    heads       of the attention, wherever it is; one here, 4 of 64 channels in Tong et al. 2023, with as many weights
    dropout     probability that a feature is dropped in each block while training
    blocks      residual blocks with their attention, for gradient checkpointing
    runs        each alone: what comes between two of them is used elsewhere

    Raises Unfit, at any time, for what is no image or has sides that cannot be halved so often; ValueError for
    channels that heads do not divide, and for heights that no field has.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int | None,
        *,
        dim: int = 128,
        mult: Sequence[int] | None = None,
        depth: int = 2,
        attention: Sequence[int] | None = None,
        heads: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        mult = halvable(shape) if mult is None else mult
        self.halvings = len(mult) - 1
        lowest(shape, self.halvings)
        heights = [shape[1] // 2**i for i in range(len(mult))]
        attention = heights[1:2] if attention is None else attention
        if not set(attention) <= set(heights):
            raise ValueError(
                f"attention={list(attention)}: the fields of an image of {shape[1]} rows have heights {heights}; "
                f"try backbone.attention={heights[1:2]}"
            )
        widths = [dim * m for m in mult]
        self.embed = TimeEmbedding(4 * dim, features=dim, context=context)
        self.enter = nn.Conv2d(shape[0], dim, 3, padding=1)
        common: dict[str, Any] = {"time": 4 * dim, "dropout": dropout}
        attend: dict[str, Any] = {"heads": heads, "context": context}
        width, made = dim, [dim]  # channels now, and of all that was made on the way down
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, leave in enumerate(widths):
            for _ in range(depth):
                self.down.append(Stage(width, leave, **common, **(attend if heights[i] in attention else {})))
                made.append(width := leave)
            if i < self.halvings:
                self.down.append(Halve(width))
                made.append(width)
        self.middle = nn.ModuleList([Stage(width, width, **common, **attend), Stage(width, width, **common)])
        for i, leave in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                some = attend if heights[i] in attention else {}
                self.up.append(Stage(width + made.pop(), leave, **common, **some))
                width = leave
            if i:
                self.up.append(Double(width))
        self.norm = NormSiLU(wide_group_norm(width))
        self.leave = nn.Conv2d(width, shape[0], 3, padding=1)
        # keys and values share a product, and each of their maps has a start of its own
        joint = {look.kv for look in self.modules() if isinstance(look, Look)}
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                for weight in part.weight.data.chunk(2) if part in joint else [part.weight]:
                    nn.init.xavier_uniform_(weight)
                nn.init.zeros_(part.bias)
        for last in (self.leave, *(part.out for part in self.modules() if hasattr(part, "out"))):
            nn.init.zeros_(last.weight)
        self.to(memory_format=torch.channels_last)

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [block for block in (*self.down, *self.middle, *self.up) if isinstance(block, Stage)]

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Each block alone."""
        return [[block] for block in self.blocks]

    def forward(self, x: Tensor, t: Tensor, c: Condition | None = None) -> Tensor:
        lowest(x.shape[1:], self.halvings)
        h = F.silu(self.embed(t, c))
        told = (h, *words(c))
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        made = [x]
        for block in self.down:
            x = block(x, *told)
            made.append(x)
        for block in self.middle:
            x = block(x, *told)
        for block in self.up:
            x = block(torch.cat([x, made.pop()], 1) if isinstance(block, Stage) else x, *told)
        return self.leave(self.norm(x)).contiguous()


def halvable(shape: Sequence[int]) -> tuple[int, ...]:
    """DDPM's 1, 2, 2, 2, or fewer: one more than an image's sides can be halved, up to three times."""
    times = 0
    while times < 3 and len(shape) == 3 and not any(side % 2 ** (times + 1) for side in shape[1:]):
        times += 1
    return (1, 2, 2, 2)[: times + 1]


class Stage(nn.Module):
    """A residual block and, with heads, attention.  x (B, C, H, W), h, memory, mask -> (B, C', H, W)

    x = shortcut(x) + out(drop(act(norm(inner(act(norm(x))) + time(h)))))
    """

    def __init__(
        self,
        enter: int,
        leave: int,
        *,
        time: int,
        dropout: float,
        heads: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.norm = NormSiLU(wide_group_norm(enter))
        self.inner = nn.Conv2d(enter, leave, 3, padding=1)
        self.time = nn.Linear(time, leave)
        self.inner_norm = NormSiLU(wide_group_norm(leave))
        self.dropout = FieldDropout(dropout)
        self.out = nn.Conv2d(leave, leave, 3, padding=1)
        self.shortcut = nn.Identity() if enter == leave else nn.Conv2d(enter, leave, 1)
        self.attention = None if heads is None else Look(leave, heads)
        self.cross = None if heads is None or context is None else Look(leave, heads, context)

    def forward(
        self, x: Tensor, h: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        y = self.inner(self.norm(x)) + self.time(h)[:, :, None, None]
        x = self.shortcut(x) + self.out(self.dropout(self.inner_norm(y)))
        if self.attention is not None:
            x = self.attention(x)
        if self.cross is not None:
            x = self.cross(x, memory, mask)
        return x


class Look(nn.Module):
    """x + out(attention(norm(x))), to all places of the field or to words.  (B, C, H, W) -> the same

    context     width of the words, None to look at the field itself

    Raises ValueError if channels is no multiple of heads.
    """

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"{channels} channels cannot be split over heads={heads}; "
                f"try heads={nearest_divisor(channels, heads)}"
            )
        self.heads = heads
        self.norm = wide_group_norm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context or channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).mT  # (B, H W, C)
        q = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(tokens if memory is None else memory)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return x + self.out(y).mT.unflatten(2, x.shape[2:])


class Halve(nn.Conv2d):
    """Half the sides, by a convolution.  (B, C, H, W) -> (B, C, H / 2, W / 2)"""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *told: Any) -> Tensor:
        return super().forward(x)


class Double(nn.Conv2d):
    """Each pixel four times, then a convolution of 3 x 3.  (B, C, H, W) -> (B, C, 2 H, 2 W)

    Both at once are a transposed convolution of 4 x 4 with a stride of 2, in 16 / 36 of the products.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *told: Any) -> Tensor:
        taps = F.pad(self.weight, (1, 1, 1, 1))
        taps = taps[:, :, 1:] + taps[:, :, :-1]
        taps = taps[..., 1:] + taps[..., :-1]  # (C, C, 4, 4): what each of four equal pixels adds
        return F.conv_transpose2d(x, taps.transpose(0, 1).flip(2, 3), self.bias, stride=2, padding=1)


def wide_group_norm(channels: int) -> nn.GroupNorm:
    """Normalization over 32 groups, fewer where they would have less than four channels (Wu & He 2018).

    Of a group of one channel nothing would be left of the time, which is added to all its places.
    """
    return nn.GroupNorm(math.gcd(32, channels, channels // 4), channels, eps=1e-6)
