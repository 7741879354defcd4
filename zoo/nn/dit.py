"""Diffusion Transformers: patches as tokens, blocks that the time and the condition modulate.

x (B, C, H, W) becomes tokens (B, T, D); t (B,), c what is told; h (B, D) is the embedding of both.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone
from zoo.nn.block import Block
from zoo.nn.conditions import Condition
from zoo.nn.feedforward import FeedForward
from zoo.nn.grid_position import Sinusoidal2D
from zoo.nn.patches import patched, patchify, unpatchify
from zoo.nn.time_embedding import TimeEmbedding

gelu_tanh = partial(FeedForward, activation=partial(nn.GELU, approximate="tanh"))


class DiT(nn.Module):
    """A backbone over patches, whose norms and branches are scaled by what the time and the condition say.

    x (B, C, H, W), t (B,), c -> (B, C, H, W). Peebles & Xie 2022, with adaLN-Zero; the defaults are DiT-XL/2. Any
    mixer and position of zoo.nn.Backbone stands in its blocks, one that looks back only with a reversed copy. Of a
    condition it is told the vector, of a caption the mean of its words. At the start every block is the identity and
    the output zero.

    shape       (C, H, W) of an image
    context     width of a condition, None for none
    dim, depth, mixer, position, mlp   as zoo.nn.Backbone has them
    patch       side P of a patch

    Raises Unfit for what patches do not tile; ValueError for an x of another shape, and what zoo.nn.Backbone raises.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int | None,
        *,
        dim: int = 1152,
        depth: int = 28,
        patch: int = 2,
        mixer: Callable[..., Any] | Sequence[Callable[..., Any]] = partial(Attention, heads=16),  # noqa: B008
        position: Callable[..., Any] | None = Sinusoidal2D,
        mlp: Callable[..., Any] | None = gelu_tanh,
    ) -> None:
        super().__init__()
        grid = patched(shape, patch)
        self.shape, self.patch = tuple(shape), patch
        self.enter = nn.Linear(patch * patch * shape[0], dim)
        self.embed = time_embedding(dim, context)
        self.net = Backbone(
            dim, depth, mixer, position=position, mlp=mlp, norm=bare_norm, causal=False, grid=grid
        )
        self.net.blocks = nn.ModuleList(Modulated(block, dim) for block in self.net.blocks)
        self.last = zero_linear(dim, 2 * dim)
        self.leave = zero_linear(dim, patch * patch * shape[0])
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)

    @property
    def blocks(self) -> nn.ModuleList:
        """What gradient checkpointing may recompute."""
        return self.net.blocks

    def forward(self, x: Tensor, t: Tensor, c: Condition | None = None) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this DiT was made for {self.shape}, and x is {tuple(x.shape[1:])}")
        h = F.silu(self.embed(t, c))
        tokens = self.enter(patchify(x, self.patch))
        place = torch.arange(tokens.shape[1], device=x.device)
        for layer, block in enumerate(self.blocks):
            tokens = block(self.net.enter(tokens, place, layer), h)
        shift, scale = self.last(h).unsqueeze(1).chunk(2, -1)
        return unpatchify(self.leave(modulated(self.net.norm(tokens), shift, scale)), self.shape, self.patch)


class Modulated(nn.Module):
    """A block whose branches get a shift, a scale and a gate from h: adaLN-Zero.  x (B, T, D), h (B, D) -> (B, T, D)

    x = x + gate mixer(norm(x) (1 + scale) + shift), and so for the mlp. All of them start at zero.
    """

    def __init__(self, block: Block, dim: int) -> None:
        super().__init__()
        self.block = block
        self.parts = 3 if block.mlp is None else 6
        self.modulation = zero_linear(dim, self.parts * dim)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        shift, scale, gate, *more = self.modulation(h).unsqueeze(1).chunk(self.parts, -1)
        block = self.block
        x = torch.addcmul(x, gate, block.mixer(modulated(block.mixer_norm(x), shift, scale)))
        if not more:
            return x
        shift, scale, gate = more
        return torch.addcmul(x, gate, block.mlp(modulated(block.mlp_norm(x), shift, scale)))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift.  (B, T, D), (B, 1, D) twice -> (B, T, D)"""
    return torch.addcmul(shift, x, 1 + scale)


def bare_norm(dim: int) -> nn.LayerNorm:
    """Layer norm without weights: what follows has its own."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def zero_linear(enter: int, leave: int) -> nn.Linear:
    """A linear map that starts as zero."""
    linear = nn.Linear(enter, leave)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def time_embedding(dim: int, context: int | None) -> TimeEmbedding:
    """That of Peebles & Xie: 256 sinusoids, weights N(0, 0.02^2)."""
    embed = TimeEmbedding(dim, context=context)
    for linear in (embed.inner, embed.outer):
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    return embed
